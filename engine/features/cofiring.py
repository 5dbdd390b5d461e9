"""Whether features of two members fire alike: sums over all evaluation tokens of chosen pairs of features, from sparse firings.

For a pair (i, j) sum_t a_i b_j and the number of tokens on which both fire are all that Pearson's correlation and the Jaccard index
need beside each feature's own sums. Exact: every firing is read, sums are in float64.
"""

from typing import NamedTuple

import numpy as np

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.features.firings import FiringSpool, feature_ranges

AT_ONCE = 2**22  # firings of one member whose own sums are made at once
CONSTANT = 1e-12  # share of a feature's mean square below which its variance is rounding


class Moments(NamedTuple):
    """One member's features over all tokens: float64, (d_sae,) each."""

    total: np.ndarray  # sum_t a_i
    square: np.ndarray  # sum_t a_i^2
    n_active: np.ndarray  # tokens that it fires on


class PairSums(NamedTuple):
    """Of every chosen pair (i, j): arrays (pairs,)."""

    product: np.ndarray  # sum_t a_i b_j, float64
    scaled: np.ndarray  # sum_t s_t^2 a_i b_j with the tokens' scales s; the same array where there are none
    together: np.ndarray  # tokens on which both fire, int64


def moments(firings: FiringSpool, member: int) -> Moments:
    """A member's own sums, range by range of its features."""
    n_active = firings.n_active[member]
    total, square = np.zeros(len(n_active)), np.zeros(len(n_active))
    for features in feature_ranges(n_active, AT_ONCE):
        some = firings.of_features(firings.runs(member), features)
        at, value = some.feature.astype(np.int64) - features.start, some.value.astype(np.float64)
        n = features.stop - features.start
        total[features] = np.bincount(at, weights=value, minlength=n)
        square[features] = np.bincount(at, weights=value**2, minlength=n)
    return Moments(total, square, n_active.astype(np.float64))


def pair_sums(firings: FiringSpool, a: int, b: int, first: np.ndarray, second: np.ndarray) -> PairSums:
    """Sums of the pairs (first, second) of features of members `a` and `b`, `first` ascending.

    A feature of `a` is laid out over all tokens, and read at the tokens of each of its partners: 1 to 4 ns a firing of the partner
    and a few microseconds a pair. Memory: one number per token (two with scales), and the pages of the two members' firings.
    """
    sides = firings.merged(a), firings.merged(b)
    ends_a, ends_b = (np.concatenate([[0], firings.n_active[member].cumsum()]) for member in (a, b))
    scales = firings.scales()
    dense = np.zeros(firings.last_position + 1)
    product, scaled = np.zeros(len(first)), np.zeros(len(first))
    together = np.zeros(len(first), np.int64)
    position_a, value_a, position_b, value_b = sides[0].position, sides[0].value, sides[1].position, sides[1].value
    starts = np.flatnonzero(np.r_[True, np.diff(first) != 0]) if len(first) else np.zeros(0, np.int64)
    stops, touched = np.r_[starts[1:], len(first)], 0
    of_b = list(zip(ends_b[second].tolist(), ends_b[second + 1].tolist(), strict=True))
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        low, high = int(ends_a[first[start]]), int(ends_a[first[start] + 1])
        where = position_a[low:high]
        dense[where] = value_a[low:high]
        for pair in range(start, stop):
            begin, end = of_b[pair]
            there = position_b[begin:end]
            found = dense.take(there)
            value = value_b[begin:end]
            product[pair] = found @ value
            together[pair] = np.count_nonzero(found > 0)
            if scales is not None:
                scaled[pair] = (found * scales.take(there) ** 2) @ value
            touched += end - begin
        dense[where] = 0
        if touched > AT_ONCE:
            stop_if_abandoned()
            firings.give_back(a, b)
            touched = 0
    return PairSums(product, product if scales is None else scaled, together)


def correlation(
    sums: PairSums, a: Moments, b: Moments, first: np.ndarray, second: np.ndarray, n_tokens: int
) -> np.ndarray:
    """Pearson's correlation of the pairs' activations over all tokens, zeros included, -1 to 1.

    0, where it is not defined or says nothing: one of the two never fires or is constant, or they never fire together.
    """
    covariance = sums.product - a.total[first] * b.total[second] / n_tokens
    variances = []
    for side, at in ((a, first), (b, second)):
        variance = side.square[at] - side.total[at] ** 2 / n_tokens
        variances.append(np.where(variance > CONSTANT * side.square[at], variance, 0))
    scale = np.sqrt(variances[0] * variances[1])
    defined = (scale > 0) & (sums.together > 0)
    return np.where(defined, covariance / np.where(defined, scale, 1), 0).clip(-1, 1)


def varies(moments: Moments, n_tokens: int) -> np.ndarray:
    """(d_sae,) features whose activation is not the same on every token."""
    return moments.square - moments.total**2 / n_tokens > CONSTANT * moments.square


def jaccard(together: np.ndarray, n_first: np.ndarray, n_second: np.ndarray) -> np.ndarray:
    """Tokens on which both fire over tokens on which at least one does, 0 to 1; 0 where neither ever fires."""
    return together / np.maximum(n_first + n_second - together, 1)
