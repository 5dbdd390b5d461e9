"""A table of features to look through in a notebook: bucket filter, sort and pages over the client's rows. Needs anywidget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from seedscope.app.figures.svg_strips import seed_strip
from seedscope.app.formats import shown_on_one_line
from seedscope.app.lens import measure_of
from seedscope.app.store.errors import BadValue
from seedscope.app.store.feature_query import SORTS, FeatureQuery
from seedscope.app.store.study import StudyStore
from seedscope.app.store.table import FeatureRow
from seedscope.engine.contract.stability import BUCKETS, clopper_pearson

SHOWN_TOKENS = 4
_HERE = Path(__file__).parent


class FeatureTableWidget(anywidget.AnyWidget):
    """Features of an ensemble, a page at a time.

    `bucket` (one of the buckets, or None), `sort`, `descending` and `page` (from 0) may be set from either side; `selected` is the
    {"seed", "feature"} of the row that was clicked. The kernel holds the rows: the browser gets one page of them.
    """

    _esm = (_HERE / "feature_table.js").read_text(encoding="utf-8")
    _css = (_HERE / "feature_table.css").read_text(encoding="utf-8")

    bucket = traitlets.Enum([None, *BUCKETS], default_value=None, allow_none=True).tag(sync=True)
    sort = traitlets.Unicode("stability").tag(sync=True)
    descending = traitlets.Bool(True).tag(sync=True)
    page = traitlets.Int(0, min=0).tag(sync=True)
    selected = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)

    title = traitlets.Unicode().tag(sync=True)
    sorts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    counts = traitlets.Dict().tag(sync=True)
    total = traitlets.Int(0).tag(sync=True)
    page_size = traitlets.Int(20).tag(sync=True)

    def __init__(self, store: StudyStore, query: FeatureQuery, *, title: str, page_size: int = 20) -> None:
        self._store, self._filters = store, query
        self._n_comparisons = store.ensembles[query.ensemble].n_comparisons
        n = self._n_comparisons
        self._ends = [ends.tolist() for ends in clopper_pearson(np.arange(n + 1), n)] if n else []
        sorts = [sort for sort in SORTS if sort != "relevance" and self._sorts_by(sort)]
        super().__init__(
            title=title, page_size=page_size, sorts=sorts, sort=query.sort if query.sort in sorts else "stability",
            bucket=query.bucket, descending=query.descending,
        )  # fmt: skip
        self._refresh()
        self.observe(self._from_first_page, ["bucket", "sort", "descending"])
        self.observe(lambda change: self._refresh(), ["page"])

    @traitlets.validate("sort")
    def _known_sort(self, proposal: Any) -> str:
        if self.sorts and proposal["value"] not in self.sorts:
            raise traitlets.TraitError(f"sort is {proposal['value']!r}, expected one of {', '.join(self.sorts)}")
        return str(proposal["value"])

    def _sorts_by(self, sort: str) -> bool:
        """Whether what a sort needs was computed."""
        try:
            self._store.features(self._query(sort=sort, bucket=None, descending=True))
        except BadValue:
            return False
        return True

    def _query(self, **changed: Any) -> FeatureQuery:
        return replace(self._filters, **changed)

    def _from_first_page(self, change: Any) -> None:
        if self.page:
            self.page = 0  # which refreshes
        else:
            self._refresh()

    def _refresh(self) -> None:
        table = self._store.features(self._query(bucket=self.bucket, sort=self.sort, descending=self.descending))
        total = table.count()
        last = max(-(-total // self.page_size) - 1, 0)
        with self.hold_sync():
            if self.page > last:
                self.page = last  # which refreshes again
                return
            start = self.page * self.page_size
            places = table.selection.order.whole()[start : start + self.page_size]
            self.rows = [self._row(line) for line in table.lines(places)]
            self.counts = table.facets()["bucket"]
            self.total = total

    def _row(self, line: FeatureRow) -> dict[str, Any]:
        """A row as the browser draws it; what was not computed is None."""
        n, query = self._n_comparisons, self._filters
        return {
            "seed": line.seed,
            "feature": line.feature,
            "bucket": line.bucket,
            "stability": line.n_matched / n if n else None,
            "low": self._ends[0][line.n_matched] if n else None,
            "high": self._ends[1][line.n_matched] if n else None,
            "n_matched": line.n_matched,
            "n_comparisons": n,
            "density": line.density,
            "tokens": [shown_on_one_line(token) for token in (line.top_tokens or ())[:SHOWN_TOKENS]],
            "explanation": line.explanation,
            "strip": str(seed_strip(line.cosines, query.theta, line.bucket, measure_of(query.rule))) if n else "",
        }
