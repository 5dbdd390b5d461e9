"""Features at every checkpoint by their final bucket: mean stability, cosine, worth and density, and what predicts the bucket."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seedscope.app.findings.precedence import QUANTITIES, Lag, Quantity, Separation, lags, separations
from seedscope.engine.contract.stability import BUCKETS


@dataclass(frozen=True)
class BucketPoint:
    """Features that end in one bucket, at one checkpoint; means over features, spreads are standard deviations over members."""

    bucket: str
    step: int
    tokens: int
    n: int
    stability: float  # matches / comparisons at that step
    stability_spread: float | None  # None for one member
    best_cosine: float
    worth: float | None  # EV lost when one is masked alone; None without activity, as is what follows
    worth_spread: float | None
    density: float | None
    density_spread: float | None


@dataclass(frozen=True)
class FeaturesAlong:
    """What features were along training, by where they end."""

    n: int
    n_all: int  # features of the ensemble: n is a choice of them where it is smaller
    points: list[BucketPoint]
    separations: list[Separation]
    lags: list[Lag]


def features_along(
    steps: Sequence[int], tokens: Sequence[int], bucket: np.ndarray, member: np.ndarray, stability: np.ndarray,
    best_cosine: np.ndarray, worth: np.ndarray, density: np.ndarray, *, n_all: int,
) -> FeaturesAlong:  # fmt: skip
    """Means and comparisons of (features, checkpoints) arrays; `worth` and `density` have no columns where they are unknown.

    `bucket` names the bucket in which each feature ends, `member` its member; `n_all` features were chosen from.
    """
    is_worth_known = worth.shape == best_cosine.shape
    points = [
        BucketPoint(
            name, steps[t], tokens[t], int(own.sum()), *_mean(stability[own, t], member[own]),
            float(best_cosine[own, t].mean()),
            *(_mean(worth[own, t], member[own]) if is_worth_known else (None, None)),
            *(_mean(density[own, t], member[own]) if is_worth_known else (None, None)),
        )
        for name in BUCKETS
        if (own := bucket == name).any()
        for t in range(len(steps))
    ]  # fmt: skip
    alive = bucket != "dead"
    quantities: dict[Quantity, np.ndarray] = {"best cosine": best_cosine}
    if is_worth_known:
        quantities = dict(zip(QUANTITIES, (best_cosine, worth, density), strict=True))
    return FeaturesAlong(
        n=len(bucket),
        n_all=n_all,
        points=points,
        separations=separations(steps, tokens, quantities, bucket, member),
        lags=lags(steps, tokens, worth[alive], best_cosine[alive], member[alive]) if is_worth_known else [],
    )


def _mean(values: np.ndarray, member: np.ndarray) -> tuple[float, float | None]:
    """Mean over features, and the standard deviation of members' means."""
    means = [values[member == m].mean() for m in np.unique(member)]
    return float(values.mean()), float(np.std(means, ddof=1)) if len(means) > 1 else None
