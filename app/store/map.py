"""The map of decoder directions: coordinates, buckets and text of every feature drawn, and which ones a filter finds."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from seedscope.app.findings.map_company import Company, Places, find_company, nearest_points
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable


class _Drawn(NamedTuple):
    """The features that a map shows, in order of rows."""

    rows: np.ndarray
    at: np.ndarray  # (features, 2)


class Maps:
    """The maps of one study's ensembles; who is near whom is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self._drawn = lru_cache(8)(self._read_drawn)
        self._nearest = lru_cache(8)(self._find_nearest)

    def places(self, judged: FeatureQuery, asked: FeatureQuery) -> Places:
        """Every feature that is drawn, judged by one query; `asked` chooses. In order of seed and index."""
        selection = FeatureTable(self._store, judged).selection
        index, drawn = selection.index, self._drawn(judged.ensemble)
        kept = np.arange(len(drawn.rows)) if selection.found is None else np.flatnonzero(selection.found[drawn.rows])
        rows = drawn.rows[kept]
        wanted = FeatureTable(self._store, asked).selection
        if wanted.candidates is None:
            chosen = np.ones(len(rows), bool) if wanted.found is None else wanted.found[rows]
        else:
            chosen = np.isin(rows, wanted.rows)
        texts, tokens = index.texts(rows, ("top_token_ids", "explanation")), self._store.tokens
        words = [None if not ids or ids[0] < 0 else tokens[ids[0]] for ids in texts["top_token_ids"]]
        return Places(
            seed=index.seed_of(rows), feature=rows % index.d_sae, x=drawn.at[kept, 0], y=drawn.at[kept, 1],
            bucket=selection.buckets[rows], n_matched=selection.matched[rows], chosen=chosen, token=words,
            explanation=texts["explanation"],
        )  # fmt: skip

    def company(self, ensemble: str, places: Places, bucket: str) -> Company | None:
        """Whose features stand around those of a bucket; None where the map has none of it, or too few points."""
        return find_company(self._nearest(ensemble), places, bucket)

    def _find_nearest(self, ensemble: str) -> np.ndarray:
        """`nearest_points` in the order of `places`."""
        return nearest_points(self._drawn(ensemble).at)

    def _read_drawn(self, ensemble: str) -> _Drawn:
        rows = self._store.arrow(
            "SELECT seed, feature, x, y FROM FeatureSpan WHERE ensemble = $ensemble AND x IS NOT NULL ORDER BY seed, feature",
            {"ensemble": ensemble},
        )
        at = np.stack([rows[name].to_numpy() for name in ("x", "y")], 1).astype(np.float32)
        return _Drawn(self._store.index(ensemble).rows_at(rows["seed"], rows["feature"]), at)
