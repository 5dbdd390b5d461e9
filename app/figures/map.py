"""The map of decoder directions: a point per feature, in the place that t-SNE gave it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import percent
from seedscope.engine.contract.stability import BUCKETS

N_COLOURS = 8  # of seeds; further ones repeat them with another sign
_SYMBOL = {"stable": "circle", "unstable": "diamond", "middle": "circle-open", "dead": "x"}
_SIGNS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "triangle-down", "star")


class Around(NamedTuple):
    """Whose features stand near those of a bucket, as shares beside what chance gives."""

    bucket: str
    n: int
    other_seeds: float
    other_seeds_by_chance: float
    same_bucket: float
    same_bucket_by_chance: float


class MapPoints(NamedTuple):
    """One entry per feature that is drawn."""

    seed: np.ndarray
    feature: np.ndarray
    x: np.ndarray
    y: np.ndarray
    bucket: np.ndarray  # index into BUCKETS
    chosen: np.ndarray  # whether the filter finds it; the others are grey
    says: Sequence[str]  # what else is known of it, in words


def direction_map(
    points: MapPoints,
    around: Sequence[Around],
    *,
    by_seed: bool,
    n_chosen: int | None,
    judged: str,
    near: int,
    base: str,
    query: str,
) -> Figure:
    """Points in the colour and sign of their bucket or seed; features stand at `base`/seed/feature + `query`.

    `n_chosen` is of a filter, None without one; `judged` says by what; `around` is of the `near` nearest points.
    """
    filtered = n_chosen is not None
    groups: list[tuple[str, str, str, np.ndarray]] = []  # name, colour, sign, which
    if filtered:
        groups.append(("not in the filter", "@track", "circle", ~points.chosen))
    if by_seed:
        for at, seed in enumerate(np.unique(points.seed).tolist()):
            sign = _SIGNS[at // N_COLOURS % len(_SIGNS)]
            groups.append((f"seed {seed}", f"@seed{at % N_COLOURS}", sign, points.chosen & (points.seed == seed)))
    else:
        for bucket in ("middle", "unstable", "stable", "dead"):  # the few last, so that they lie on top
            which = points.chosen & (points.bucket == BUCKETS.index(bucket))
            groups.append((bucket, BUCKET_ROLE[bucket], _SYMBOL[bucket], which))
    groups = [group for group in groups if group[-1].any()]
    sign = "colour and sign: seed" if by_seed else "blue dots: stable, grey rings: middle, orange diamonds: unstable"
    found = f" The filter finds {n_chosen:,}; the others are grey." if filtered else ""
    bare = {"visible": False}
    return Figure(
        "map",
        _title(around, near),
        f"n = {len(points.seed):,} features of {len(np.unique(points.seed))} seeds, {judged}; {sign}.{found} How to read: what "
        "several seeds have found lies in one spot; near distances mean something, sizes and places of groups do not. Null: "
        "shares if seeds and buckets were dealt out at random. "
        "Drag a box to zoom in, double-click to get back, click a point for its feature.",
        {
            "data": [_trace(points, *group, base, query) for group in groups],
            "layout": layout(
                "", "", xaxis=bare, yaxis=bare | {"scaleanchor": "x"}, hovermode="closest", showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "constant"},
                margin={"l": 8, "r": 8, "t": 18, "b": 8},
            ),
        },
        (
            "around", Heading("features", "n_features"), Heading(f"other seeds’, of the {near} nearest", "near_other_seeds"),
            Heading("chance", "near_chance"), Heading("of the same bucket", "near_same_bucket"), Heading("chance", "near_chance"),
        ),
        tuple(
            (one.bucket, f"{one.n:,}", *(percent(share) for share in one[2:])) for one in around
        ),
    )  # fmt: skip


def _title(around: Sequence[Around], near: int) -> str:
    """How shared the surroundings of unstable features are, or of whatever there is."""
    if not around:
        return "Where do the seeds’ directions lie?"
    one = around[0]
    return (
        f"Around a{'n' * (one.bucket[0] in 'aeiou')} {one.bucket} feature {percent(one.other_seeds, 0)} of the {near} nearest "
        f"points are other seeds’ (by chance {percent(one.other_seeds_by_chance, 0)}), {percent(one.same_bucket, 0)} {one.bucket} "
        f"(by chance {percent(one.same_bucket_by_chance, 0)})"
    )


def _trace(
    points: MapPoints, name: str, colour: str, sign: str, which: np.ndarray, base: str, query: str
) -> dict[str, Any]:
    at = np.flatnonzero(which)
    grey = name == "not in the filter"
    return {
        "type": "scattergl", "mode": "markers", "name": f"{name} {len(at):,}", "x": _short(points.x[at]), "y": _short(points.y[at]),
        "marker": {"color": colour, "symbol": sign, "size": 4 if grey else 6, "opacity": 0.9 if grey else 0.75},
        "customdata": [f"/{s}/{f}" for s, f in zip(points.seed[at].tolist(), points.feature[at].tolist(), strict=True)],
        "meta": {"base": base, "query": query}, "text": [points.says[i] for i in at.tolist()],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _short(values: np.ndarray) -> list[float]:
    """Two decimals: a place on the map is no measurement, and thousands are sent."""
    return [round(value, 2) for value in values.astype(np.float64).tolist()]
