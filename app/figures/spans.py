"""Captured energy of sets of features against the rank of the span, with a band over pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import percent

# How each curve is drawn: (label, colour, None: that of the subject, dash).
_DRAWN = {
    "within": ("own seed", None, "dot"),
    "cross": ("another seed", None, "solid"),
    "random_set": ("random living", "@soft", "dashdot"),
    "stable": ("stable", BUCKET_ROLE["stable"], "longdash"),
    "activations": ("PCA of activations", "@ink", "dot"),
    "random_subspace": ("random, r/d", "@null", "dash"),
}
CURVES = tuple(_DRAWN)
# Of the axes: how far a name stands from its curve, and how wide one of its letters is where figures are narrow.
_ROOM, _LETTER = 0.05, 0.022


@dataclass(frozen=True)
class CapturedCurve:
    """Mean captured energy at every rank, None where no pair reaches it."""

    name: str  # of CURVES
    ranks: tuple[int, ...]
    mean: tuple[float | None, ...]
    spread: tuple[float | None, ...]  # SD over pairs, or over members; None for what has none
    n_pairs: tuple[int, ...]  # ordered pairs, or members, behind each mean

    def at(self, rank: int) -> float | None:
        """The mean at one rank; None where the curve has no such rank or stops before it."""
        return self.mean[self.ranks.index(rank)] if rank in self.ranks else None


def captured_figure(
    curves: Sequence[CapturedCurve],
    *,
    d: int,
    rank: int | None,
    n: str,
    subject: str = "unstable features",
    bucket: str | None = "unstable",
    fitted: str = "half of a seed’s rows",
    id: str = "captured",
) -> Figure:
    """One line per curve with a band of its spread; r/d is drawn whether it is given or not.

    `n` says of how many features and members, `fitted` on what the spans were fitted, `bucket` whose colour the subject has
    (None: it is no bucket). `rank`, one of the curves' ranks, is marked and what the title states.
    """
    drawn = [
        curve for name in CURVES for curve in curves if curve.name == name and any(m is not None for m in curve.mean)
    ]
    if not any(curve.name == "random_subspace" for curve in drawn):
        ranks = max((curve.ranks for curve in drawn), key=len, default=(1, d))
        drawn.append(
            CapturedCurve(
                "random_subspace", ranks, tuple(r / d for r in ranks), (None,) * len(ranks), (0,) * len(ranks)
            )
        )
    own = BUCKET_ROLE[bucket] if bucket else "@accent"
    colours = {name: colour or own for name, (_, colour, _) in _DRAWN.items()}
    data = [_band(curve, colours[curve.name]) for curve in drawn if any(curve.spread)]
    data += [_line(curve, colours[curve.name], label) for curve, label in zip(drawn, _labels(drawn), strict=True)]
    mark = {
        "type": "line",
        "x0": rank,
        "x1": rank,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "@soft", "width": 1},
    }
    band = " Bands: ± one standard deviation over pairs." if any(any(curve.spread) for curve in drawn) else ""
    return Figure(
        id,
        _title({curve.name: curve for curve in drawn}, rank, subject, d),
        f"Mean squared cosine of n = {n} with the span of the top r directions of {subject}, fitted on {fitted}, by rank r; "
        f"d = {d:,}.{band} Dashed grey: a random subspace, r/d.{'' if rank is None else f' The thin line is rank {rank:,}.'}",
        {
            "data": data,
            "layout": layout(
                "rank r, log scale", "captured energy",
                xaxis={"type": "log", "tickvals": _ticks(d), "ticktext": [f"{tick:,}" for tick in _ticks(d)],
                       "range": [-0.05, math.log10(d) + 0.05]},
                yaxis={"tickformat": ".0%", "range": [0, 1.04]},
                shapes=[] if rank is None else [mark],
            ),
        },
        (
            "span of", Heading("rank", "rank_r"), Heading("captured energy, mean", "captured_energy"),
            Heading("SD over pairs", "sd"), Heading("pairs", "n_pairs"),
        ),
        tuple(
            (_DRAWN[curve.name][0], f"{r:,}", percent(mean), "–" if spread is None else percent(spread), n_pairs or "–")
            for curve in drawn
            for r, mean, spread, n_pairs in zip(curve.ranks, curve.mean, curve.spread, curve.n_pairs, strict=True)
            if mean is not None
        ),
    )  # fmt: skip


def _title(curves: dict[str, CapturedCurve], rank: int | None, subject: str, d: int) -> str:
    cross = curves["cross"].at(rank) if rank is not None and "cross" in curves else None
    if rank is None or cross is None:
        return f"How much of the energy of {subject} lies in another seed’s span?"
    within = curves["within"].at(rank) if "within" in curves else None
    own = f", their own {percent(within, 0)}" if within is not None else ""
    return (
        f"At rank {rank:,} another seed’s span captures {percent(cross, 0)} of the energy of {subject}{own}, "
        f"a random one {percent(rank / d, 0)}"
    )


def _band(curve: CapturedCurve, colour: str) -> dict[str, Any]:
    reached = [
        (rank, mean, spread or 0)
        for rank, mean, spread in zip(curve.ranks, curve.mean, curve.spread, strict=True)
        if mean is not None
    ]
    xs = [rank for rank, _, _ in reached]
    high = [min(mean + spread, 1) for _, mean, spread in reached]
    low = [max(mean - spread, 0) for _, mean, spread in reached]
    return {
        "type": "scatter", "mode": "lines", "x": [*xs, *reversed(xs)], "y": [*high, *reversed(low)], "fill": "toself",
        "fillcolor": colour, "opacity": 0.16, "line": {"width": 0, "color": colour}, "hoverinfo": "skip",
        "name": _DRAWN[curve.name][0],
    }  # fmt: skip


def _line(curve: CapturedCurve, colour: str, label: tuple[int, str] | None) -> dict[str, Any]:
    says, _, dash = _DRAWN[curve.name]
    null = curve.name == "random_subspace"
    return {
        "type": "scatter", "mode": "lines+text" if null else "lines+markers+text", "x": list(curve.ranks), "y": list(curve.mean),
        "name": says, "line": {"color": colour, "dash": dash, "width": 2 if curve.name in ("within", "cross") else 1.5},
        "marker": {"color": colour, "size": 5}, "customdata": list(curve.n_pairs), "cliponaxis": False, "connectgaps": False,
        "text": [says if label and i == label[0] else "" for i in range(len(curve.ranks))],
        "textposition": label[1] if label else "top center", "textfont": {"color": colour},
        "hovertemplate": f"{says}, rank %{{x:,}}: %{{y:.1%}} of the energy"
                         f"{'' if null else ', mean over %{customdata}'}<extra></extra>",
    }  # fmt: skip


def _labels(held: Sequence[CapturedCurve]) -> list[tuple[int, str] | None]:
    """Per curve at which of its points its name stands, and on which side: where curves and other names are farthest."""
    span = math.log(max(curve.ranks[-1] for curve in held)) or 1
    points = [
        (math.log(rank) / span, mean)
        for curve in held
        for rank, mean in zip(curve.ranks, curve.mean, strict=True)
        if mean is not None
    ]
    labels: list[tuple[int, str] | None] = []
    for curve in held:
        width = _LETTER * len(_DRAWN[curve.name][0])
        places = []
        for i, (rank, y) in enumerate(zip(curve.ranks, curve.mean, strict=True)):
            if y is None:
                continue
            x = math.log(rank) / span
            for side, left, level in (("top left", x - width, y + _ROOM), ("bottom right", x, y - _ROOM)):
                if left >= 0 and left + width <= 1 and 0.02 <= level <= 1:
                    near = [abs(b - level) for a, b in points if left - 0.05 <= a <= left + width + 0.05]
                    places.append((round(min(near, default=1), 3), i, side, left, level))
        if not places:
            labels.append(None)
            continue
        _, i, side, left, level = max(places)
        points += [(left + part * width / 4, level) for part in range(5)]
        labels.append((i, side))
    return labels


def _ticks(d: int) -> list[int]:
    step = 2 if d <= 256 else 4
    ticks = [step**power for power in range(int(math.log(d, step) + 1e-9) + 1)]
    return ticks if d < 1.5 * ticks[-1] else [*ticks, d]
