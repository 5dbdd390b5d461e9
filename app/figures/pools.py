"""Feature pools as figures: features by the number of seeds that hold them, and pools beside controls along training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import Figure, Heading, layout

# {curve: (what it is called, the same for a legend, colour, dash, marker)}; pools in colour, their controls neutral.
POOL_KINDS = {
    "pool": ("pool of all seeds", "all seeds", "@accent", "dot", "diamond"),
    "halves": ("pools of two halves", "two halves", "@accent", "solid", "circle"),
    "members": ("single seeds", "members", "@ink", "solid", "square-open"),
    "fresh": ("fresh seeds", "fresh", "@soft", "dash", "triangle-up-open"),
    "subset": ("random features", "random", "@null", "dashdot", "x-thin-open"),
}


class PoolMeasure(NamedTuple):
    """What stands on the vertical axis."""

    id: str
    title: str
    axis: str
    says: str  # how to read it
    form: str  # of a value, as both Python and d3 write it


class PoolAt(NamedTuple):
    """One curve at one length: its value, and those that it is the mean of."""

    curve: str  # of POOL_KINDS
    tokens: int
    value: float
    parts: list[float]


class AxisBand(NamedTuple):
    """A stretch of the vertical axis to read curves against."""

    label: str
    mean: float
    low: float
    high: float


def holders_figure(unique: Sequence[int], pooled: Sequence[int], theta: float, links: Sequence[str]) -> Figure:
    """Unique features by the number of members that hold them: those in the pool, and those left out."""
    n, xs = len(unique), list(range(1, len(unique) + 1))
    rest = [every - taken for every, taken in zip(unique, pooled, strict=True)]
    bars = [("in the pool", list(pooled), "@accent"), ("left out", rest, "@null")]
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "x": xs, "y": values, "name": f"{name} ({sum(values):,})", "marker": {"color": colour},
            "customdata": list(links) if name == "in the pool" else [""] * n,
            "hovertemplate": f"held by %{{x}} of {n} seeds: %{{y:,}} {name}<extra></extra>",
        }
        for name, values, colour in bars
    ]  # fmt: skip
    most = max(unique, default=0) or 1
    return Figure(
        "holders",
        f"{sum(unique):,} unique features; {unique[-1]:,} are held by every seed, {unique[0]:,} by one alone",
        f"Unique features at θ = {theta:.2f} by how many of the {n} seeds hold them. Those that most seeds hold make the "
        "pool, as many as a seed has; click a bar for them.",
        {
            "data": data,
            "layout": layout(
                f"seeds that hold a feature, of {n}", "unique features", barmode="stack", showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"dtick": 1 if n < 20 else None}, yaxis={"range": [0, 1.08 * most]},
            ),
        },
        (Heading("held by", "held_by"), Heading("unique features", "pool_unique"), Heading("in the pool", "pool_taken")),
        tuple(zip(xs, unique, pooled, strict=True)),
    )  # fmt: skip


def pool_figure(
    what: PoolMeasure, points: Sequence[PoolAt], asked: int, bands: Sequence[AxisBand], n_tokens: int | None
) -> Figure:
    """One line per curve against the tokens that were trained on further, with the value of every SAE."""
    data: list[dict[str, Any]] = []
    for curve, (label, short, colour, dash, marker) in POOL_KINDS.items():
        held = sorted((p for p in points if p.curve == curve), key=lambda p: p.tokens)
        if not held:
            continue
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": short, "x": [p.tokens for p in held],
                "y": [p.value for p in held], "legendgroup": curve,
                "line": {"color": colour, "dash": dash, "width": 2 if dash == "solid" else 1.5},
                "marker": {"color": colour, "symbol": marker, "size": 7, "line": {"color": colour, "width": 1.5}},
                "text": [" and ".join(format(part, what.form) for part in p.parts) for p in held],
                "hovertemplate": f"{label}, %{{x:,}} more tokens: %{{y:{what.form}}} (%{{text}})<extra></extra>",
            }
        )  # fmt: skip
        parts = [(p.tokens, part) for p in held if len(p.parts) > 1 for part in p.parts]
        if parts:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "x": [x for x, _ in parts], "y": [y for _, y in parts], "name": short,
                    "marker": {"color": colour, "size": 4, "opacity": 0.5}, "hoverinfo": "skip", "showlegend": False,
                    "legendgroup": curve,
                }
            )  # fmt: skip
    values = [part for p in points for part in (p.value, *p.parts)]
    values += [edge for band in bands for edge in (band.low, band.high)]
    # Of what is nearly constant, such as TopK's L0, the last digits say nothing.
    room = max(0.08 * (max(values) - min(values)), 0.02 * max(map(abs, values)), 0.001)
    every = sorted({p.tokens for p in points})
    measured = f" Measured on n = {n_tokens:,} tokens." if n_tokens else ""
    return Figure(
        what.id,
        what.title,
        f"{what.says} Coloured: pools; grey: controls. Lines: means; dots: the two SAEs of each.{measured} Dotted upright: the "
        "length that was asked for.",
        {
            "data": data,
            "layout": layout(
                "tokens trained on further", what.axis, showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
                xaxis={"tickvals": every if len(every) < 4 else [every[0], *every[2:]], "tickformat": ",d",
                       "range": [-0.04 * (every[-1] or 1), 1.04 * (every[-1] or 1)]},
                yaxis={"range": [min(values) - room, max(values) + room], "tickformat": what.form},
                shapes=[
                    {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": asked, "x1": asked,
                     "line": {"color": "@soft", "width": 1, "dash": "dot"}},
                    *({"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": band.low, "y1": band.high, "fillcolor": "@band",
                       "line": {"width": 0}, "layer": "below"} for band in bands if band.high > band.low),
                    *({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": band.mean, "y1": band.mean, "layer": "below",
                       "line": {"color": "@soft", "width": 1, "dash": "dash"}} for band in bands),
                ],
                annotations=[
                    {"xref": "paper", "x": 1, "xanchor": "right", "y": band.mean, "yanchor": "bottom", "showarrow": False,
                     "text": f"{band.label} {format(band.mean, what.form)}", "font": {"size": 11}} for band in bands
                ],
            ),
        },
        ("trained on", Heading("more tokens", "pool_tokens"), Heading("mean", "pool_value"), Heading("each", "pool_value")),
        tuple(
            (POOL_KINDS[p.curve][0], f"{p.tokens:,}", format(p.value, what.form), ", ".join(format(x, what.form) for x in p.parts))
            for p in points
        ),
    )  # fmt: skip
