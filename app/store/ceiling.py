"""Counts of matches behind an anchor's ceiling: how its features come back, beside its comparisons' among themselves."""

import numpy as np

from seedscope.app.findings.ceiling import Ceiling, judge_ceiling
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.engine.contract.index.layout import DEAD


def ceiling(store: Database, query: FeatureQuery) -> Ceiling | None:
    """Both levels under a query's rule, theta, epsilon and place of dead features; None for an ensemble without an anchor."""
    row = store.ensembles[query.ensemble]
    if row.anchor is None or row.n_comparisons < 2:
        return None
    seeds = [member.seed for member in store.members(query.ensemble)]
    return judge_ceiling(_counts(store, query, row.anchor), row.anchor, seeds, row.n_comparisons, query.epsilon)


def _counts(store: Database, query: FeatureQuery, anchor: int) -> list[tuple[int, int, int, int]]:
    """(seed, matches, whether the anchor is among them, features); of the anchor's own, the third says nothing."""
    index = store.index(query.ensemble)
    matched, dead = index.matched(query.rule, query.theta), index.column("status") == DEAD
    before = sum(seed < anchor for seed in index.seeds)
    counted = []
    for member, seed in enumerate(index.seeds):
        rows = slice(member * index.d_sae, (member + 1) * index.d_sae)
        judged = slice(None) if query.dead == "count" else ~dead[rows]
        # In seed order, without the feature's own seed; of the anchor's own features any slot will do.
        slot = before if seed > anchor else max(before - 1, 0)
        in_anchor = index.pair_cosines(query.rule, member, slot)[judged] >= np.float32(query.theta)
        counts = np.bincount(matched[rows][judged].astype(np.int64) * 2 + in_anchor)
        counted += [(seed, int(key // 2), int(key % 2), int(counts[key])) for key in np.flatnonzero(counts)]
    return counted
