"""Explained variance and next-token loss against the number of features masked, a curve per bucket."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import count_or_mean

# How each kind of mask is drawn: (colour, dash, marker); kinds that are no bucket are neutral.
_DRAWN = {
    "stable": (BUCKET_ROLE["stable"], "solid", "circle"),
    "unstable": (BUCKET_ROLE["unstable"], "solid", "diamond"),
    "matched to stable": ("@null", "dot", "circle-open"),
    "matched to unstable": ("@null", "dot", "diamond-open"),
    "random": ("@null", "dash", "x-thin-open"),
}
_LABEL = {"matched to stable": "like stable", "matched to unstable": "like unstable"}
CURVES = tuple(_DRAWN)


class CurvePoint(NamedTuple):
    """A mean over members at one place of a curve."""

    kind: str  # of CURVES
    n_masked: float
    n_low: float  # the fewest masked in one member
    n_high: float
    n_members: int
    value: float
    spread: float | None  # SD over members; None for one


class ReferenceLine(NamedTuple):
    """A horizontal line to read a curve against."""

    label: str
    value: float
    below: bool = False  # where the label stands


class MaskingAxis(NamedTuple):
    """What stands on the vertical axis."""

    id: str
    axis: str
    cost: str  # what masking costs, in words: `EV`
    key: str  # its entry of the glossary
    sign: int  # -1 where masking lowers it, 1 where masking raises it
    on: str  # the tokens, in words


EV = MaskingAxis("masked_ev", "explained variance", "EV", "ev_masked", -1, "evaluation tokens")
LOSS = MaskingAxis("masked_loss", "next-token loss, nats per token", "loss", "loss", 1, "tokens")


def masking_curves(
    what: MaskingAxis,
    points: Sequence[CurvePoint],
    levels: Sequence[ReferenceLine],
    untouched: float,
    n_tokens: int,
    n_draws: str,
) -> Figure:
    """One line per kind of mask, with a band over members; `untouched` is the value with nothing masked."""
    data: list[dict[str, Any]] = []
    by_kind = {kind: [p for p in points if p.kind == kind] for kind in CURVES}
    by_kind = {kind: held for kind, held in by_kind.items() if held}
    for kind, held in by_kind.items():
        colour, _, _ = _DRAWN[kind]
        if all(p.spread is None for p in held):
            continue
        ns, spread = [p.n_masked for p in held], [p.spread or 0 for p in held]
        high = [p.value + s for p, s in zip(held, spread, strict=True)]
        low = [p.value - s for p, s in zip(held, spread, strict=True)]
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": [*ns, *reversed(ns)], "y": [*high, *reversed(low)], "fill": "toself",
                "fillcolor": colour, "opacity": 0.16, "line": {"width": 0, "color": colour}, "hoverinfo": "skip",
                "showlegend": False, "legendgroup": kind, "name": kind,
            }
        )  # fmt: skip
    for kind, held in by_kind.items():
        colour, dash, marker = _DRAWN[kind]
        label = _LABEL.get(kind, kind)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": [p.n_masked for p in held], "y": [p.value for p in held],
                "name": label, "legendgroup": kind, "line": {"color": colour, "dash": dash, "width": 2 if dash == "solid" else 1.5},
                "marker": {"color": colour, "symbol": marker, "size": 7, "line": {"color": colour, "width": 1.5}},
                "customdata": [p.n_members for p in held],
                "hovertemplate": f"%{{x:.0f}} removed, {label}: {what.cost} %{{y:.3f}}, %{{customdata}} seeds<extra></extra>",
            }
        )  # fmt: skip
    n_members = max((p.n_members for p in points), default=0)
    band = " Bands: ± one standard deviation over seeds." if any(p.spread is not None for p in points) else ""
    return Figure(
        what.id,
        _title(what, by_kind, untouched),
        f"{what.axis[0].upper()}{what.axis[1:]} on n = {n_tokens:,} {what.on} by the number of features removed; mean over "
        f"{n_members} seed{'s' * (n_members != 1)}, {n_draws}.{band} Dotted, “like”: living features of about the same density.",
        {
            "data": data,
            "layout": layout(
                "features removed, log scale", what.axis, showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"type": "log", "dtick": 1, "tickformat": ",d"},
                yaxis={"range": _range([*(p.value for p in points), *(level.value for level in levels)])},
                shapes=[
                    {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level.value, "y1": level.value,
                     "line": {"color": "@soft", "width": 1, "dash": "dash"}} for level in levels
                ],
                annotations=[
                    {"xref": "paper", "x": 1, "xanchor": "right", "y": level.value, "showarrow": False,
                     "yanchor": "top" if level.below else "bottom",
                     "text": f"{level.label} {level.value:.3f}", "font": {"size": 11}} for level in levels
                ],
            ),
        },
        (
            "removed", Heading("features removed, mean", "n_masked"), Heading("fewest – most", "fewest_most"),
            Heading("seeds", "n_seeds"),
            Heading(f"{what.cost}, mean over seeds", what.key), Heading("SD over seeds", "sd"),
        ),
        tuple(
            (_LABEL.get(p.kind, p.kind), count_or_mean(p.n_masked), f"{p.n_low:.0f} – {p.n_high:.0f}", p.n_members,
             f"{p.value:.4f}", "–" if p.spread is None else f"{p.spread:.4f}")
            for p in points
        ),
    )  # fmt: skip


def _title(what: MaskingAxis, by_kind: dict[str, list[CurvePoint]], untouched: float) -> str:
    """What as many stable and unstable features cost, where both curves still reach."""
    if not {"stable", "unstable"} <= set(by_kind):
        return f"What does removing features cost in {what.cost}?"
    at = min(by_kind[kind][-1].n_masked for kind in ("stable", "unstable"))
    cost = {kind: what.sign * (_between(by_kind[kind], at) - untouched) for kind in ("stable", "unstable")}
    dearer, cheaper = max(cost, key=cost.__getitem__), min(cost, key=cost.__getitem__)
    if cost[dearer] <= 0:
        return f"Removing {at:.0f} stable or unstable features costs no {what.cost}"
    if cost[cheaper] <= 0:
        return f"Removing {at:.0f} {dearer} features costs {cost[dearer]:.3f} {what.cost}, as many {cheaper} ones cost none"
    times = cost[dearer] / cost[cheaper]
    more = f"{times:.0f}" if times >= 10 else f"{times:.1f}"
    return f"{at:.0f} {dearer} features cost {more} times as much {what.cost} as the same number of {cheaper} ones"


def _between(held: list[CurvePoint], n: float) -> float:
    """A curve's value at n features, on the straight line in log n between its neighbours."""
    for low, high in pairwise(held):
        if low.n_masked <= n <= high.n_masked and high.n_masked > low.n_masked:
            share = math.log(n / low.n_masked) / math.log(high.n_masked / low.n_masked)
            return low.value + share * (high.value - low.value)
    return held[-1].value if n >= held[-1].n_masked else held[0].value


def _range(values: list[float]) -> list[float]:
    """All values with room for a label above and below."""
    room = 0.12 * (max(values) - min(values) or 1)
    return [min(values) - room, max(values) + room]
