"""Company on the map of directions: which share of the nearest points are of other seeds, or of the same bucket, and by chance."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from seedscope.engine.contract.stability import BUCKETS

N_NEAR = 10  # points around one that say in which company it is


class Places(NamedTuple):
    """The features that are drawn, one entry each."""

    seed: np.ndarray
    feature: np.ndarray
    x: np.ndarray
    y: np.ndarray
    bucket: np.ndarray  # index into BUCKETS
    n_matched: np.ndarray
    chosen: np.ndarray  # whether the filter finds it
    token: list[str | None]  # most frequent; None without activity, or where it never fires
    explanation: list[str | None]


@dataclass(frozen=True)
class Company:
    """Around the features of one bucket, of the N_NEAR nearest points of the map; shares beside what chance gives."""

    bucket: str
    n: int
    other_seeds: float
    other_seeds_by_chance: float  # where seeds do not matter
    same_bucket: float
    same_bucket_by_chance: float


def find_company(near: np.ndarray, places: Places, bucket: str) -> Company | None:
    """Whose features stand around those of a bucket; None where the map has none of it, or too few points.

    `near` is `nearest_points` of the places, in their order.
    """
    mine = np.flatnonzero(places.bucket == BUCKETS.index(bucket))
    n = len(places.seed)
    if len(near) != n or not len(mine):
        return None
    _, seeds = np.unique(places.seed, return_inverse=True)
    of_seed = np.bincount(seeds)[seeds[mine]]
    around = near[mine]
    return Company(
        bucket,
        len(mine),
        float((seeds[around] != seeds[mine, None]).mean()),
        float(((n - of_seed) / (n - 1)).mean()),
        float((places.bucket[around] == places.bucket[mine, None]).mean()),
        (len(mine) - 1) / (n - 1),
    )


def nearest_points(points: np.ndarray) -> np.ndarray:
    """(points, N_NEAR) indices of the points nearest to each of (points, 2), in no order; empty where there are no more."""
    if len(points) <= N_NEAR:
        return np.empty((0, N_NEAR), np.int64)
    nearest = KDTree(points).query(points, N_NEAR + 1)[1]
    is_itself = nearest == np.arange(len(points))[:, None]
    is_itself[~is_itself.any(1), -1] = True  # at more than N_NEAR equal points: the farthest goes instead
    return nearest[~is_itself].reshape(len(points), N_NEAR)
