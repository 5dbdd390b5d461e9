"""Bootstrap over members: how far a number that is computed from an ensemble's features depends on which seeds it has."""

from functools import lru_cache

import numpy as np

N_DRAWS = 200
FEWEST_MEMBERS = 3  # that an interval over members means anything for


@lru_cache(8)
def draw_members(n_members: int) -> np.ndarray:
    """(draws, members) how often each member is drawn. Members are the units: their features share a training run."""
    share = np.full(n_members, 1 / n_members)
    return np.random.default_rng(0).multinomial(n_members, share, N_DRAWS).astype(np.float64)


def interval(draws: np.ndarray, n_members: int) -> tuple[float | None, float | None]:
    """95 % percentile interval; None for an end that is not finite, and with too few members."""
    draws = draws[~np.isnan(draws)]
    if n_members < FEWEST_MEMBERS or not len(draws):
        return None, None
    low, high = np.quantile(draws, (0.025, 0.975), method="inverted_cdf")  # no arithmetic with infinities
    return finite(low), finite(high)


def intervals(draws: np.ndarray, n_members: int) -> list[tuple[float | None, float | None]]:
    """`interval` of every column of (draws, columns), all at once."""
    if n_members < FEWEST_MEMBERS or not len(draws):
        return [(None, None)] * draws.shape[1]
    ordered = np.sort(draws, axis=0)  # NaN last
    n = len(draws) - np.isnan(draws).sum(0)
    columns = np.arange(draws.shape[1])
    low, high = (
        ordered[np.ceil(n * share - 1).clip(0).astype(np.int64), columns] for share in (0.025, 0.975)
    )  # the inverse of the empirical distribution: no arithmetic with infinities
    return [(finite(a), finite(b)) for a, b in zip(low, high, strict=True)]


def finite(value: float) -> float | None:
    """The number; None for NaN and infinities."""
    return float(value) if np.isfinite(value) else None
