"""Buckets of an ensemble's features, from its parts `match` (best cosines) and `activity` (firings per feature)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seedscope.engine.contract import stability
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Part


class Judged(NamedTuple):
    """The buckets of one member's features."""

    buckets: np.ndarray  # (d_sae,) names out of stability.BUCKETS
    n_active: np.ndarray  # (d_sae,) evaluation tokens that each feature is active on


def judge(plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, match: Part, activity: Part) -> Iterator[Judged]:
    """Yield one Judged per member, in seed order, at the study's theta and epsilon; rows without a direction count as dead."""
    for seed in ensemble.seeds:
        matched = match.read(seed, "cosine", "partner")
        n_active = activity.read(seed, "n_active")["n_active"]
        n_comparisons = matched["partner"].shape[1]
        undirected = (matched["partner"] < 0).all(1) & (n_comparisons > 0)
        n_matched = stability.count_matches(matched["cosine"], plan.theta)
        dead = (n_active == 0) | undirected
        yield Judged(stability.buckets(n_matched, n_comparisons, dead, plan.epsilon), n_active)
