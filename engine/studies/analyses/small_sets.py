"""Features put together of a few features of another member: pursuit finds which, factors are fitted on the evaluation tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from seedscope.engine.contract.tables.function import N_SMALL_SET, SUBSTITUTES, FunctionSummary, SmallSet
from seedscope.engine.features.ablation import AblationPass
from seedscope.engine.features.cofiring import pair_sums
from seedscope.engine.features.firings import FiringSpool
from seedscope.engine.features.function_summary import summary_of_sets
from seedscope.engine.features.substitution import set_score
from seedscope.engine.geometry.pursuit import pursuit_residual

N_SETS = 128  # features of a bucket per member, a fixed random sample
SET_BUCKETS = ("stable", "unstable")


class SetMember(NamedTuple):
    """What small sets need of a member."""

    seed: int
    buckets: np.ndarray  # (d_sae,) names
    living: np.ndarray  # (d_sae,)
    worth: np.ndarray  # (d_sae,) what masking each feature adds to the squared error
    directions: Tensor  # (d_sae, d_out) unit decoder rows


def sets_of_pair(
    firings: FiringSpool, gains: AblationPass, a: int, b: int, member: SetMember, other: SetMember
) -> list[SmallSet]:
    """Small sets of features of member `b` for a sample of features of member `a`, with their controls, without ensemble."""
    living = np.flatnonzero(other.living)
    rng = np.random.default_rng((1, a))
    sample = {
        bucket: rng.permutation(np.flatnonzero((member.buckets == bucket) & member.living & (member.worth > 0)))[
            :N_SETS
        ]
        for bucket in SET_BUCKETS
    }
    chosen = np.concatenate(list(sample.values()))
    if not len(chosen) or not len(living):
        return []
    found = pursuit_residual(member.directions[chosen], other.directions[living], N_SMALL_SET)
    supports = [living[atoms[atoms >= 0]] for atoms in found.atoms]
    # The control of each is the support of the next one of the same bucket in the random order.
    ends = np.cumsum([len(each) for each in sample.values()])
    control = np.concatenate([np.roll(part, -1) for part in np.split(np.arange(len(chosen)), ends[:-1])])
    tried = [np.concatenate(pair) for pair in zip(supports, [supports[at] for at in control], strict=True)]
    of_each = np.repeat(chosen, [len(features) for features in tried])
    across = _Products(firings, a, b, member, other, of_each, np.concatenate(tried))
    inside = [support[np.array(np.triu_indices(len(support)))] for support in supports]
    within = _Products(firings, b, b, other, other, *np.concatenate(inside, 1))
    along = gains.along(b, a)
    names = np.repeat(list(sample), [len(each) for each in sample.values()])
    sets = []
    for at, (feature, support) in enumerate(zip(chosen, supports, strict=True)):
        results = []
        for features in (support, supports[control[at]]):
            gain = along[features] + across.of(np.full(len(features), feature), features)
            grid = np.array(np.meshgrid(features, features, indexing="ij")).reshape(2, -1)
            quadratic = within.of(*grid).reshape(len(features), -1)
            results.append(set_score(float(member.worth[feature]), gain, quadratic))
        (score, factors), (control_score, _) = results
        sets.append(
            SmallSet("", member.seed, int(feature), str(names[at]), other.seed, support.tolist(), factors.tolist(),
                     float(found.residual[at, len(support) - 1]), score, control_score)
        )  # fmt: skip
    return sorted(sets, key=lambda each: each.feature)


class _Products:
    """sum_t w_i v_j (d_i . e_j) of chosen pairs, and of the same pairs the other way round where both members are one."""

    def __init__(
        self,
        firings: FiringSpool,
        a: int,
        b: int,
        of_a: SetMember,
        of_b: SetMember,
        first: np.ndarray,
        second: np.ndarray,
    ) -> None:
        self._d_sae, self._same = firings.d_sae, a == b
        self._keys = np.unique(self._key(first, second))
        i, j = np.divmod(self._keys, self._d_sae)
        cosine = (of_a.directions[i] * of_b.directions[j]).sum(-1).double().numpy()
        self._values = pair_sums(firings, a, b, i, j).scaled * cosine

    def _key(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if self._same:
            first, second = np.minimum(first, second), np.maximum(first, second)
        return first.astype(np.int64) * self._d_sae + second

    def of(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The values of some of the chosen pairs."""
        return self._values[np.searchsorted(self._keys, self._key(first, second))]


def summaries_of_sets(ensemble: str, seeds: Sequence[int], sets: list[SmallSet]) -> list[FunctionSummary]:
    """The share of small sets, and of their controls, that take their feature's place, per bucket that any are of."""
    at = {seed: index for index, seed in enumerate(seeds)}
    rows = []
    for bucket in SET_BUCKETS:
        of_bucket = [each for each in sets if each.bucket == bucket]
        for kind, column in (("small_set", "score"), ("small_set_control", "control_score")) if of_bucket else ():
            reached, count = np.zeros((2, len(seeds), len(seeds)))
            for each in of_bucket:
                count[at[each.seed], at[each.other]] += 1
                reached[at[each.seed], at[each.other]] += getattr(each, column) >= SUBSTITUTES
            rows.append(summary_of_sets(ensemble, bucket, kind, reached, count))
    return rows
