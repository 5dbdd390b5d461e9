"""One context -> full page, fragment or JSON; every HX- header; number formats; the seed strip."""

import math
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.settings import STATIC, TEMPLATES

HIGHLIGHT_STEPS = 20  # alpha levels of the token highlight; each is a CSS class


def url(path: str, /, **parameters: Any) -> str:
    """A path with those query parameters that are set."""
    given = {key: value for key, value in parameters.items() if value not in (None, "")}
    return path + ("?" + urlencode(given) if given else "")


def asset(name: str) -> str:
    """Address of a static file; changes when the file does, so that it may be cached for ever."""
    return f"/static/{name}?{int((STATIC / name).stat().st_mtime)}"


# -- numbers and words -------------------------------------------------------------------------------------------


def percent(value: float, digits: int = 1) -> str:
    """0.01284 -> '1.3 %'."""
    return f"{100 * value:.{digits}f} %"


def density(value: float) -> str:
    """Densities have three decimals in percent, as everywhere in the field."""
    return f"{100 * value:.3f} %"


def per_mille(value: float) -> str:
    """A change of explained variance, signed, in thousandths."""
    return f"{1000 * value:+.2f} ‰"


def thousands(value: int) -> str:
    """1043 -> '1,043'."""
    return f"{value:,}"


def shown_token(text: str) -> str:
    """Whitespace made visible: newline, tab; an empty token as a box."""
    return text.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "→\t") or "▯"


def alpha_step(activation: float, largest: float) -> int:
    """Highlight level 0..HIGHLIGHT_STEPS: log10(1 + 9 a / max), one max for all that is compared."""
    if activation <= 0 or largest <= 0:
        return 0
    return max(1, round(HIGHLIGHT_STEPS * math.log10(1 + 9 * min(activation / largest, 1))))


# -- the seed strip ----------------------------------------------------------------------------------------------

PROFILE_FROM = 33  # comparisons from which the strip becomes a sorted profile


def seed_strip(cosines: tuple[float, ...], theta: float, bucket: str, width: int = 70, height: int = 20) -> Markup:
    """One bar per comparison seed, in seed order: height = best cosine, solid where it reaches theta.

    From 33 comparisons on a sorted step profile. Three paths whatever the number of seeds.
    """
    n = len(cosines)
    ordered = sorted(cosines, reverse=True) if n >= PROFILE_FROM else list(cosines)
    step = width / n
    gap = 0 if n >= PROFILE_FROM else min(2.0, step / 4)
    track = solid = faded = ""
    for i, cosine in enumerate(ordered):
        x, w = i * step, step - gap
        top = height * (1 - max(cosine, 0.02))
        track += f"M{x:.1f} 0h{w:.1f}v{height}h-{w:.1f}z"
        bar = f"M{x:.1f} {top:.1f}h{w:.1f}V{height}h-{w:.1f}z"
        if cosine >= theta - 1e-7:
            solid += bar
        else:
            faded += bar
    matched = sum(c >= theta - 1e-7 for c in cosines)
    title = f"{matched} of {n} seeds match; best cosines " + ", ".join(f"{c:.2f}" for c in cosines[:96])
    line = height * (1 - theta)
    return Markup(
        f'<svg class="strip {bucket}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title><path class="track" d="{track}"/><path class="solid" d="{solid}"/>'
        f'<path class="faded" d="{faded}"/><path class="theta" d="M0 {line:.1f}H{width}"/></svg>'
    )


def large_strip(comparisons: list[Any], theta: float, bucket: str, base: str, query: str) -> Markup:
    """The strip at the head of a feature page: every bar is a link to its partner, with a title to hover."""
    n = len(comparisons)
    width, height = (n * 26, 64) if n < PROFILE_FROM else (n * 8, 64)
    step = width / n
    bars = []
    for i, c in enumerate(comparisons):
        x, w, top = i * step, step - (4 if n < PROFILE_FROM else 1), height * (1 - max(c.cosine, 0.02))
        title = f"seed {c.seed}: #{c.partner}, cosine {c.cosine:.3f}, next best {c.runner_up_cosine:.3f}"
        bars.append(
            f'<a href="{base}/{c.seed}/{c.partner}{query}" aria-label="{title}"><title>{title}</title>'
            f'<rect class="track" x="{x:.1f}" y="0" width="{w:.1f}" height="{height}" rx="3"/>'
            f'<rect class="{"solid" if c.matched else "faded"}" x="{x:.1f}" y="{top:.1f}" width="{w:.1f}" '
            f'height="{height - top:.1f}" rx="3"/><text x="{x + w / 2:.1f}" y="{height + 13}">{c.seed}</text></a>'
        )
    line = height * (1 - theta)
    return Markup(
        f'<svg class="strip large {bucket}" width="{width}" height="{height + 16}" viewBox="0 0 {width} {height + 16}" '
        f'role="group" aria-label="best cosine in each other seed">{"".join(bars)}'
        f'<path class="theta" d="M0 {line:.1f}H{width}"/></svg>'
    )


def histogram(counts: list[int], edges: list[float], width: int = 280, height: int = 48) -> Markup:
    """Activation histogram over log-spaced bins, as bars with a title each."""
    largest, step = max(max(counts), 1), width / len(counts)
    bars = []
    for i, n in enumerate(counts):
        tall = height * n / largest
        title = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {n:,} tokens"
        bars.append(
            f'<rect x="{i * step:.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}">'
            f"<title>{title}</title></rect>"
        )
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="activation histogram, {edges[0]:.3g} to {edges[-1]:.3g}, log scale">{"".join(bars)}</svg>'
    )


# -- responses ---------------------------------------------------------------------------------------------------

templates = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
templates.filters |= {
    "percent": percent, "density": density, "per_mille": per_mille, "thousands": thousands, "token": shown_token,
}  # fmt: skip
templates.globals |= {
    "url": url, "asset": asset, "seed_strip": seed_strip, "large_strip": large_strip, "activation_histogram": histogram,
    "alpha_step": alpha_step,
}  # fmt: skip
# Macros imported at the top of a child template are unknown when one of its blocks is rendered alone.
templates.globals |= {
    name: macro
    for name, macro in vars(templates.get_template("_macros.html").module).items()
    if not name.startswith("_")
}


def wants_fragment(request: Request) -> bool:
    """htmx asks for part of a page; a history restore and a boosted link get all of it."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def respond(
    request: Request, template: str, context: Any, *, push: str | None = None, status: int = 200
) -> HTMLResponse:
    """Render a context dataclass: its `main` block for htmx, else the whole page."""
    values = {f.name: getattr(context, f.name) for f in fields(context)}
    values |= {"request": request, "embed": request.query_params.get("embed") == "true"}
    page = templates.get_template(template)
    headers = {"Vary": "HX-Request", "Cache-Control": "no-cache"}
    if not wants_fragment(request):
        return HTMLResponse(page.render(values), status, headers)
    if push:
        headers["HX-Push-Url"] = push
    block = page.blocks["main"]
    return HTMLResponse("".join(block(page.new_context(values))), status, headers)


def retarget_to_page(response: Response) -> None:
    """Make htmx put an error where the whole page is instead of where its answer was due."""
    response.headers["HX-Retarget"] = "#main"
    response.headers["HX-Reswap"] = "innerHTML"


def as_json(context: Any) -> JSONResponse:
    """The same context as JSON; page furniture (fields whose name begins with `nav_` or `figure_`) is left out."""
    values = asdict(context) if is_dataclass(context) else context
    shown = {k: v for k, v in values.items() if not k.startswith(("nav_", "figure_"))}
    return JSONResponse(shown, headers={"Cache-Control": "no-cache"})


def page(router: APIRouter, path: str, template: str, name: str) -> Callable[[Callable], Callable]:
    """Register a page and its `.json` twin; the decorated function computes their common context dataclass."""

    def register(handler: Callable) -> Callable:
        def json_twin(context: Annotated[Any, Depends(handler)]) -> Response:
            return as_json(context)

        def html(request: Request, context: Annotated[Any, Depends(handler)]) -> HTMLResponse:
            return respond(request, template, context, push=getattr(context, "nav_push", None))

        doc = handler.__doc__
        twin = "/index.json" if path == "/" else f"{path}.json"
        router.get(twin, name=f"{name}.json", description=doc)(json_twin)
        router.get(path, name=name, response_class=HTMLResponse, description=doc)(html)
        return handler

    return register
