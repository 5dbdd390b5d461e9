"""One context dataclass as a full page, an htmx fragment or JSON, and tables as downloads; sets every HX- header."""

import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from seedscope.app.downloads import ENCODERS
from seedscope.app.figures.plot_json import plot_json
from seedscope.app.figures.svg_sparks import members_now, sparks
from seedscope.app.figures.svg_strips import (
    annotated_strip,
    course,
    density_bars,
    energy_chart,
    histogram,
    large_strip,
    predicted_strip,
    seed_strip,
)
from seedscope.app.formats import (
    alpha_step,
    architecture,
    count_or_mean,
    counted,
    density,
    differing_recipe,
    duration,
    hit_runs,
    known,
    millinats,
    moment,
    per_mille,
    percent,
    points,
    short,
    shown_token,
    thousands,
    with_code,
)
from seedscope.app.freshness import check_kept
from seedscope.app.glossary.entries import GLOSSARY, SECTIONS
from seedscope.app.glossary.mathml import mathml
from seedscope.app.json_text import PiecewiseJSONResponse
from seedscope.app.lens import RULE_NAMES, measure_of
from seedscope.app.parameters import url, url_by
from seedscope.app.settings import TEMPLATES
from seedscope.app.shell import shell_of
from seedscope.app.static_files import asset
from seedscope.app.turns import in_turns
from seedscope.engine.contract import directions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


_entry_ids: ContextVar[Iterator[str]] = ContextVar("entry_ids")


def entry_id() -> str:
    """The id of the next entry of the glossary on the page that is being rendered."""
    return next(_entry_ids.get())


def _number_entries(path: str) -> None:
    """Begin the entries' ids anew: the same on a page and on its parts, others on parts that other addresses add to it."""
    page = f"e{zlib.crc32(path.encode()):08x}"
    _entry_ids.set(f"{page}-{i}" for i in count())


_MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet",
          "json": "application/json"}  # fmt: skip

# -- responses ---------------------------------------------------------------------------------------------------

templates = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def part(name: str, page: "DataclassInstance", /, **more: Any) -> Markup:
    """A partial of another page, rendered with the fields of that page's context: of several objects on one page."""
    return Markup(templates.get_template(name).render(vars(page) | more))


templates.filters |= {
    "percent": percent, "points": points, "density": density, "per_mille": per_mille, "thousands": thousands, "token": shown_token,
    "known": known, "millinats": millinats, "duration": duration, "moment": moment,
    "with_code": with_code, "counted": counted,
    "measure": measure_of, "short": short, "count_or_mean": count_or_mean, "plot_json": plot_json,
}  # fmt: skip
templates.globals |= {
    "url": url, "url_by": url_by, "part": part, "asset": asset, "seed_strip": seed_strip, "large_strip": large_strip,
    "predicted_strip": predicted_strip,
    "activation_histogram": histogram, "density_bars": density_bars,
    "energy_chart": energy_chart, "course": course, "sparks": sparks, "annotated_strip": annotated_strip,
    "members_now": members_now, "alpha_step": alpha_step, "hit_runs": hit_runs,
    "architecture": architecture, "glossary": GLOSSARY, "sections": SECTIONS,
    "rule_names": RULE_NAMES,
    "entry_id": entry_id, "math": mathml,
}  # fmt: skip


def _macros() -> dict[str, Any]:
    """Every macro of templates/macros by name; they see each other whatever their file."""
    names = dict(templates.globals)
    for file in sorted((TEMPLATES / "macros").glob("*.html")):
        module = templates.get_template(f"macros/{file.name}").make_module(names, shared=True)
        names |= {name: macro for name, macro in vars(module).items() if not name.startswith("_")}
    return names


# As globals: what a child template imports at its top is unknown when one of its blocks is rendered alone.
templates.globals |= _macros()
_FURNITURE = ("nav_", "figure_")  # beginnings of names of fields that only pages need
_SHELL = templates.get_template("macros/shell.html").make_module(dict(templates.globals), shared=True)


def wants_fragment(request: Request) -> bool:
    """htmx asks for part of a page; a history restore and a boosted link get all of it."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def respond(
    request: Request, template: str, context: Any, *, push: str | None = None, status: int = 200
) -> HTMLResponse:
    """Render a context dataclass: its `main` block for htmx, else the whole page."""
    values = {f.name: getattr(context, f.name) for f in fields(context)}
    embed = request.query_params.get("embed") == "true"
    shell = shell_of(request, request.app.state.studies)
    values |= {
        "differs": _differs(request),
        "directed": _directed(request),
        "shell": shell,
        "lens": shell.lens.parameters,
    }
    # What other sites may frame holds nothing that starts work.
    values |= {"request": request, "embed": embed, "queue": None if embed else request.app.state.jobs}
    page = templates.get_template(template)
    _number_entries(request.url.path)
    headers = {"Vary": "HX-Request, HX-History-Restore-Request", "Cache-Control": "no-cache"} | etag(request, status)
    if not wants_fragment(request):
        return HTMLResponse(page.render(values), status, headers)
    block = page.blocks["main"]
    parts = list(block(page.new_context(values)))
    if push:  # the page moves to another address: what stands around its content, and carries the lens, moves along
        headers["HX-Push-Url"] = push
        around = ("crumbs_to", "tab_row", "search_lens") if shell.tabs and shell.search else ()
        parts += [getattr(_SHELL, name)(shell, swapped=True) for name in around]
    return HTMLResponse("".join(parts), status, headers)


def rendered(name: str, path: str, /, **values: Any) -> Markup:
    """A template that answers no request, with the ids of its glossary entries made from `path`."""
    _number_entries(path)
    return Markup(templates.get_template(name).render(values))


def etag(request: Request, status: int) -> dict[str, str]:
    """The ETag that the route left for its answer; none for pages that are not kept, and none for refusals."""
    etag = getattr(request.state, "etag", None) if status == 200 else None
    return {"ETag": etag} if etag else {}


class Differs(NamedTuple):
    """What every page of an ensemble says whose members were not all made by one recipe."""

    remark: str
    anchor: int
    base: str  # the ensemble's address


def _differs(request: Request) -> Differs | None:
    """Of the ensemble that the request is about, as app.routes.address left it there; None where one recipe made all."""
    row = getattr(request.state, "ensemble", None)
    if row is None or row.anchor is None:
        return None
    base = f"/s/{request.path_params['study']}/{row.ensemble}"
    return Differs(differing_recipe(row.anchor, row.n_comparisons), row.anchor, base)


class Directed(NamedTuple):
    """What every page of an ensemble of transcoders says of its numbers."""

    directions: str
    sentence: str
    place: str  # what they read, and what they predict
    undefined: str | None  # why nothing compares its output with the model; None where that is done


def _directed(request: Request) -> Directed | None:
    """Of the ensemble that the request is about; None for SAEs."""
    row = getattr(request.state, "ensemble", None)
    if row is None or row.directions is None:
        return None
    return Directed(row.directions, directions.SENTENCE, row.place or "", row.undefined)


def retarget_to_page(response: Response) -> None:
    """Make htmx put an error where the whole page is instead of where its answer was due."""
    response.headers["HX-Retarget"] = "#main"
    response.headers["HX-Reswap"] = "innerHTML"
    response.headers["HX-Reselect"] = "unset"


def as_json(context: "DataclassInstance | dict[str, Any]", request: Request | None = None) -> JSONResponse:
    """The same context as JSON; page furniture (fields whose name begins with `nav_` or `figure_`) is left out.

    Where a member of the ensemble has another recipe than the others, `recipe_differs` says what numbers mean then; of
    transcoders `directions` says what was matched.
    """
    shown = _shown(context)
    if differs := request and _differs(request):
        shown["recipe_differs"] = differs.remark
    if directed := request and _directed(request):
        shown["directions"] = directed.directions
        shown |= {"undefined": directed.undefined} if directed.undefined else {}
    headers = {"Cache-Control": "no-cache"} | (etag(request, 200) if request else {})
    return PiecewiseJSONResponse(shown, headers=headers)


def _shown(values: Any) -> Any:
    """Values as JSON has them, without the fields that only pages need, at every depth: a page may hold whole other pages.

    `dataclasses.asdict` copies every number; that took a third of a table's answer.
    """
    if isinstance(values, str | int | float | None):
        return values
    if isinstance(values, dict):
        return {name: _shown(value) for name, value in values.items() if not str(name).startswith(_FURNITURE)}
    if isinstance(values, list | tuple):
        return [_shown(value) for value in values]
    if is_dataclass(values):
        names = (field.name for field in fields(values) if not field.name.startswith(_FURNITURE))
        return {name: _shown(getattr(values, name)) for name in names}
    return values


def download(request: Request, table: pa.Table, name: str, *, about: dict[str, Any] | None = None) -> Response:
    """A table as the file that the address ends in: `.csv`, `.parquet` or `.json`; of transcoders a column says what was matched.

    CSV has no lists: they stand there as JSON. A JSON file is an object with `about`'s fields, the number of rows and the rows.
    """
    if directed := _directed(request):
        table = table.append_column("directions", pa.array([directed.directions] * len(table)))
    kind = request.url.path.rsplit(".", 1)[1]
    content = b"".join(ENCODERS[kind](table.schema, iter(table.to_batches()), (about or {}) | {"n": len(table)}))
    headers = {"Content-Disposition": f'attachment; filename="{name}.{kind}"'}
    return Response(content, media_type=_MEDIA[kind], headers=headers)


def stream(
    request: Request,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    name: str,
    *,
    about: dict[str, Any] | None = None,
    n: int,
) -> Response:
    """As `download`, of rows that come some at a time: the first bytes leave at once, and memory does not grow with the rows."""
    kind = request.url.path.rsplit(".", 1)[1]
    if directed := _directed(request):
        field = pa.field("directions", pa.string())
        batches = (each.append_column(field, pa.array([directed.directions] * len(each))) for each in batches)
        schema = schema.append(field)
    headers = {"Content-Disposition": f'attachment; filename="{name}.{kind}"'}
    return StreamingResponse(
        in_turns(request, ENCODERS[kind](schema, batches, (about or {}) | {"n": n})),
        media_type=_MEDIA[kind],
        headers=headers,
    )


def page(
    router: APIRouter, path: str, template: str, name: str, *, kept: bool = True
) -> Callable[[Callable], Callable]:
    """Register a page and its `.json` twin; the decorated function computes their common context dataclass.

    `kept`: the page is made of published stores alone, so that browsers keep it until one changes (`app.freshness`).
    """
    checks = [Depends(check_kept)] if kept else []

    def register(handler: Callable) -> Callable:
        def json_twin(request: Request, context: Annotated[Any, Depends(handler)]) -> Response:
            return as_json(context, request)

        def html(request: Request, context: Annotated[Any, Depends(handler)]) -> HTMLResponse:
            status, push = getattr(context, "nav_status", 200), getattr(context, "nav_push", None)
            response = respond(request, template, context, push=push, status=status)
            if status in (202, 503):  # the live engine's answer is not there yet
                response.headers["Retry-After"] = "1"
            return response

        doc = handler.__doc__
        twin = "/index.json" if path == "/" else f"{path}.json"
        router.get(twin, name=f"{name}.json", description=doc, dependencies=checks)(json_twin)
        router.get(path, name=name, response_class=HTMLResponse, description=doc, dependencies=checks)(html)
        return handler

    return register
