"""Small shared spans as figures: candidates beside their nulls, one span seed by seed, pairs of seeds, and how features tile it."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import SEQUENTIAL, Figure, Heading, layout
from seedscope.app.formats import counted, percent

MOST_DRAWN = 40  # candidates of the figure; the table has all
MOST_NAMED = 16  # seeds whose cells hold their numbers
# {null: (name, symbol, key of the glossary)}
NULLS = {
    "living": ("random living features", "diamond", "span_null_living"),
    "density": ("random living, same density", "diamond-open", "span_null_density"),
    "rotated": ("rotated dictionary", "x-thin-open", "span_null_rotated"),
    "second_moment": ("same second moment", "cross-thin-open", "span_null_second_moment"),
}
_SIGNS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "triangle-down", "star")
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


class DrawnSpan(NamedTuple):
    """A candidate and what its nulls capture."""

    number: int
    kept: bool
    says: str  # on hover
    address: str
    energy: float | None
    nulls: dict[str, float | None]  # {name: mean}


class TestedSeed(NamedTuple):
    """What a span found without a seed captures of it, and what every null does: (mean, 99 % quantile)."""

    seed: int
    energy: float | None
    nulls: dict[str, tuple[float | None, float | None]]


class PairCell(NamedTuple):
    """Energy that one seed's members capture of another seed."""

    seed: int
    other: int
    energy: float | None
    rotated_high: float | None
    overlap: float | None


class TiledFeature(NamedTuple):
    """A member on the first two principal directions of its span."""

    seed: int
    feature: int
    x: float
    y: float
    energy: float
    address: str


def captured_beside_nulls(spans: Sequence[DrawnSpan], n: int, title: str) -> Figure:
    """A column per candidate, of `n`: its captured energy, filled where it is kept, and the mean of every null."""
    rows = [f"#{span.number}" for span in spans]
    data: list[dict[str, Any]] = []
    for name, (label, symbol, _) in NULLS.items():
        some = [(row, span.nulls[name]) for row, span in zip(rows, spans, strict=True) if span.nulls[name] is not None]
        if some:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": label, "y": [value for _, value in some],
                    "x": [row for row, _ in some],
                    "marker": {"color": "@soft", "symbol": symbol, "size": 8, "line": {"color": "@soft", "width": 1.2}},
                    "hovertemplate": f"%{{x}}: {label} capture %{{y:.1%}} on average<extra></extra>",
                }
            )  # fmt: skip
    for kept in (False, True):
        mine = [
            (row, span) for row, span in zip(rows, spans, strict=True) if span.kept == kept and span.energy is not None
        ]
        if mine:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": "kept" if kept else "unexplained",
                    "y": [span.energy for _, span in mine], "x": [row for row, _ in mine],
                    "marker": {"color": "@accent", "symbol": "circle" if kept else "circle-open", "size": 11,
                               "line": {"color": "@accent", "width": 1.8}},
                    "customdata": [span.address for _, span in mine],
                    "text": [span.says for _, span in mine],
                    "hovertemplate": "%{x}: %{y:.1%} captured<br>%{text}<extra></extra>",
                }
            )  # fmt: skip
    drawn = f"The first {len(spans)} of {n:,} candidates" if n > len(spans) else f"n = {counted(n, 'candidate')}"
    unknown = sum(span.energy is None for span in spans)
    return Figure(
        "spans-captured",
        title,
        f"{drawn}. Circles: energy of a seed’s features that the span, as found without that seed, captures, mean over seeds; "
        "filled where it is kept. Grey: what each null captures, mean over draws. Kept is what lies above the nulls’ whole spread, "
        f"not above their means alone. Click a circle for its span."
        + (f" {unknown} without a circle {'was' if unknown == 1 else 'were'} never found again." if unknown else ""),
        {
            "data": data,
            "layout": layout(
                "candidate", "captured energy", showlegend=True, legend=_LEGEND, yaxis={"range": [0, 1.04], "tickformat": ".0%"},
                xaxis={"type": "category", "categoryorder": "array", "categoryarray": rows},
            ),
        },
        ("candidate", "kept", Heading("captured", "span_energy"),
         *(Heading(label, key) for label, _, key in NULLS.values())),
        tuple(
            (f"#{span.number}", "kept" if span.kept else "no", *map(_share, (span.energy, *(span.nulls[n] for n in NULLS))))
            for span in spans
        ),
    )  # fmt: skip


def seeds_beside_nulls(rows: Sequence[TestedSeed], title: str) -> Figure:
    """A row per seed: what the span found without it captures of it, beside every null from its mean to its 99 % quantile."""
    names = [f"seed {row.seed}" for row in rows]
    ticks = list(range(0, len(names), math.ceil(len(names) / MOST_NAMED)))
    data: list[dict[str, Any]] = []
    for at, (name, (label, symbol, _)) in enumerate(NULLS.items()):
        some = [
            (y, mean, high)
            for y, row in enumerate(rows)
            for mean, high in [row.nulls[name]]
            if mean is not None and high is not None
        ]
        if some:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": label, "x": [mean for _, mean, _ in some],
                    "y": [y + 0.16 * (at - 1.5) for y, _, _ in some],
                    "marker": {"color": "@soft", "symbol": symbol, "size": 8, "line": {"color": "@soft", "width": 1.2}},
                    "error_x": {"type": "data", "symmetric": False, "array": [max(high - mean, 0) for _, mean, high in some],
                                "arrayminus": [0 for _ in some], "color": "@soft", "thickness": 1.2, "width": 3},
                    "text": [f"{names[y]}: {label}, 99 % of draws below {percent(high)}" for y, _, high in some],
                    "hovertemplate": "%{text}<br>mean %{x:.1%}<extra></extra>",
                }
            )  # fmt: skip
    known = [(y, row.energy) for y, row in enumerate(rows) if row.energy is not None]
    data.append(
        {
            "type": "scatter", "mode": "markers", "name": "captured", "x": [energy for _, energy in known],
            "y": [y for y, _ in known], "marker": {"color": "@accent", "size": 11},
            "text": [names[y] for y, _ in known], "hovertemplate": "%{text}: %{x:.1%} captured<extra></extra>",
        }
    )  # fmt: skip
    lost = len(rows) - len(known)
    return Figure(
        "span-seeds",
        title,
        f"n = {len(rows)} seeds. Circle: energy of the seed’s own features that the span, as found without this seed, captures. "
        "Grey: each null from its mean to the 99 % quantile of its draws, of this seed and span alone."
        + (f" {lost} of them show nothing: without each of these the span is not found again." if lost else ""),
        {
            "data": data,
            "layout": layout(
                "captured energy", "", showlegend=True, legend=_LEGEND, xaxis={"range": [0, 1.04], "tickformat": ".0%"},
                yaxis={"tickvals": ticks, "ticktext": [names[y] for y in ticks], "range": [len(names) - 0.5, -0.5],
                       "automargin": True, "title": {"text": ""}, "zeroline": False},
            ),
        },
        ("seed", Heading("captured", "span_seed_energy"),
         *(Heading(f"{label}: {of}", "span_null_high" if of == "99 %" else key)
           for label, _, key in NULLS.values() for of in ("mean", "99 %"))),
        tuple(
            (row.seed, _share(row.energy), *(_share(value) for name in NULLS for value in row.nulls[name])) for row in rows
        ),
    )  # fmt: skip


def span_pairs(cells: Sequence[PairCell], seeds: Sequence[int], title: str) -> Figure:
    """Energy that the row seed's members capture of the column seed; the diagonal is empty."""
    at = {(cell.seed, cell.other): cell for cell in cells}
    energies = [[(at[a, b].energy if (a, b) in at else None) for b in seeds] for a in seeds]
    known = [value for row in energies for value in row if value is not None]
    names, few = [str(seed) for seed in seeds], len(seeds) <= MOST_NAMED
    says = [[_cell_says(at.get((a, b))) for b in seeds] for a in seeds]
    return Figure(
        "span-pairs",
        title,
        "Mean squared cosine of the column seed’s features with the span of the row seed’s members alone, found without the column "
        f"seed. Empty: not found again without it, or no members. n = {len(known)} ordered pairs"
        + (f", mean {percent(fmean(known))}." if known else "."),
        {
            "data": [
                {
                    "type": "heatmap", "x": names, "y": names, "z": [[_rounded(v) for v in row] for row in energies], "zmin": 0,
                    "zmax": max([*known, 0.01]), "xgap": 1, "ygap": 1, "colorscale": SEQUENTIAL, "showscale": True,
                    "hoverongaps": False, "textfont": {"color": "@ink"}, "customdata": says,
                    "text": [["" if v is None else f"{100 * v:.0f}" for v in row] for row in energies] if few else None,
                    "texttemplate": "%{text}" if few else None, "colorbar": {"tickformat": ".0%", "thickness": 12},
                    "hovertemplate": "seed %{y}’s members capture %{z:.1%} of seed %{x}<br>%{customdata}<extra></extra>",
                }
            ],
            "layout": layout(
                "measured on seed", "members of seed", xaxis={"type": "category", "showgrid": False, "constrain": "domain"},
                yaxis={"type": "category", "autorange": "reversed", "showgrid": False, "scaleanchor": "x", "constrain": "domain"},
            ),
        },
        (Heading("members of", "seed"), Heading("measured on", "seed"), Heading("captured", "span_pair_energy"),
         Heading("rotated, 99 %", "span_null_high"), Heading("overlap", "span_pair_overlap")),
        tuple(
            (cell.seed, cell.other, *map(_share, (cell.energy, cell.rotated_high, cell.overlap))) for cell in cells
        ),
    )  # fmt: skip


def span_tiles(features: Sequence[TiledFeature], rank: int, title: str) -> Figure:
    """Members of every seed on the span's first two principal directions, in colour and sign of their seed."""
    data: list[dict[str, Any]] = []
    circle = [2 * math.pi * step / 72 for step in range(73)]
    data.append(
        {
            "type": "scatter", "mode": "lines", "x": [math.cos(t) for t in circle], "y": [math.sin(t) for t in circle],
            "line": {"color": "@track", "width": 1}, "hoverinfo": "skip", "showlegend": False, "name": "length 1",
        }
    )  # fmt: skip
    seeds = sorted({feature.seed for feature in features})
    for at, seed in enumerate(seeds):
        mine = [feature for feature in features if feature.seed == seed]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": f"seed {seed}", "x": [f.x for f in mine], "y": [f.y for f in mine],
                "marker": {"color": f"@seed{at % 8}", "symbol": _SIGNS[(at + at // 8) % len(_SIGNS)], "size": 9, "opacity": 0.85},
                "customdata": [f.address for f in mine],
                "text": [f"seed {f.seed} #{f.feature}: {percent(f.energy)} in the span" for f in mine],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )  # fmt: skip
    ends = {"range": [-1.06, 1.06], "zeroline": True}
    return Figure(
        "span-tiles",
        title,
        f"n = {len(features):,} members, each the projection of its unit decoder row on the span’s first two of {rank} principal "
        "directions; the circle is length 1. Where seeds tile a span their own way, colours mix but points do not coincide. "
        "Click a point for its feature.",
        {
            "data": data,
            "layout": layout(
                "first direction", "second direction", showlegend=True, legend=_LEGEND, xaxis=ends | {"constrain": "domain"},
                yaxis=ends | {"scaleanchor": "x", "constrain": "domain"},
            ),
        },
        ("seed", Heading("feature", "feature"), Heading("first", "span_place"), Heading("second", "span_place"),
         Heading("in the span", "span_feature_energy")),
        tuple((f.seed, f"#{f.feature}", f"{f.x:.3f}", f"{f.y:.3f}", percent(f.energy)) for f in features),
    )  # fmt: skip


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _cell_says(cell: PairCell | None) -> str:
    if cell is None or cell.energy is None:
        return ""
    null = (
        f"a rotated dictionary: 99 % of draws below {percent(cell.rotated_high)}"
        if cell.rotated_high is not None
        else ""
    )
    return null + (f"; the two spans overlap by {percent(cell.overlap)}" if cell.overlap is not None else "")
