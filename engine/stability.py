"""Matches -> p_hat, its uncertainty and its bucket. Plain NumPy and SciPy: the web process uses it too.

p_hat = X / N: X = comparisons with a match (cosine >= theta), N = comparisons [paper A]. Everything but the
cosines is a function of X and N alone, so moving theta or epsilon never matches anything again.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betainc, betaincinv

THETA = 0.7  # paper A
EPSILON = 0.05  # paper A
BUCKETS = ("stable", "middle", "unstable", "dead")
_TOLERANCE = 1e-9  # (1 - 0.05) * 20 is 19.000000000000004 in floating point, and means 19


class Stability(NamedTuple):
    """What N comparisons of which X matched say about a feature's probability of reappearing."""

    p_hat: float  # X / N
    low: float  # 95 % Clopper-Pearson interval
    high: float
    p_stable: float  # P(p >= 1 - epsilon | X, N), Jeffreys prior Beta(1/2, 1/2)
    p_unstable: float  # P(p <= epsilon | X, N)
    bucket: str


class Bounds(NamedTuple):
    """The bucket rule in whole comparisons: stable from `stable` on, unstable up to `unstable`."""

    stable: int
    unstable: int


def bucket_bounds(n_comparisons: int, epsilon: float = EPSILON) -> Bounds:
    """Stable: X / N >= 1 - epsilon; unstable: X / N <= epsilon [paper A], as integers so that rounding never decides.

    Raises ValueError unless 0 <= epsilon < 0.5.
    """
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon is {epsilon}, expected 0 <= epsilon < 0.5")
    return Bounds(
        math.ceil((1 - epsilon) * n_comparisons - _TOLERANCE), math.floor(epsilon * n_comparisons + _TOLERANCE)
    )


def is_match(cosine: np.ndarray | Sequence[float], theta: float = THETA) -> np.ndarray:
    """Whether each best cosine reaches theta, inclusive.

    Compared as float32, as cosines are stored: 0.7 stored and 0.7 asked for are then the same number.
    """
    return np.asarray(cosine, np.float32) >= np.float32(theta)


def count_matches(cosine: np.ndarray | Sequence[float], theta: float = THETA) -> np.ndarray:
    """X: how many of the comparisons on the last axis reach theta, inclusive."""
    return is_match(cosine, theta).sum(-1)


def buckets(n_matched: np.ndarray, n_comparisons: int, dead: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """The bucket name of every feature; dead (never active on the evaluation tokens) comes first."""
    bounds = bucket_bounds(n_comparisons, epsilon)
    return np.select(
        [dead, n_matched >= bounds.stable, n_matched <= bounds.unstable],
        ["dead", "stable", "unstable"],
        default="middle",
    )


def score(n_matched: int, n_comparisons: int, *, dead: bool = False, epsilon: float = EPSILON) -> Stability:
    """p_hat of one feature with its interval, bucket probabilities and bucket; raises ValueError for N < 1."""
    x, n = n_matched, n_comparisons
    if not 0 <= x <= n or n < 1:
        raise ValueError(f"{x} matches in {n} comparisons, expected 0 to N matches and N >= 1")
    low = 0.0 if x == 0 else float(betaincinv(x, n - x + 1, 0.025))
    high = 1.0 if x == n else float(betaincinv(x + 1, n - x, 0.975))
    p_stable = 1 - float(betainc(x + 0.5, n - x + 0.5, 1 - epsilon))
    p_unstable = float(betainc(x + 0.5, n - x + 0.5, epsilon))
    bucket = str(buckets(np.array(x), n, np.array(dead), epsilon))
    return Stability(x / n, low, high, p_stable, p_unstable, bucket)


class Convergence(NamedTuple):
    """How p_hat settles as comparisons are added in random order; arrays over n = 1 .. N."""

    n: np.ndarray
    same_bucket: np.ndarray  # share of features that are already in the bucket they end in
    error: np.ndarray  # mean |p_n - p_N|


def bucket_shares(cosines: np.ndarray, thetas: Sequence[float], epsilon: float = EPSILON) -> dict[str, list[float]]:
    """Share of stable, middle and unstable features at every theta; `cosines` (living features, comparisons)."""
    n_features, n = cosines.shape
    bounds = bucket_bounds(n, epsilon)
    shares: dict[str, list[float]] = {"stable": [], "middle": [], "unstable": []}
    for theta in thetas:
        matched = count_matches(cosines, theta)
        stable, unstable = (matched >= bounds.stable).sum(), (matched <= bounds.unstable).sum()
        counts = {"stable": stable, "middle": n_features - stable - unstable, "unstable": unstable}
        for bucket, count in counts.items():
            shares[bucket].append(float(count / n_features))
    return shares


def convergence(matched: np.ndarray, *, epsilon: float = EPSILON, n_orders: int = 10, seed: int = 0) -> Convergence:
    """What fewer seeds would have said: p_hat and bucket from the first n comparisons, averaged over random orders.

    `matched` (living features, comparisons) bool. At n = N both agree with the whole by definition.
    """
    rng = np.random.default_rng(seed)
    n_features, n = matched.shape
    living = np.zeros(n_features, bool)
    final = matched.sum(1)
    final_bucket = buckets(final, n, living, epsilon)
    same, error = np.zeros(n), np.zeros(n)
    for _ in range(n_orders):
        running = np.zeros(n_features, np.int64)
        for k, column in enumerate(rng.permutation(n)):
            running += matched[:, column]
            same[k] += (buckets(running, k + 1, living, epsilon) == final_bucket).mean()
            error[k] += np.abs(running / (k + 1) - final / n).mean()
    return Convergence(np.arange(1, n + 1), same / n_orders, error / n_orders)
