"""Which studies hold an SAE's weights, and what each of them says of its features, judged by the study's own θ and ε.

For `/stability/..`, `seedscope.lookup` and the command of that name. Numbers are those of the permalinks; they come from the index,
so that a thousand features cost no more statements than one. What was not computed is None, never 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from seedscope.app.formats import recipe_remark
from seedscope.app.store.errors import BadValue, NotFound
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.missing import Missing
from seedscope.app.store.selection import judge
from seedscope.app.store.studies import Studies
from seedscope.app.store.study import StudyStore
from seedscope.app.store.table import bucket_name
from seedscope.engine.contract.index.layout import DEAD
from seedscope.engine.contract.stability import score
from seedscope.engine.contract.tables.study import Ensemble, Member

MOST_FEATURES = 1000  # that one question may name
CHOSEN_BY = "the most comparisons; among equals the first by names of study and ensemble, and by seed"
JUDGED = ("stable", "middle", "unstable")  # buckets of features that are judged
_BEARING = ("stability", "activity")  # results without which numbers here are None


@dataclass(frozen=True)
class WeightsPlace:
    """One member that has the weights, and how its study judges features."""

    study: str
    ensemble: str
    seed: int
    model: str | None
    hookpoint: str | None
    digest: str  # of the ensemble: its members and its matching settings; the v of permalinks
    n_comparisons: int  # other seeds; 0 of one SAE alone, whose stability is undefined
    shared_start: str  # no, yes, unknown: unless it is no, p is agreement, and not yet stability
    rule: str
    theta: float
    epsilon: float
    null_rate: dict[
        str, float
    ]  # {kind: share of chance comparisons that reach theta}; empty where there is no comparison
    null_p999: dict[str, float]  # {kind: 99.9th percentile of the best cosine by chance}
    remark: str | None  # what p means where one recipe did not make all members
    directions: str | None  # what was matched of transcoders
    missing: list[Missing]  # what numbers that are None need


@dataclass(frozen=True)
class SaeSummary(WeightsPlace):
    """What a study says of all features of the SAE."""

    n_features: int
    n_judged: int  # features that are not dead and have a direction
    n_dead: int | None  # features that never fire or have no direction; None without activity
    n_undirected: int  # decoder rows that are zero or not finite
    counts: dict[str, int | None]  # stable, middle, unstable, together n_judged; None without comparisons
    shares: dict[str, float | None]  # the same as shares of n_judged
    mean_stability: float | None  # over the features judged, as the next
    median_stability: float | None
    address: str  # its features as a table


@dataclass(frozen=True)
class FeatureStability:
    """What a study says of one feature."""

    feature: int
    stability: float | None  # X / N; None, as the next three, without comparisons
    stability_low: float | None  # 95 % Clopper-Pearson interval
    stability_high: float | None
    n_matched: int | None
    bucket: str | None  # stable, middle, unstable or dead; without comparisons dead or None
    has_direction: bool  # False: its decoder row is zero or not finite
    permalink: str


@dataclass(frozen=True)
class HeldFeature(FeatureStability, WeightsPlace):
    """One feature in one place."""


@dataclass(frozen=True)
class HeldFeatures(WeightsPlace):
    """Several features in one place, in the order of the question."""

    features: list[FeatureStability]


@dataclass(frozen=True)
class Holding:
    """A member with the weights, in its opened study."""

    store: StudyStore
    row: Ensemble
    member: Member

    @property
    def query(self) -> FeatureQuery:
        """All features of the ensemble by its own theta and epsilon."""
        return FeatureQuery(self.row.ensemble, self.row.theta, self.row.epsilon)


def places_of(studies: Studies, sae_digest: str) -> list[Holding]:
    """Every member with these weights, the one with the most comparisons first; see CHOSEN_BY.

    Raises NotFound, which names the studies there are.
    """
    found = [Holding(store, *held) for store in studies.all() for held in store.holders(sae_digest)]
    if not found:
        names = ", ".join(studies.names()) or "none yet: run `seedscope demo`"
        raise NotFound("SAE", sae_digest, f"the SAEs of these studies: {names}; their pages show each digest")
    return sorted(found, key=lambda at: (-at.row.n_comparisons, at.store.study.study, at.row.ensemble, at.member.seed))


def summarise(place: Holding) -> SaeSummary:
    """What a place says of all features."""
    store, row, member = place.store, place.row, place.member
    counted = [each for each in store.own_counts(row.ensemble) if each[0] == member.seed]
    x = np.array([matched for _, bucket, matched, _ in counted if bucket != "dead"], np.int64)
    n_at = np.array([n for _, bucket, _, n in counted if bucket != "dead"], np.int64)
    n_judged, compared = int(n_at.sum()), row.n_comparisons > 0
    counts = {name: sum(n for _, bucket, _, n in counted if bucket == name) for name in JUDGED}
    p = np.repeat(x, n_at) / row.n_comparisons if compared and n_judged else None
    base = f"/s/{store.study.study}/{row.ensemble}"
    return SaeSummary(
        **_of_place(place),
        n_features=row.d_sae,
        n_judged=n_judged,
        n_dead=row.d_sae - n_judged if store.has(row.ensemble, "activity") else None,
        n_undirected=member.n_undirected,
        counts={name: n if compared else None for name, n in counts.items()},
        shares={name: n / n_judged if compared and n_judged else None for name, n in counts.items()},
        mean_stability=None if p is None else float(p.mean()),
        median_stability=None if p is None else float(np.median(p)),
        address=f"{base}/features?seed={member.seed}&v={row.digest}",
    )


def feature_at(place: Holding, feature: str) -> HeldFeature:
    """What a place says of one feature, by its index as an address has it; raises NotFound with the range of indices."""
    if not re.fullmatch("0|[1-9][0-9]{0,8}", feature) or int(feature) >= place.row.d_sae:
        raise NotFound("feature", feature, f"0 to {place.row.d_sae - 1}")
    (judged,) = _judged(place, [int(feature)])
    return HeldFeature(**_of_place(place), **vars(judged))


def features_at(place: Holding, features: Sequence[int]) -> HeldFeatures:
    """What a place says of several features, in this order, repeats included; raises BadValue for an index out of range."""
    beyond = [feature for feature in features if not 0 <= feature < place.row.d_sae]
    if beyond:
        shown = ", ".join(map(str, beyond[:5])) + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else "")
        raise BadValue("features", shown, f"indices from 0 to {place.row.d_sae - 1}, those of this SAE")
    return HeldFeatures(**_of_place(place), features=_judged(place, features))


def _judged(place: Holding, features: Sequence[int]) -> list[FeatureStability]:
    query, row, seed = place.query, place.row, place.member.seed
    index = place.store.index(row.ensemble)
    rows = index.rows_at(np.full(len(features), seed, np.int64), np.asarray(features, np.int64))
    matched = index.matched_at(query.rule, query.theta, rows)
    buckets = judge(query, row.n_comparisons, matched, index.column("status")[rows] == DEAD)
    directed = index.column("decoder_norm")[rows] > 0
    base = f"/s/{place.store.study.study}/{row.ensemble}/{seed}"
    scored = cache(partial(score, n_comparisons=row.n_comparisons, epsilon=row.epsilon))
    found = []
    for feature, x, code, has_direction in zip(
        features, matched.tolist(), buckets.tolist(), directed.tolist(), strict=True
    ):
        judged = scored(x) if row.n_comparisons else None
        found.append(
            FeatureStability(
                feature=feature,
                stability=judged and judged.p_hat,
                stability_low=judged and judged.low,
                stability_high=judged and judged.high,
                n_matched=x if judged else None,
                bucket=bucket_name(code),
                has_direction=has_direction,
                permalink=f"{base}/{feature}?v={row.digest}",
            )
        )
    return found


def _of_place(place: Holding) -> dict[str, Any]:
    """The fields of WeightsPlace."""
    store, row, member, query = place.store, place.row, place.member, place.query
    lacking = store.missing(row.ensemble)
    return {
        "study": store.study.study,
        "ensemble": row.ensemble,
        "seed": member.seed,
        "model": store.study.model,
        "hookpoint": row.hookpoint,
        "digest": row.digest,
        "n_comparisons": row.n_comparisons,
        "shared_start": row.shared_start,
        "rule": query.rule,
        "theta": query.theta,
        "epsilon": query.epsilon,
        "null_rate": store.null_rates(row.ensemble, query.theta, query.rule),
        "null_p999": store.null_p999(row.ensemble, query.rule),
        "remark": recipe_remark(row.anchor, row.n_comparisons, member.seed),
        "directions": row.directions,
        "missing": [lacking[result] for result in _BEARING if result in lacking],
    }
