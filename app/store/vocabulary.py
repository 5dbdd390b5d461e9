"""Words of explanations, read for the contrast between those of unstable and of stable features."""

from functools import lru_cache

import numpy as np

from seedscope.app.findings.word_contrast import TOKEN_RULE, Contrast, Terms, contrast, index_terms, rule_kinds
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.index.sampling import fixed_sample
from seedscope.engine.contract.names import words

WORD_ROWS = 50_000  # explained features whose words are compared: all where they are few, else a fixed random choice


class Vocabulary:
    """The words of one study's explanations; what was computed last is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.contrast = lru_cache(32)(self._contrast)
        self._terms = lru_cache(8)(self._read)

    def _read(self, ensemble: str, explainer: str) -> tuple[Terms, Terms | None, int]:
        """Words and, of token rules, kinds of every explained feature that is looked at; and how many are explained."""
        where = "WHERE e.ensemble = $ensemble AND e.explainer = $by AND e.text IS NOT NULL"
        parameters = {"ensemble": ensemble, "by": explainer}
        rows = self._store.fetch(
            f"SELECT seed, feature, text FROM (SELECT seed, feature, text FROM Explanation e {where} "
            f"{fixed_sample('n_rows')}) ORDER BY seed, feature",
            parameters | {"n_rows": WORD_ROWS},
        )
        index = self._store.index(ensemble)
        lines = index.rows_at([seed for seed, *_ in rows], [feature for _, feature, _ in rows]).tolist()
        n_explained = self._store.fetch(f"SELECT count(*) FROM Explanation e {where}", parameters)[0][0]
        terms = index_terms(lines, [words(text) for *_, text in rows])
        kinds = index_terms(lines, [rule_kinds(text) for *_, text in rows]) if explainer == TOKEN_RULE else None
        return terms, kinds, n_explained

    def _contrast(self, query: FeatureQuery, explainer: str) -> Contrast:
        """Words of one explainer's texts of unstable against stable features, as `query` judges them."""
        terms, kinds, n_explained = self._terms(query.ensemble, explainer)
        selection = FeatureTable(self._store, query).selection
        rows = np.asarray(terms.lines, np.int64)
        at = np.arange(len(rows)) if selection.found is None else np.flatnonzero(selection.found[rows])
        rows, index = rows[at], selection.index
        member = rows // index.d_sae
        return contrast(explainer, n_explained, terms, kinds, at, selection.buckets[rows], member, len(index.seeds))
