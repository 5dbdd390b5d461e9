"""Small inline SVG pictures: seed strip, activation histogram, energy against rank, a value along training."""

from math import log, sqrt
from typing import Any

from markupsafe import Markup

from seedscope.engine.contract.stability import is_match

_MANY_WIDTH = 400  # of the strip at the head of a page, whatever the number of seeds; its column is 406 pixels wide
_NAMES = {"cosine": "best cosine", "correlation": "correlation"}  # of a bar's height
PROFILE_FROM = 33  # comparisons from which the strip becomes a sorted profile


def seed_strip(
    cosines: tuple[float, ...], theta: float, bucket: str | None, measure: str, width: int = 70, height: int = 20
) -> Markup:
    """One bar per comparison seed, in seed order: height = best cosine, or correlation, solid where it reaches theta.

    `measure` names which of the two it is. From 33 comparisons on a sorted step profile.
    """
    n = len(cosines)
    if not n:
        return Markup("–")
    if n >= PROFILE_FROM:
        return _profile(sorted(cosines, reverse=True), theta, bucket, measure, width, height)
    step = width / n
    gap = min(2.0, step / 4)
    track = solid = faded = ""
    for i, (cosine, solid_here) in enumerate(zip(cosines, is_match(cosines, theta), strict=True)):
        x, w = i * step, step - gap
        top = height * (1 - max(cosine, 0.02))
        track += f"M{x:.1f} 0h{w:.1f}v{height}h-{w:.1f}z"
        bar = f"M{x:.1f} {top:.1f}h{w:.1f}V{height}h-{w:.1f}z"
        if solid_here:
            solid += bar
        else:
            faded += bar
    matched = is_match(cosines, theta).sum()
    title = f"{matched} of {n} seeds match; {_NAMES[measure]}s " + ", ".join(f"{c:.2f}" for c in cosines)
    return _strip(title, track, solid, faded, theta, bucket, width, height)


def _strip(
    title: str, track: str, solid: str, faded: str, theta: float, bucket: str | None, width: int, height: int
) -> Markup:
    line = height * (1 - theta)
    return Markup(
        f'<svg class="strip {bucket}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title><path class="track" d="{track}"/><path class="solid" d="{solid}"/>'
        f'<path class="faded" d="{faded}"/><path class="theta" d="M0 {line:.1f}H{width}"/></svg>'
    )


def _profile(ordered: list[float], theta: float, bucket: str | None, measure: str, width: int, height: int) -> Markup:
    """Many cosines, descending, as steps of half a pixel: a page of fifty such strips then weighs 15 kB, not 270."""
    n, matched = len(ordered), int(is_match(ordered, theta).sum())
    halves = [round(2 * height * (1 - max(cosine, 0.02))) for cosine in ordered]
    drawn: list[str] = []
    for begin, end in ((0, matched), (matched, n)):
        path = f"M{begin * width / n:.3g} {height}"
        for i in range(begin, end):
            if i + 1 == end or halves[i + 1] != halves[i]:
                path += f"V{halves[i] / 2:g}H{(i + 1) * width / n:.3g}"
        drawn.append(f"{path}V{height}z" if end > begin else "")
    title = (
        f"{matched} of {n} seeds match; {_NAMES[measure]}s from {ordered[0]:.2f} to {ordered[-1]:.2f}, "
        f"half of them at least {ordered[(n - 1) // 2]:.2f}"
    )
    return _strip(title, f"M0 0H{width}V{height}H0z", drawn[0], drawn[1], theta, bucket, width, height)


def large_strip(comparisons: list[Any], theta: float, bucket: str, measure: str, base: str, query: str) -> Markup:
    """The strip at the head of a feature page: every bar is a link to its partner, with a title to hover."""
    n = len(comparisons)
    many = n >= PROFILE_FROM
    width, height = (_MANY_WIDTH, 64) if many else (n * 26, 64)
    step = width / n
    every = -(-n // 10) if many else 1  # label
    bars = []
    for i, c in enumerate(comparisons):
        x, w, top = i * step, step - (step / 5 if many else 4), height * (1 - max(c.rule_cosine, 0.02))
        title = f"seed {c.seed}: #{c.rule_partner}, {measure} {c.rule_cosine:.3f}"
        if measure == "cosine":  # the next best is no correlation
            title += f", next best {c.runner_up_cosine:.3f}"
        href = f'href="{base}/{c.seed}/{c.rule_partner}{query}"'
        if c.rule_partner is None:
            title, href = f"seed {c.seed}: no counterpart under this rule", ""
        bars.append(
            f'<a {href} aria-label="{title}"><title>{title}</title>'
            f'<rect class="track" x="{x:.1f}" y="0" width="{w:.1f}" height="{height}" rx="3"/>'
            f'<rect class="{"solid" if c.matched else "faded"}" x="{x:.1f}" y="{top:.1f}" width="{w:.1f}" '
            f'height="{height - top:.1f}" rx="{1 if many else 3}"/>'
            + (f'<text x="{x + w / 2:.1f}" y="{height + 13}">{c.seed}</text></a>' if i % every == 0 else "</a>")
        )
    line = height * (1 - theta)
    return Markup(
        f'<svg class="strip large {bucket}" width="{width}" height="{height + 16}" viewBox="0 0 {width} {height + 16}" '
        f'role="group" aria-label="{_NAMES[measure]} in each other seed">{"".join(bars)}'
        f'<path class="theta" d="M0 {line:.1f}H{width}"/></svg>'
    )


def predicted_strip(p: float, low: float, high: float, width: int = 70, height: int = 20) -> Markup:
    """The strip of a feature whose p is predicted, not measured: hollow, from `low` to `high` of 0 to 1, with a mark at p."""
    left, right, middle, top = low * width, high * width, p * width, height * 0.2
    title = f"predicted p {p:.2f}, not measured; of features with such a prediction 95 % have p from {low:.2f} to {high:.2f}"
    return Markup(
        f'<svg class="strip predicted" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title><path class="track" d="M0 {height / 2 - 0.5:.1f}H{width}v1H0z"/>'
        f'<rect class="hollow" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" height="{height * 0.6:.1f}" rx="3"/>'
        f'<path class="mark" d="M{min(max(middle, 1), width - 1):.1f} 0V{height}"/></svg>'
    )


def annotated_strip(cosines: tuple[float, ...], theta: float, bucket: str | None) -> Markup:
    """A strip with its axis and threshold in words, for readers who never saw one: a bar per other seed, up to 32 of them."""
    cosines = cosines[: PROFILE_FROM - 1]
    # Narrow enough for a phone: wider, its words would be drawn too small to read there.
    n, left, top, height, right = len(cosines), 58, 14, 90, 66
    step = min(32.0, 224 / max(n, 1))
    width = left + n * step + right
    bars = []
    for i, (cosine, reaches) in enumerate(zip(cosines, is_match(cosines, theta), strict=True)):
        x, w, tall = left + i * step, step * 0.86, height * max(cosine, 0.02)
        bars.append(
            f'<rect class="track" x="{x:.1f}" y="{top}" width="{w:.1f}" height="{height}" rx="4"/>'
            f'<rect class="{"solid" if reaches else "faded"}" x="{x:.1f}" y="{top + height - tall:.1f}" width="{w:.1f}" '
            f'height="{tall:.1f}" rx="4"/>'
        )
    line, end = top + height * (1 - theta), left + n * step
    matched = int(is_match(cosines, theta).sum())
    name = f"{matched} of {n} other seeds have a feature of cosine {theta:g} or more"
    return Markup(
        f'<svg class="strip annotated {bucket}" viewBox="0 0 {width:.0f} {top + height + 24}" width="{width:.0f}" '
        f'height="{top + height + 24}" role="img" aria-label="{name}">{"".join(bars)}'
        f'<path class="theta" d="M{left} {line:.1f}H{end:.1f}"/>'
        f'<text class="end" x="{left - 8}" y="{top + 8}">cosine 1</text>'
        f'<text class="end" x="{left - 8}" y="{top + height}">0</text>'
        f'<text class="start" x="{end + 2:.1f}" y="{line + 4:.1f}">θ = {theta:.2f}</text>'
        f'<text class="start" x="{end + 2:.1f}" y="{line + 18:.1f}">a match</text>'
        f'<text class="start" x="{left}" y="{top + height + 18}">one bar per other seed</text></svg>'
    )


def histogram(
    counts: list[int],
    edges: list[float],
    marks: dict[str, float] | None = None,
    axis: tuple[float, float] | None = None,
    width: int = 280,
    height: int = 48,
) -> Markup:
    """Activation histogram over log-spaced bins, as bars with a title each; named values are marked by lines.

    `axis`: the ends of its log axis, so that two histograms can share one; the bins' own where it is None.
    """
    low, high = axis or (edges[0], edges[-1])
    span = log(high / low) if high > low > 0 else 0
    ends = [width * log(edge / low) / span if span else width * i / len(counts) for i, edge in enumerate(edges)]
    largest, bars = max(max(counts), 1), []
    for i, n in enumerate(counts):
        tall = height * n / largest
        title = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {n:,} tokens"
        bars.append(
            f'<rect x="{ends[i]:.1f}" y="{height - tall:.1f}" width="{max(ends[i + 1] - ends[i] - 1, 0.5):.1f}" '
            f'height="{tall:.1f}"><title>{title}</title></rect>'
        )
    for name, value in (marks or {}).items():
        if span and edges[0] <= value <= edges[-1]:
            x = width * log(value / low) / span
            bars.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"><title>{name}: {value:.3g}</title></line>'
            )
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="activation histogram, {low:.3g} to {high:.3g}, log scale">{"".join(bars)}</svg>'
    )


def density_bars(counts: list[int]) -> Markup:
    """Features per bin of density as one path of bars, a unit wide each: what the handles of a filter move over."""
    largest = max(counts, default=0) or 1
    # Square roots: a few features at the ends of the scale stay visible beside the many in its middle.
    bars = "".join(f"M{i} 40v-{40 * sqrt(n / largest):.1f}h.8V40" for i, n in enumerate(counts) if n)
    name = f"{sum(counts):,} features that fire, by density, log scale"
    return Markup(
        f'<svg class="density-bars" id="density-bars" viewBox="0 0 {len(counts)} 40" preserveAspectRatio="none" role="img" '
        f'aria-label="{name}"><path d="{bars}"/></svg>'
    )


def energy_chart(
    ranks: list[int], d: int, rank: int, curves: dict[str, list], width: int = 400, height: int = 190
) -> Markup:
    """Shares between 0 and 1 against rank on a log axis: lines, bands given as [low, high], the null r/d, a mark at one rank.

    A curve's key is its class; None ends it.
    """
    left, right, top, bottom = 40, 8, 8, 22
    span = log(ranks[-1]) or 1

    def place(r: float, share: float) -> str:
        x = left + (width - left - right) * log(r) / span
        return f"{x:.1f} {top + (height - top - bottom) * (1 - share):.1f}"

    def line(points: list[tuple[int, float]]) -> str:
        return "M" + "L".join(place(*point) for point in points) if points else ""

    def known(values: list[float | None]) -> list[tuple[int, float]]:
        return [(r, value) for r, value in zip(ranks, values, strict=True) if value is not None]

    drawn = ""
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(1, share).split()
        drawn += f'<path class="grid" d="M{x} {y}H{width - right}"/>'
        drawn += f'<text class="end" x="{left - 5}" y="{float(y) + 3.5:.1f}">{100 * share:.0f}\u00a0%</text>'
    tick = 1
    while tick <= ranks[-1]:
        x = place(tick, 0).split()[0]
        drawn += f'<text x="{x}" y="{height - 6}">{tick:,}</text>'
        tick *= 4
    drawn += f'<path class="mark" d="M{place(rank, 0)}L{place(rank, 1)}"/>'
    for name, values in curves.items():
        if values and isinstance(values[0], list):
            low, high = (known(edge) for edge in values)
            drawn += f'<path class="{name}" d="{line(low + high[::-1])}"/>'
    drawn += f'<path class="null" d="{line([(r, r / d) for r in ranks])}"/>'
    for name, values in curves.items():
        if not (values and isinstance(values[0], list)):
            drawn += f'<path class="{name}" d="{line(known(values))}"/>'
    title = f"captured energy against rank, 1 to {ranks[-1]:,}, log scale; the thin line is rank {rank:,}"
    return Markup(
        f'<svg class="energy" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"><title>{title}</title>{drawn}</svg>'
    )


def course(tokens: list[int], values: list[float], low: float, high: float, says: str, form: str) -> Markup:
    """A sparkline against tokens on a log axis, the start in front of it; every point has a title to hover.

    `low` and `high` are the ends of the vertical axis, `says` what is drawn, `form` how a value is written.
    """
    width, height, pad = 280, 44, 4
    first = next((each for each in tokens if each), 1)
    places = [log(each or first / 4) for each in tokens]
    span = (places[-1] - places[0]) or 1
    x = [pad + (width - 2 * pad) * (place - places[0]) / span for place in places]
    y = [pad + (height - 2 * pad) * (1 - (value - low) / ((high - low) or 1)) for value in values]
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"><title>{n:,} tokens: {format(value, form)}</title></circle>'
        for a, b, n, value in zip(x, y, tokens, values, strict=True)
    )
    zero = pad + (height - 2 * pad) * (1 - (0 - low) / ((high - low) or 1))
    title = f"{says} in training, {format(values[0], form)} at the start, {format(values[-1], form)} at the end"
    return Markup(
        f'<svg class="course" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"><title>{title}</title>'
        f'<path class="zero" d="M0 {zero:.1f}H{width}"/><path class="line" d="M{line}"/>{dots}</svg>'
    )
