"""Whether worth or stability comes first in training: AUC of each for the final bucket, and lagged partial rank correlations.

Everything is computed within members and then averaged: features of one member share its training. Intervals are 95 %,
Student's t over members; these share comparisons, so that they are somewhat too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

TELLS = 0.75  # AUC from which on a quantity is said to tell
FEWEST = 10  # features of a member that are ranked; with fewer it is left out
NORMAL_95 = 1.959964

Quantity = Literal["best cosine", "worth", "density"]
QUANTITIES: tuple[Quantity, ...] = ("best cosine", "worth", "density")


@dataclass(frozen=True)
class Separation:
    """How well a quantity at one checkpoint tells features that end stable from those that end unstable."""

    step: int
    tokens: int
    quantity: Quantity
    auc: float  # probability that a stable one has more of it; mean over members
    low: float | None  # None for fewer than three members
    high: float | None
    n_members: int
    n_stable: int
    n_unstable: int


@dataclass(frozen=True)
class Lag:
    """What a quantity says of another one's change up to the next checkpoint, by rank within members."""

    step: int
    next_step: int
    tokens: int
    next_tokens: int
    before: Literal["worth", "best cosine"]  # the other one changes
    plain: float  # Spearman's correlation
    partial: (
        float  # the same among features that have equally much of what changes: without it, what is high tends to fall
    )
    low: float | None  # of `partial`, over members
    high: float | None
    null: float  # 95 % of |partial| stay below where features are dealt out at random within members
    n_members: int
    n: int  # features, all members together

    @property
    def is_beyond(self) -> bool:
        """Whether it is larger than chance gives."""
        return abs(self.partial) > self.null


def separations(
    steps: Sequence[int],
    tokens: Sequence[int],
    quantities: dict[Quantity, np.ndarray],
    bucket: np.ndarray,
    member: np.ndarray,
) -> list[Separation]:
    """AUC of stable against unstable for every quantity (features, checkpoints), where members have both."""
    members = [np.flatnonzero(member == m) for m in np.unique(member)]
    groups = [(at[bucket[at] == "stable"], at[bucket[at] == "unstable"]) for at in members]
    groups = [(stable, unstable) for stable, unstable in groups if len(stable) and len(unstable)]
    n_stable, n_unstable = (sum(len(group[i]) for group in groups) for i in (0, 1))
    if not groups:
        return []
    return [
        Separation(
            steps[t], tokens[t], name, *_over_members([_auc(values[a, t], values[b, t]) for a, b in groups]),
            len(groups), n_stable, n_unstable,
        )
        for name, values in quantities.items()
        for t in range(len(steps))
    ]  # fmt: skip


def lags(
    steps: Sequence[int], tokens: Sequence[int], worth: np.ndarray, cosine: np.ndarray, member: np.ndarray
) -> list[Lag]:
    """Both directions at every checkpoint but the last; `worth` and `cosine` are (features, checkpoints)."""
    groups = [at for m in np.unique(member) if len(at := np.flatnonzero(member == m)) >= FEWEST]
    rows = []
    pairs: tuple[tuple[Literal["worth", "best cosine"], np.ndarray, np.ndarray], ...] = (
        ("worth", worth, cosine),
        ("best cosine", cosine, worth),
    )
    for before, leading, changing in pairs if groups else ():
        for t in range(len(steps) - 1):
            plain, partial = zip(
                *(_correlated(leading[at, t], changing[at, t + 1] - changing[at, t], changing[at, t]) for at in groups),
                strict=True,
            )
            # Of any two lists that are dealt out at random the correlation has exactly the variance 1 / (n - 1).
            null = NORMAL_95 * np.sqrt(sum(1 / (len(at) - 2) for at in groups)) / len(groups)
            rows.append(
                Lag(
                    steps[t], steps[t + 1], tokens[t], tokens[t + 1], before, float(np.mean(plain)),
                    *_over_members(partial), float(null), len(groups), sum(map(len, groups)),
                )
            )  # fmt: skip
    return rows


def _over_members(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    mean, n = float(np.mean(values)), len(values)
    if n < 3:
        return mean, None, None
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def _auc(first: np.ndarray, second: np.ndarray) -> float:
    """Probability that one of the first exceeds one of the second, ties counted half."""
    ranks = rankdata(np.concatenate([first, second]))[: len(first)]
    return float((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def _correlated(leading: np.ndarray, change: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of a quantity with a change, and the partial one given what changes as it is now.

    0 where one of them is the same for all.
    """
    x, y, z = (rank - rank.mean() for rank in map(rankdata, (leading, change, now)))
    xy, xz, yz = (_pearson(*pair) for pair in ((x, y), (x, z), (y, z)))
    left = (1 - xz**2) * (1 - yz**2)
    return xy, float((xy - xz * yz) / np.sqrt(left)) if left > 1e-12 else 0.0


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0
