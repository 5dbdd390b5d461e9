"""Counts of matches behind an anchor's ceiling: how its features come back, beside its comparisons' among themselves."""

from typing import Any

from seedscope.app.findings.ceiling import Ceiling, judge_ceiling
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.engine.contract.schema import RULE_COLUMN, count_column, theta_index


def ceiling(store: Database, query: FeatureQuery) -> Ceiling | None:
    """Both levels under a query's rule, theta, epsilon and place of dead features; None for an ensemble without an anchor."""
    row = store.ensembles[query.ensemble]
    if row.anchor is None or row.n_comparisons < 2:
        return None
    seeds = [member.seed for member in store.members(query.ensemble)]
    return judge_ceiling(_counts(store, query, row.anchor), row.anchor, seeds, row.n_comparisons, query.epsilon)


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
