"""A metric against stability: a point per feature, or cells where there are too many points."""

from typing import Any, NamedTuple

import numpy as np

from seedscope.app.figures.drawing import BUCKET_ROLE, CellLinks, Figure, Heading, layout
from seedscope.engine.contract.stability import BUCKETS

MOST_SVG = 5_000  # points that need no WebGL: some browsers have none, and a picture saved from it is not of lines
_MIXED = 2654435761  # Knuth's multiplicative hash: neighbouring indices land far apart


class Dots(NamedTuple):
    """One entry per feature."""

    seed: np.ndarray
    feature: np.ndarray
    bucket: np.ndarray  # index into BUCKETS
    n_matched: np.ndarray
    value: np.ndarray
    chosen: np.ndarray  # whether the filter finds it


class ScatterCells(NamedTuple):
    """Features counted by bins of the metric and by X: (bins, N + 1)."""

    edges: np.ndarray
    counts: np.ndarray
    chosen: np.ndarray  # of them, those that the filter finds
    links: CellLinks


class Cloud(NamedTuple):
    """What is drawn."""

    n: int
    n_chosen: int | None  # None without a filter
    is_log: bool
    floor: float  # what is smaller is drawn here
    n_floored: int
    drawn: Dots | ScatterCells


def metric_scatter(cloud: Cloud, words: str, unit: str, n_comparisons: int, base: str, query: str) -> Figure:
    """Stability against a metric, buckets by colour, what a filter leaves out in grey; a click opens feature or table.

    Features stand at `base`/seed/feature + `query`.
    """
    x = [i / n_comparisons for i in range(n_comparisons + 1)]
    is_binned, is_share = isinstance(cloud.drawn, ScatterCells), unit.startswith("share ")
    shown = ".3%" if is_share else ".4g"  # of a value, on hover
    if isinstance(cloud.drawn, Dots):
        data = _dots(cloud, cloud.drawn, f"{words} %{{y:{shown}}}", n_comparisons, base, query)
        table = _table_of_points(cloud.drawn, n_comparisons)
        how = (
            f"Each of n = {cloud.n:,} features is a point, moved sideways within 1/N by a hash of its address so that "
            "points do not pile up. Blue: stable, grey: middle, orange: unstable. Click a point for its feature."
        )
    else:
        data = _heat(cloud, cloud.drawn, f"{words} about %{{y:{shown}}}", x)
        table = _table_of_cells(cloud.drawn, x)
        how = (
            f"n = {cloud.n:,} features, counted in cells; darker cells hold more, on a log scale. Click a cell for its "
            "features in the table."
        )
    if cloud.n_chosen is not None:
        how += f" The filter finds {cloud.n_chosen:,}; the others are {'grey' if is_binned else 'pale'}."
    floor = f"{100 * cloud.floor:.10g} %" if is_share else f"{cloud.floor:.12g}"
    if cloud.n_floored:
        how += f" {cloud.n_floored:,} with less than {floor} (zero and negative ones too) are drawn at {floor}."
    axis: dict[str, Any] = {}
    if cloud.is_log:
        powers = [10.0**p for p in range(-12, 7)]
        texts = [f"{100 * power:.10g} %" if is_share else f"{power:.12g}" for power in powers]
        axis = {"type": "log", "tickvals": powers, "ticktext": texts}
        if highest := _highest(cloud.drawn):
            # Said, not left to Plotly: a tick at the end that comes and goes moves the margin, which moves the end.
            low, high = np.log10(cloud.floor), np.log10(highest)
            axis["range"] = [round(float(each), 4) for each in (low - 0.05 * (high - low), high + 0.05 * (high - low))]
    elif is_share:
        axis = {"tickformat": ".0%"}
    label = f"{words}, {'% ' + unit.removeprefix('share ') if is_share else unit}" if unit else words
    return Figure(
        "scatter",
        f"Does stability go with {words}?",
        how,
        {
            "data": data,
            "layout": layout(
                "stability p", label + (", log scale" if cloud.is_log else ""), yaxis=axis, hovermode="closest",
                xaxis={"range": [-0.6 / n_comparisons, 1 + 0.6 / n_comparisons]},
            ),
        },
        (
            Heading("stability p", "stability"), Heading("features", "n_features"),
            Heading(f"median {words}{f', {unit}' if unit else ''}", "bucket_median"),
        ),
        table,
    )  # fmt: skip


def _highest(drawn: Dots | ScatterCells) -> float | None:
    """The largest value that is drawn; None where none is above 0."""
    highest = float(drawn.edges[-1]) if isinstance(drawn, ScatterCells) else float(max(drawn.value, default=0))
    return highest if highest > 0 else None


def jitter(seed: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """A number in [-0.4, 0.4) per feature, always the same."""
    key = seed.astype(np.uint64) * np.uint64(1_000_003) + feature.astype(np.uint64)
    return ((key * np.uint64(_MIXED)) % np.uint64(2**32)).astype(np.float64) / 2**32 * 0.8 - 0.4


def _dots(cloud: Cloud, points: Dots, says: str, n_comparisons: int, base: str, query: str) -> list[dict[str, Any]]:
    x = np.round((points.n_matched + jitter(points.seed, points.feature)) / n_comparisons, 4)
    value = np.maximum(points.value.astype(np.float64), cloud.floor)
    chosen = points.chosen.astype(bool)
    groups = [("not in the filter", "@track", ~chosen)]
    for bucket in ("middle", "unstable", "stable"):  # the few last, so that they lie on top
        groups.append((bucket, BUCKET_ROLE[bucket], chosen & (points.bucket == BUCKETS.index(bucket))))
    return [
        {
            "type": "scatter" if cloud.n <= MOST_SVG else "scattergl", "mode": "markers", "name": name, "x": x[held].tolist(),
            "y": [float(f"{v:.4g}") for v in value[held]], "marker": {"color": role, "size": 5, "opacity": 0.6},
            "customdata": [f"/{s}/{f}" for s, f in zip(points.seed[held], points.feature[held], strict=True)],
            "meta": {"base": base, "query": query},
            "hovertemplate": f"%{{customdata}}: {says} ({name})<extra></extra>",
        }
        for name, role, held in groups
        if held.any()
    ]  # fmt: skip


def _heat(cloud: Cloud, cells: ScatterCells, says: str, x: list[float]) -> list[dict[str, Any]]:
    def layer(counts: np.ndarray, role: str) -> dict[str, Any]:
        return {
            "type": "heatmap", "x": x, "y": [float(f"{edge:.5g}") for edge in cells.edges],
            "z": [[round(float(np.log10(n + 1)), 3) if n else None for n in row] for row in counts], "zmin": 0,
            "colorscale": [[0, "@track"], [1, role]], "showscale": False, "hoverongaps": False, "meta": cells.links.meta(),
            "text": [[f"{n:,}" if n else "" for n in row] for row in counts],
            "hovertemplate": f"p = %{{x:.2f}}, {says}: %{{text}} features<extra></extra>",
        }  # fmt: skip

    if cloud.n_chosen is None:
        return [layer(cells.counts, "@accent")]
    return [layer(cells.counts, "@null"), layer(cells.chosen, "@accent")]


def _table_of_points(points: Dots, n_comparisons: int) -> tuple[tuple[Any, ...], ...]:
    rows = []
    for matched in range(n_comparisons + 1):
        values = points.value[points.n_matched == matched]
        rows.append((f"{matched / n_comparisons:.2f}", len(values), f"{np.median(values):.4g}" if len(values) else "–"))
    return tuple(rows)


def _table_of_cells(cells: ScatterCells, x: list[float]) -> tuple[tuple[Any, ...], ...]:
    rows = []
    for i, p in enumerate(x):
        cumulated = cells.counts[:, i].cumsum()
        bin = int(np.searchsorted(cumulated, cumulated[-1] / 2)) if cumulated[-1] else None
        between = "–" if bin is None else f"{cells.edges[bin]:.3g} to {cells.edges[bin + 1]:.3g}"
        rows.append((f"{p:.2f}", int(cumulated[-1]), between))
    return tuple(rows)
