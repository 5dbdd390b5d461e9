"""The map of decoder directions: where features stand, how they are judged, which ones a filter finds, who is near whom."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from seedscope.app.store.database import Database
from seedscope.app.store.table import FeatureQuery, FeatureTable
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


class Maps:
    """The maps of one study's ensembles; who is near whom is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self._nearest = lru_cache(8)(self._find_nearest)

    def places(self, judged: FeatureQuery, asked: FeatureQuery) -> Places:
        """Every feature that is drawn, judged by one query; `asked` chooses. In order of seed and index."""
        table = FeatureTable(self._store, judged)
        rows = table.select_arrow(
            "SELECT seed, feature, x, y, bucket, n_matched, top_token_ids[1] AS token, explanation FROM "
            "filtered JOIN (SELECT seed, feature, x, y FROM FeatureSpan WHERE ensemble = $ensemble AND x IS NOT NULL) "
            "USING (seed, feature) ORDER BY seed, feature",
        )
        finder = FeatureTable(self._store, asked)
        found = finder.select_arrow("SELECT seed, feature FROM filtered")
        numbers = {name: rows[name].to_numpy() for name in ("seed", "feature", "x", "y", "bucket", "n_matched")}
        chosen = np.isin(_keys(rows), _keys(found))
        tokens = self._store.tokens
        words = [None if i is None or i < 0 else tokens[i] for i in rows["token"].to_pylist()]
        return Places(**numbers, chosen=chosen, token=words, explanation=rows["explanation"].to_pylist())

    def company(self, ensemble: str, places: Places, bucket: str) -> Company | None:
        """Whose features stand around those of a bucket; None where the map has none of it, or too few points."""
        near = self._nearest(ensemble)
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

    def _find_nearest(self, ensemble: str) -> np.ndarray:
        """(points, N_NEAR) in the order of `places`; empty where there are no more points than that."""
        rows = self._store.arrow(
            "SELECT x, y FROM FeatureSpan WHERE ensemble = $ensemble AND x IS NOT NULL ORDER BY seed, feature",
            {"ensemble": ensemble},
        )
        points = np.stack([rows[name].to_numpy() for name in ("x", "y")], 1).astype(np.float32)
        if len(points) <= N_NEAR:
            return np.empty((0, N_NEAR), np.int64)
        nearest = cKDTree(points).query(points, N_NEAR + 1)[1]
        is_itself = nearest == np.arange(len(points))[:, None]
        is_itself[~is_itself.any(1), -1] = True  # at more than N_NEAR equal points: the farthest goes instead
        return nearest[~is_itself].reshape(len(points), N_NEAR)


def _keys(table) -> np.ndarray:
    """One number per feature of an ensemble."""
    return table["seed"].to_numpy().astype(np.int64) << 32 | table["feature"].to_numpy()
