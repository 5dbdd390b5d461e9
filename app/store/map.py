"""The map of decoder directions: coordinates, buckets and text of every feature drawn, and which ones a filter finds."""

from functools import lru_cache

import numpy as np
import pyarrow as pa

from seedscope.app.findings.map_company import Company, Places, find_company, nearest_points
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable


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
        asked_table = FeatureTable(self._store, asked)
        chosen_rows = asked_table.select_arrow("SELECT seed, feature FROM filtered")
        numbers = {name: rows[name].to_numpy() for name in ("seed", "feature", "x", "y", "bucket", "n_matched")}
        seeds = np.unique(numbers["seed"])
        chosen = np.isin(_keys(rows, seeds), _keys(chosen_rows, seeds))
        tokens = self._store.tokens
        words = [None if i is None or i < 0 else tokens[i] for i in rows["token"].to_pylist()]
        return Places(**numbers, chosen=chosen, token=words, explanation=rows["explanation"].to_pylist())

    def company(self, ensemble: str, places: Places, bucket: str) -> Company | None:
        """Whose features stand around those of a bucket; None where the map has none of it, or too few points."""
        return find_company(self._nearest(ensemble), places, bucket)

    def _find_nearest(self, ensemble: str) -> np.ndarray:
        """`nearest_points` in the order of `places`."""
        rows = self._store.arrow(
            "SELECT x, y FROM FeatureSpan WHERE ensemble = $ensemble AND x IS NOT NULL ORDER BY seed, feature",
            {"ensemble": ensemble},
        )
        return nearest_points(np.stack([rows[name].to_numpy() for name in ("x", "y")], 1).astype(np.float32))


def _keys(table: pa.Table, seeds: np.ndarray) -> np.ndarray:
    """One number per feature of an ensemble: its index and the place of its seed among `seeds`, -1 for features of other seeds."""
    seed = table["seed"].to_numpy()
    at = np.searchsorted(seeds, seed)
    known = np.isin(seed, seeds)
    return np.where(known, at.astype(np.int64) << 32 | table["feature"].to_numpy(), -1)
