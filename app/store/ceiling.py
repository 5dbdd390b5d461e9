"""How well an anchor's features come back in its comparisons, beside how well the comparisons' own do among themselves."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from seedscope.app.store.database import Database
from seedscope.app.store.table import FeatureQuery
from seedscope.engine.contract.schema import RULE_COLUMN, count_column, theta_index
from seedscope.engine.contract.stability import bucket_bounds


@dataclass(frozen=True)
class StabilityLevel:
    """Stability of some features, each over the same number of comparisons."""

    n_features: int
    mean: float  # of p
    stable: float  # this and the next: share of the features
    unstable: float


@dataclass(frozen=True)
class Ceiling:
    """What matching the recipe is worth at all: the comparisons' level among themselves."""

    anchor: int
    n_comparisons: int  # that both are counted over: one less than there are, for a comparison has that many others
    of_anchor: StabilityLevel
    of_comparisons: StabilityLevel
    means: list[float]  # mean p of each comparison's features, in seed order


def ceiling(store: Database, query: FeatureQuery) -> Ceiling | None:
    """Both levels under a query's rule, theta, epsilon and place of dead features; None for an ensemble without an anchor.

    The anchor's shares are what is to be expected when one of its comparisons, any of them, is left out.
    """
    row = store.ensembles[query.ensemble]
    if row.anchor is None or row.n_comparisons < 2:
        return None
    n = row.n_comparisons - 1
    counts = _counts(store, query, row.anchor)
    bounds = bucket_bounds(n, query.epsilon)

    def level(held: dict[int, float]) -> StabilityLevel:
        total = sum(held.values())
        share = total or 1
        return StabilityLevel(
            round(total),
            sum(x * c for x, c in held.items()) / share / n,
            sum(c for x, c in held.items() if x >= bounds.stable) / share,
            sum(c for x, c in held.items() if x <= bounds.unstable) / share,
        )

    without_one: Counter[int] = Counter()
    among: dict[int, Counter[int]] = {m.seed: Counter() for m in store.members(query.ensemble) if m.seed != row.anchor}
    for seed, x, in_anchor, features in counts:
        if seed == row.anchor:
            without_one[x - 1] += features * x / (n + 1)
            without_one[x] += features * (1 - x / (n + 1))
        else:
            among[seed][x - in_anchor] += features
    without_one = Counter({x: c for x, c in without_one.items() if c})
    together = sum(among.values(), Counter())
    means = [level(held).mean for _, held in sorted(among.items())]
    return Ceiling(row.anchor, n, level(without_one), level(together), means)


def _counts(store: Database, query: FeatureQuery, anchor: int) -> list[tuple[int, int, int, int]]:
    """(seed, matches, whether the anchor is among them, features); of the anchor's own, the third says nothing."""
    index = theta_index(query.theta)
    column = RULE_COLUMN[query.rule]
    n_matched = (
        count_column(query.rule, index)
        if index is not None
        else f"len(list_filter({column}, lambda c: c >= $theta::FLOAT))"
    )
    dead = "" if query.dead == "count" else "AND dead IS NOT TRUE"
    before = sum(member.seed < anchor for member in store.members(query.ensemble))
    # Lists count from 1, in seed order, without the feature's own seed.
    at = f"{column}[CASE WHEN seed > $anchor THEN {before + 1:d} ELSE {before:d} END]"
    parameters: dict[str, Any] = {"ensemble": query.ensemble, "anchor": anchor, "theta": query.theta}
    return store.fetch(
        f"SELECT seed, {n_matched} AS x, coalesce({at} >= $theta::FLOAT, false)::INTEGER AS in_anchor, count(*) FROM Feature "
        f"WHERE ensemble = $ensemble {dead} GROUP BY ALL ORDER BY ALL",
        parameters,
    )
