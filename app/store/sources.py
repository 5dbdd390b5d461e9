"""What differs between members, cause by cause: ensembles of a study that are alike in all else, and the SAE that all share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from seedscope.app.store.database import Database
from seedscope.app.store.feature_index import FeatureIndex
from seedscope.app.store.pairs import Pairs
from seedscope.engine.contract.index.layout import DEAD
from seedscope.engine.contract.sources import CAUSES, FREE, MODEL, MODELS, PARTS, begins_apart, cause_of
from seedscope.engine.contract.stability import seed_bootstrap_ratio
from seedscope.engine.contract.tables.study import Ensemble


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval from a bootstrap over seeds; None where there are too few seeds to say."""

    value: float
    low: float | None
    high: float | None


class Cause(NamedTuple):
    """One ensemble, and what differs between its members."""

    name: str  # of contract.sources
    ensemble: Ensemble


class ReferenceFeatures(NamedTuple):
    """Living features of the SAE that is a member of every ensemble, and what each cause leaves of them."""

    seed: int
    feature: np.ndarray  # (n,)
    matched: dict[str, np.ndarray]  # {cause: (n,) comparisons with a match}
    comparisons: dict[str, int]  # {cause: how many there are}


class Sources:
    """The ensembles of a study that differ in what differs between their members alone: the largest such group."""

    def __init__(self, store: Database) -> None:
        self._store = store
        groups: dict[str, dict[str, Cause]] = {}
        for row in store.ensembles.values():
            if row.control_of is None and row.anchor is None and row.recipe and row.n_comparisons:
                recipe = json.loads(row.recipe)
                if (name := cause_of(recipe)) is not None:
                    groups.setdefault(_rest(row, recipe), {}).setdefault(name, Cause(name, row))
        largest = max(groups.values(), key=len, default={})
        self.causes = sorted(largest.values(), key=lambda cause: _place(cause.name)) if len(largest) > 1 else []

    def stability(self, cause: Cause, rule: str, theta: float) -> tuple[Interval | None, Interval | None]:
        """Mean p over living features, None where it is not known which live; and over all."""
        name = cause.ensemble.ensemble
        pairs = Pairs(self._store, name, rule).summaries(theta)
        known = self._store.has(name, "activity")
        return (
            _over_pairs([(p.seed, p.other, p.n_matched_living, p.n_living) for p in pairs]) if known else None,
            _over_pairs([(p.seed, p.other, p.n_matched, cause.ensemble.d_sae) for p in pairs]),
        )

    def mcc(self, cause: Cause) -> Interval | None:
        """Mean cosine of the one-to-one matching over pairs of members; None where it was not done."""
        pairs = Pairs(self._store, cause.ensemble.ensemble, "hungarian").summaries(0.0)
        return _over_pairs([(p.seed, p.other, p.mean_cosine, 1) for p in pairs])

    def reference(self, rule: str, theta: float, *, living: bool) -> ReferenceFeatures | None:
        """The member that is the same SAE in every ensemble of a single part, feature by feature; None where there is none.

        Ensembles with other members of that seed, such as those that read other models, are left out.
        """
        digests = [
            {member.sae_digest: member.seed for member in self._store.members(cause.ensemble.ensemble)}
            for cause in self.causes
        ]
        shared = [
            (sum(digest in each for each in digests), -seed, digest) for own in digests for digest, seed in own.items()
        ]
        n, _, digest = max(shared, default=(0, 0, ""))
        holding = [cause for cause, own in zip(self.causes, digests, strict=True) if digest in own]
        if n < 2 or sum(cause.name in PARTS for cause in holding) < 2:
            return None
        seeds = {cause.name: own[digest] for cause, own in zip(self.causes, digests, strict=True) if digest in own}
        keep: np.ndarray | None = None
        matched, comparisons = {}, {}
        for cause in holding:
            index = self._store.index(cause.ensemble.ensemble)
            member = index.seeds.index(seeds[cause.name])
            rows = self._judged(index, member, living=living)
            keep = rows if keep is None else np.intersect1d(keep, rows)
            matched[cause.name] = index.matched(rule, theta)[member * index.d_sae : (member + 1) * index.d_sae]
            comparisons[cause.name] = index.n_comparisons
        feature = keep if keep is not None else np.zeros(0, np.int64)
        counts = {name: counted[feature].astype(np.int64) for name, counted in matched.items()}
        return ReferenceFeatures(seeds[holding[0].name], feature, counts, comparisons)

    def firings(self, cause: Cause, seed: int, features: np.ndarray) -> np.ndarray:
        """(n,) evaluation tokens on which features fire; -1 where that is not known."""
        index = self._store.index(cause.ensemble.ensemble)
        if not index.has("n_active.npy"):
            return np.full(len(features), -1)
        return index.column("n_active")[index.rows_at(np.full(len(features), seed), features)]

    @staticmethod
    def _judged(index: FeatureIndex, member: int, *, living: bool) -> np.ndarray:
        status = index.column("status")[member * index.d_sae : (member + 1) * index.d_sae]
        return np.flatnonzero(status != DEAD) if living else np.arange(index.d_sae)


def _rest(row: Ensemble, recipe: dict[str, Any]) -> str:
    """All that makes an ensemble beside what differs between its members."""
    place = recipe.get("read_at", row.hookpoint)
    own = {name: value for name, value in recipe.items() if name not in (*FREE, MODELS, "read_at")}
    return json.dumps([own, place, row.d_sae], sort_keys=True)


def _place(name: str) -> tuple[int, str]:
    order: Sequence[str] = (*CAUSES, MODEL)
    return (order.index(name) if name in order else len(PARTS), name)


def _over_pairs(pairs: Sequence[tuple[int, int, float, float]]) -> Interval | None:
    """Sum over sum of (seed, other, numerator, denominator), with its interval; None without a denominator."""
    seeds = sorted({seed for seed, *_ in pairs})
    above, below = np.zeros((2, len(seeds), len(seeds)))
    for seed, other, numerator, denominator in pairs:
        at = seeds.index(seed), seeds.index(other)
        above[at], below[at] = numerator, denominator
    if not below.sum():
        return None
    low, high = seed_bootstrap_ratio(above, below) or (None, None)
    return Interval(float(above.sum() / below.sum()), low, high)


def shares_start(cause: Cause) -> bool:
    """Whether its members begin at one random start, so that what they agree on is partly that start."""
    return not begins_apart(json.loads(cause.ensemble.recipe or "{}"))
