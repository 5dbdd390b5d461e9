"""Seed x seed matrices of spans of unstable features: overlap, captured energy, principal angles."""

from collections.abc import Sequence
from statistics import fmean

from seedscope.app.figures.drawing import CellLinks, Figure, Heading, layout
from seedscope.app.formats import percent

MOST_NAMED = 16  # seeds whose cells hold their numbers

Cells = dict[tuple[int, int], float | None]


def overlap_matrix(seeds: Sequence[int], cells: Cells, links: CellLinks, rank: int, d: int) -> Figure:
    """Shared part of two spans; unrelated spans share r/d."""
    mean = _mean(cells)
    return _matrix(
        seeds, cells, links,
        f"At rank {rank:,} two seeds’ spans share {percent(mean, 0)}, unrelated ones {percent(rank / d, 0)}"
        if mean is not None else f"No two seeds’ spans reach rank {rank:,}",
        f"‖VᵀV’‖²/r of the top {rank:,} directions of all unstable rows of two seeds: 100 % is the same span. n = "
        f"{len(seeds)} seeds. Null, unrelated spans: r/d = {percent(rank / d)}.",
        (0, 1), "{:.0f}", 100, ".0%", "spans of seeds %{y} and %{x} share %{z:.1%}", ("@heat0", "@heat1"),
    )  # fmt: skip


def angle_matrix(seeds: Sequence[int], cells: Cells, links: CellLinks, rank: int, unrelated: float) -> Figure:
    """Median principal angle between two spans in degrees; `unrelated` is that of random spans."""
    mean = _mean(cells)
    return _matrix(
        seeds, cells, links,
        f"At rank {rank:,} half of the principal angles lie below {mean:.0f}°, between unrelated spans {unrelated:.0f}°"
        if mean is not None else f"No two seeds’ spans reach rank {rank:,}",
        f"Median of the {rank:,} principal angles between the top {rank:,} directions of all unstable rows of two seeds: "
        f"0° is the same span, 90° orthogonal ones. n = {len(seeds)} seeds. Null, random spans: about {unrelated:.0f}°.",
        (0, 90), "{:.0f}", 1, ",.0f", "spans of seeds %{y} and %{x}: median angle %{z:.1f}°", ("@heat1", "@heat0"),
    )  # fmt: skip


def energy_matrix(seeds: Sequence[int], cells: Cells, links: CellLinks, rank: int, d: int) -> Figure:
    """What each seed's span captures of each other's unstable features; a seed with itself: of its held-out half."""
    mean = _mean(cells)
    return _matrix(
        seeds, cells, links,
        f"At rank {rank:,} a seed’s span captures {percent(mean, 0)} of another’s unstable features on average"
        if mean is not None else f"No seed’s span reaches rank {rank:,}",
        f"Mean squared cosine of the column seed’s unstable features with the row seed’s span, fitted on half of its rows; the "
        f"diagonal on the other half. n = {len(seeds)} seeds. Null, a random subspace: r/d = {percent(rank / d)}.",
        (0, None), "{:.0f}", 100, ".0%", "seed %{y}’s span captures %{z:.1%} of seed %{x}’s unstable features",
        ("@heat0", "@heat1"),
    )  # fmt: skip


def _mean(cells: Cells) -> float | None:
    found = [value for (a, b), value in cells.items() if a != b and value is not None]
    return fmean(found) if found else None


def _matrix(
    seeds: Sequence[int], cells: Cells, links: CellLinks, title: str, reading: str,
    span: tuple[float, float | None], shown: str, scale: float, ticks: str, hover: str, colours: tuple[str, str],
) -> Figure:  # fmt: skip
    names = [str(seed) for seed in seeds]
    z = [[None if (v := cells.get((a, b))) is None else round(v, 4) for b in seeds] for a in seeds]
    few = len(seeds) <= MOST_NAMED
    written = [["–" if v is None else shown.format(scale * v) for v in row] for row in z]
    most = max((v for row in z for v in row if v is not None), default=1)
    return Figure(
        "angles",
        title,
        f"{reading} Click a cell for its pair.",
        {
            "data": [
                {
                    "type": "heatmap", "x": names, "y": names, "z": z, "zmin": span[0],
                    "zmax": max(most, 0.01) if span[1] is None else span[1], "xgap": 1, "ygap": 1,
                    "colorscale": [[0, colours[0]], [1, colours[1]]], "showscale": True,
                    "textfont": {"color": "@ink"}, "hoverongaps": False,
                    "meta": links.meta(),
                    "text": [[t if t != "–" else "" for t in row] for row in written] if few else None,
                    "texttemplate": "%{text}" if few else None, "colorbar": {"tickformat": ticks, "thickness": 12},
                    "hovertemplate": f"{hover}<extra></extra>",
                }
            ],
            "layout": layout(
                "seed", "seed", xaxis={"type": "category", "showgrid": False, "constrain": "domain"},
                yaxis={"type": "category", "autorange": "reversed", "showgrid": False, "scaleanchor": "x", "constrain": "domain"},
            ),
        },
        (Heading("seed", "seed"), *(Heading(name, "span_pair") for name in names)) if few else (),
        tuple((a, *row) for a, row in zip(names, written, strict=True)) if few else (),
    )  # fmt: skip
