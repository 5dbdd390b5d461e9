"""Tables on what counterparts do: summaries of buckets, one feature's counterparts, samples of pairs, ranked pairs, downloads."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.tables.function import SUBSTITUTES, FunctionSummary, SmallSet, Substitute, TransportPlan

RANKS = (100, 2_000)  # most similar pairs that substitution is counted among
MOST_RANKED = 5_000_000  # pairs that are sorted for a page; more take seconds
SHOWN_PAIRS = 3_000  # points of the figure
RANKED_KINDS = (
    "argmax",
    "live",
    "hungarian",
    "transport",
    "active",
)  # ways to find a partner; the rest are no such ways
# The kind whose partners a match rule has: those of `mutual` and `both` are partners of these, or none.
KIND_OF_RULE = {
    "argmax": "argmax", "live": "live", "mutual": "argmax", "hungarian": "hungarian", "both": "hungarian",
    "active": "active",
}  # fmt: skip


@dataclass(frozen=True)
class SubstitutingPairs:
    """Of the pairs that a match rule calls most alike, how many substitute."""

    kind: str  # of the partners
    rank: int  # the most similar pairs that are looked at, of both directions; fewer where there are fewer
    n: int
    share: float  # whose raw score reaches SUBSTITUTES


@dataclass(frozen=True)
class TransportReached:
    """How far the plans of optimal transport of an ensemble came."""

    n_plans: int  # pairs of seeds
    epsilon: float  # weight of the plan's entropy beside the cost 1 - cosine
    marginal_gap: float  # largest L1 distance of a plan's marginals from uniform ones, 0 to 2
    share: float  # of its mass that a row sends to its partner, mean over rows and plans, 0 to 1
    most_passes: int  # over all pairs of rows, of any plan


class PairPoint(NamedTuple):
    """One feature and its nearest counterpart in another seed."""

    seed: int
    feature: int
    other: int
    partner: int
    bucket: str
    cosine: float
    correlation: float
    score: float


def read_summaries(store: Database, ensemble: str) -> list[FunctionSummary]:
    """All rows of an ensemble; empty where it was not computed."""
    return store.rows(FunctionSummary, "ensemble = ?", [ensemble])


def read_substitute(store: Database, ensemble: str, rule: str, seed: int, feature: int) -> Substitute | None:
    """What a feature's counterparts under a match rule do; None where it was not computed."""
    where = "ensemble = ? AND kind = ? AND seed = ? AND feature = ?"
    return next(iter(store.rows(Substitute, where, [ensemble, KIND_OF_RULE[rule], seed, feature])), None)


def read_small_set(store: Database, ensemble: str, seed: int, feature: int) -> SmallSet | None:
    """The small set that a feature was put together of; None for one that is not in the sample."""
    where = "ensemble = ? AND seed = ? AND feature = ?"
    return next(iter(store.rows(SmallSet, where, [ensemble, seed, feature])), None)


def read_transport(store: Database, ensemble: str) -> TransportReached | None:
    """How far the plans came that partners of the kind `transport` come from; None where there are none."""
    plans = store.rows(TransportPlan, "ensemble = ?", [ensemble])
    if not plans:
        return None
    return TransportReached(
        n_plans=len(plans),
        epsilon=plans[0].epsilon,
        marginal_gap=max(plan.marginal_gap for plan in plans),
        share=float(np.mean([plan.share for plan in plans])),
        most_passes=max(plan.n_passes for plan in plans),
    )


def count_substituting(store: Database, ensemble: str) -> list[SubstitutingPairs]:
    """How many of the most similar pairs of every rule substitute; empty where there are too many pairs to sort.

    The most similar are those of the largest cosine, and under `active` of the largest correlation.
    """
    row = store.ensembles[ensemble]
    if row.n_members * row.d_sae * row.n_comparisons > MOST_RANKED:
        return []
    counted = []
    kinds = [kind for (kind,) in store.fetch("SELECT DISTINCT kind FROM Substitute WHERE ensemble = ?", [ensemble])]
    for kind in (kind for kind in RANKED_KINDS if kind in kinds):
        by = "correlation" if kind == "active" else "cosine"
        sql = f"""SELECT score FROM (
            SELECT unnest(partners) AS partner, unnest(cosines) AS cosine, unnest(correlations) AS correlation,
                unnest(substitutions) AS score
            FROM Substitute WHERE ensemble = ? AND kind = ? AND len(substitutions) > 0
        ) WHERE partner >= 0 ORDER BY {by} DESC, score LIMIT {max(RANKS):d}"""
        scores = np.array([score for (score,) in store.fetch(sql, [ensemble, kind])])
        for rank in RANKS:
            if len(scores):
                counted.append(
                    SubstitutingPairs(kind, rank, min(rank, len(scores)), float((scores[:rank] >= SUBSTITUTES).mean()))
                )
    return counted


def sample_pairs(store: Database, ensemble: str) -> list[PairPoint]:
    """The first features of the first seed, each with its nearest counterpart in one other seed, the others in turn.

    Judged at the ensemble's own theta and epsilon; features without a defined score are left out. Rows lie together in the store,
    so that it costs the same whatever the ensemble's size.
    """
    row = store.ensembles[ensemble]
    first = store.members(ensemble)[0].seed
    where = "ensemble = ? AND kind = 'argmax' AND seed = ? AND feature < ? AND len(substitutions) > 0"
    found = store.rows(Substitute, where, [ensemble, first, SHOWN_PAIRS])
    others = store.other_seeds(ensemble, first)
    places = [(each.seed, each.feature) for each in found]
    buckets = FeatureTable(store, FeatureQuery(ensemble, row.theta, row.epsilon)).buckets_at(places)
    points = []
    for each, place in zip(found, places, strict=True):
        i, bucket = each.feature % len(others), buckets[place]
        if each.partners[i] >= 0 and bucket in ("stable", "middle", "unstable"):
            points.append(
                PairPoint(
                    each.seed, each.feature, others[i], each.partners[i], bucket, each.cosines[i], each.correlations[i],
                    each.substitutions[i],
                )
            )  # fmt: skip
    return points


def function_table(store: Database, ensemble: str) -> pa.Table:
    """All summaries of an ensemble, one row per bucket and kind."""
    names = ", ".join(field.name for field in fields(FunctionSummary))
    return store.arrow(f"SELECT {names} FROM FunctionSummary WHERE ensemble = ? ORDER BY bucket, kind", [ensemble])
