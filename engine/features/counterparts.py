"""Counterparts beside those of the match rules: by activity among the nearest rows, and the controls of substitution."""

import numpy as np

from seedscope.engine.contract.stability import is_match

DENSITY_REACH = 10  # a control is drawn from this many living features on either side in rank of density
DRAWS = 16  # tries to draw one that is not among the nearest


def runner_up(nearest: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """(d_sae,) the second-nearest row: the first of the `nearest` (d_sae, k) that is not the nearest one, `partner`; -1: none."""
    is_other = (nearest != partner[:, None]) & (nearest >= 0)
    return _taken(nearest, is_other)


def hard_negative(nearest: np.ndarray, cosine: np.ndarray, fires: np.ndarray, theta: float) -> np.ndarray:
    """(d_sae,) the nearest living row below theta among the `nearest` (d_sae, k); -1: none. `fires` is of the comparison."""
    return _taken(nearest, (nearest >= 0) & fires[nearest] & ~is_match(cosine, theta))


def _taken(nearest: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first wanted entry of every row, -1 where there is none."""
    first = nearest[np.arange(len(nearest)), wanted.argmax(1)]
    return np.where(wanted.any(1), first, -1)


def most_alike(nearest: np.ndarray, correlation: np.ndarray, fires: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """(d_sae,) the one of the `nearest` (d_sae, k) whose activation correlates most; ties go to the lowest index, -1: none.

    Only rows that fire (`fires`, of the comparison) are chosen among, and only for features whose activation `varies` (d_sae,).
    """
    order = np.argsort(nearest, axis=1, kind="stable")
    index, alike = np.take_along_axis(nearest, order, 1), np.take_along_axis(correlation, order, 1)
    usable = (index >= 0) & fires[index] & varies[:, None]
    best = np.where(usable, alike, -np.inf).argmax(1)  # the first of equal ones
    return np.where(usable.any(1), index[np.arange(len(index)), best], -1)


def density_control(
    n_active: np.ndarray, others_active: np.ndarray, nearest: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(d_sae,) a random living feature of the comparison of about the same density, not among the `nearest`; -1: none.

    Drawn from those at most DENSITY_REACH places away in rank of density from where the feature itself would stand. None for
    features that never fire.
    """
    living = np.flatnonzero(others_active)
    if not len(living):
        return np.full(len(n_active), -1)
    by_density = living[np.argsort(others_active[living], kind="stable")]
    middle = np.searchsorted(others_active[by_density], n_active)
    places = middle[:, None] + rng.integers(-DENSITY_REACH, DENSITY_REACH + 1, (len(n_active), DRAWS))
    drawn = by_density[places.clip(0, len(by_density) - 1)]
    usable = ~(drawn[:, :, None] == nearest[:, None, :]).any(2) & (n_active > 0)[:, None]
    return _taken(drawn, usable)
