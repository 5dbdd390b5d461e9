"""Which rows of an ensemble's index a query finds, their buckets, and their order: one byte per feature and filter."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from seedscope.app.store.feature_index import FeatureIndex
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.row_order import CountOrder, RowOrder, SortedRows, StoredOrder
from seedscope.app.store.search import search_index
from seedscope.engine.contract.index.layout import DEAD
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.stability import BUCKETS, UNDEFINED, bucket_bounds

BUCKET_NAMES = (*BUCKETS, UNDEFINED)  # by the number that stands for a bucket
SORT_COLUMN = {"density": "n_active", "worth": "worth_ev", "loss": "worth_loss", "max": "max_activation",
               "entropy": "token_entropy", "score": "score", "cofiring": "cofiring",
               "predicted": "predicted"}  # fmt: skip
_TOLERANCE = 1e-9
_FEW = 65_536  # rows that are sorted at once in a few milliseconds


class Hits(NamedTuple):
    """How a search found each candidate."""

    by_token: np.ndarray
    by_explanation: np.ndarray
    relevance: np.ndarray


def judge(query: FeatureQuery, n_comparisons: int, matched: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """Buckets of features as indices into BUCKET_NAMES, from their X and whether they are known to be dead."""
    if n_comparisons:
        bounds = bucket_bounds(n_comparisons, query.epsilon)
        code = np.ones(len(matched), np.uint8)  # middle
        code += (matched <= bounds.unstable).view(np.uint8)
        code -= (matched >= bounds.stable).view(np.uint8)
    else:
        code = np.full(len(matched), BUCKET_NAMES.index(UNDEFINED), np.uint8)
    if query.dead != "count":
        code[dead] = BUCKETS.index("dead")
    return code


class Selection:
    """The rows that a query finds.

    `candidates` are all rows, or those that a search or a list names; every filter is a truth value per candidate.
    """

    def __init__(
        self, index: FeatureIndex, query: FeatureQuery, tokens: Sequence[str], predicted: Callable[[], np.ndarray]
    ) -> None:
        """`predicted()` are the p that a predictor tells, one per row; no file of the index holds them."""
        self.index, self.query, self._predicted = index, query, predicted
        self.candidates: np.ndarray | None = None
        self.hits: Hits | None = None
        self._listed: np.ndarray | None = None  # of each candidate, its 1-based place in the query's list
        if query.listed is not None:
            self._take_listed(query.listed)
        elif query.id is not None:
            self.candidates = np.array([r for s in index.seeds if (r := index.row(s, query.id)) is not None], np.int64)
        if query.q:
            self._take_search(query.q, tokens)

    def _take_listed(self, listed: tuple[str, ...]) -> None:
        places: dict[int, int] = {}  # {row: place}; SEED/FEATURE goes before FEATURE of every seed
        for at, entry in sorted(enumerate(listed, 1), key=lambda each: "/" not in each[1]):
            seed, _, feature = entry.rpartition("/")
            for each in (int(seed),) if seed else self.index.seeds:
                row = self.index.row(each, int(feature))
                if row is not None:
                    places.setdefault(row, at)
        rows = np.array(sorted(places), np.int64)
        self.candidates, self._listed = rows, np.array([places[int(row)] for row in rows], np.int64)

    def _take_search(self, q: str, tokens: Sequence[str]) -> None:
        rows, by_token, by_explanation, firings = search_index(self.index, q, tokens)
        if self.candidates is not None:
            both, of_list, of_search = np.intersect1d(self.candidates, rows, assume_unique=True, return_indices=True)
            self._listed = None if self._listed is None else self._listed[of_list]
            rows, by_token, by_explanation, firings = (
                both,
                by_token[of_search],
                by_explanation[of_search],
                firings[of_search],
            )
        self.candidates = rows
        none = np.zeros(len(rows), bool)
        counts_token = none if self.query.hit == "explanation" else by_token  # then it was not asked for tokens
        n_active, score = self.of("n_active"), self.of("score").astype(np.float64)
        shares = np.where(n_active > 0, firings / np.maximum(n_active, 1), 0.0)
        relevance = np.where(counts_token, shares, np.nan_to_num(score, nan=0.0) - 1)
        self.hits = Hits(by_token, by_explanation, relevance)

    # -- values of candidates ------------------------------------------------------------------------------------

    def column(self, name: str) -> np.ndarray:
        """(rows,) a column of the index, or what is predicted."""
        return self._predicted() if name == "predicted" else self.index.column(name)

    def of(self, column: str) -> np.ndarray:
        """A column of the candidates."""
        values = self.column(column)
        return values if self.candidates is None else values[self.candidates]

    @cached_property
    def matched(self) -> np.ndarray:
        """X of the candidates."""
        if self.candidates is None:
            return self.index.matched(self.query.rule, self.query.theta)
        return self.index.matched_at(self.query.rule, self.query.theta, self.candidates)

    @cached_property
    def buckets(self) -> np.ndarray:
        """The bucket of each candidate, an index into BUCKET_NAMES."""
        if self.candidates is None:
            query = self.query
            key = ("buckets", query.rule, query.theta, query.epsilon, query.dead == "count")
            return self.index.kept(key, self._buckets)
        return self._buckets()

    def _buckets(self) -> np.ndarray:
        return judge(self.query, self.index.n_comparisons, self.matched, self._dead)

    @cached_property
    def _dead(self) -> np.ndarray:
        return self.of("status") == DEAD

    # -- filters -------------------------------------------------------------------------------------------------

    @cached_property
    def _filters(self) -> dict[str, np.ndarray]:
        """{name: whether each candidate passes}; what is not asked for is absent."""
        query, n = self.query, self.index.n_comparisons
        filters: dict[str, np.ndarray] = {}
        if query.seed is not None:
            filters["seed"] = self._of_seed(query.seed)
        if query.bucket is not None:
            filters["bucket"] = self.buckets == BUCKETS.index(query.bucket)
        if query.density_min is not None:
            filters["density_min"] = self.of("density") >= query.density_min
        if query.density_max is not None:
            filters["density_max"] = self.of("density") <= query.density_max
        if query.trigger is not None:
            filters["trigger"] = self.of("trigger_class") == TRIGGERS.index(query.trigger)
        if query.stability_min is not None:
            filters["stability_min"] = self.matched >= math.ceil(query.stability_min * n - _TOLERANCE)
        if query.stability_max is not None:
            filters["stability_max"] = self.matched <= math.floor(query.stability_max * n + _TOLERANCE)
        if query.dead in ("exclude", "only"):
            filters["dead"] = self._dead if query.dead == "only" else ~self._dead
        if query.score_min is not None:  # scores are single: 0.9 as it stands there is a little less than 0.9
            filters["score_min"] = self.of("score") >= np.float32(query.score_min)
        if query.cofire_min is not None:
            filters["cofire_min"] = self.of("cofiring") >= np.float32(query.cofire_min)
        if query.predicted_min is not None:
            filters["predicted_min"] = self.of("predicted") >= np.float32(query.predicted_min)
        if query.predicted_max is not None:
            filters["predicted_max"] = self.of("predicted") <= np.float32(query.predicted_max)
        if self.hits is not None and query.hit is not None:
            filters["hit"] = self.hits.by_token if query.hit == "token" else self.hits.by_explanation
        return filters

    def _of_seed(self, seed: int) -> np.ndarray:
        first = self.index.row(seed, 0)
        begin, end = (0, 0) if first is None else (first, first + self.index.d_sae)
        if self.candidates is not None:
            return (self.candidates >= begin) & (self.candidates < end)
        of_seed = np.zeros(self.index.n_rows, bool)
        of_seed[begin:end] = True
        return of_seed

    def mask(self, *without: str) -> np.ndarray | None:
        """Whether each candidate passes all filters but some; None where nothing is asked."""
        mask: np.ndarray | None = None
        for name, passes in self._filters.items():
            if name not in without:
                mask = passes if mask is None else mask & passes
        return mask

    @cached_property
    def found(self) -> np.ndarray | None:
        """Whether each candidate is found; None where all are."""
        return self.mask()

    @cached_property
    def n_found(self) -> int:
        """Rows that are found."""
        return self.n_candidates if self.found is None else int(np.count_nonzero(self.found))

    @property
    def n_candidates(self) -> int:
        """Rows that filters are asked about."""
        return self.index.n_rows if self.candidates is None else len(self.candidates)

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows that are found, ascending."""
        if self.candidates is None:
            return np.arange(self.index.n_rows) if self.found is None else np.flatnonzero(self.found)
        return self.candidates if self.found is None else self.candidates[self.found]

    def of_found(self, values: np.ndarray) -> np.ndarray:
        """Of values of the candidates those that are found."""
        return values if self.found is None else values[self.found]

    # -- order ---------------------------------------------------------------------------------------------------

    def signed(self, rows: np.ndarray) -> np.ndarray:
        """Of rows that are candidates, what they are sorted by: ascending along the list, infinity where it is missing."""
        name, sign = self.query.sorted_by, -1.0 if self.query.descending else 1.0
        if name == "feature":
            values = rows % self.index.d_sae
        elif name == "stability":
            values = self.index.matched_at(self.query.rule, self.query.theta, rows)
        elif name in ("listed", "relevance"):
            at = np.searchsorted(self.candidates if self.candidates is not None else rows, rows)
            of_candidates = self._listed if name == "listed" else self.hits.relevance if self.hits else None
            if of_candidates is None:
                raise ValueError(f"sorted by {name}, expected a list or a search")
            values = of_candidates[at]
        else:
            column = self.column(SORT_COLUMN[name])
            values = column[rows].astype(np.float64)
            if np.issubdtype(column.dtype, np.integer):
                values[values < 0] = np.nan
        signed = values.astype(np.float64) * sign
        signed[np.isnan(signed)] = np.inf
        return signed + 0.0  # -0.0 and 0.0 are one value

    @cached_property
    def order(self) -> RowOrder:
        """The rows that are found, in the query's order."""
        name, down = self.query.sorted_by, self.query.descending
        if self.candidates is not None or self.n_found <= _FEW or name in ("listed", "relevance", "predicted"):
            return SortedRows(self.rows, self.signed(self.rows))
        index, n = self.index, self.index.n_rows
        if name == "stability":
            return CountOrder(self.matched, index.n_comparisons, self.found, down=down)

        def signed(row: int) -> float:
            return float(self.signed(np.array([row]))[0])

        if name == "feature":
            return StoredOrder(self._rows_by_feature, n, signed, self.found)
        stored = index.order(SORT_COLUMN[name], down=down)
        return StoredOrder(lambda begin, end: stored[begin:end], n, signed, self.found)

    def _rows_by_feature(self, begin: int, end: int) -> np.ndarray:
        feature, member = np.divmod(np.arange(begin, min(end, self.index.n_rows)), len(self.index.seeds))
        if self.query.descending:
            feature = self.index.d_sae - 1 - feature
        return member * self.index.d_sae + feature
