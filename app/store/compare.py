"""What comparisons of buckets read: metric columns, trigger counts, and the points or cells of a scatter."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from seedscope.app.findings.bucket_comparison import (
    JUDGED,
    METRICS,
    OF_TOKENS,
    BucketComparison,
    metric_line,
    trigger_lines,
)
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.selection import Selection
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.index.layout import DEAD
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.stability import BUCKETS

COMPARED_ROWS = 10_000  # features that quartiles and effect sizes are computed from
MOST_POINTS = 20_000  # drawn one by one; more are counted in cells
_BINS = 40
_FLOORED, _NO_VALUE = _BINS, 255  # bins of values below the floor of a log axis, and of no value


class JudgedPoints(NamedTuple):
    """Every judged feature, one entry each."""

    seed: np.ndarray
    feature: np.ndarray
    bucket: np.ndarray  # index into BUCKETS
    n_matched: np.ndarray
    value: np.ndarray
    chosen: np.ndarray  # whether the filter finds it


class CountedCells(NamedTuple):
    """Judged features counted by X and by bins of a metric: (bins, N + 1)."""

    edges: np.ndarray  # (bins + 1,); the outermost bins also hold what lies beyond them
    counts: np.ndarray
    chosen: np.ndarray  # of them, those that the filter finds


class MetricRange(NamedTuple):
    """A metric's values over the features that are compared."""

    low: float | None  # lowest half percent of what is above 0; None where nothing is, as is the next but one
    high: float
    positive: float | None  # smallest above 0
    least: float


class Scatter(NamedTuple):
    """A metric against stability: points where they are few enough, else cells."""

    metric: str
    n: int
    n_chosen: int | None  # None without a filter
    is_log: bool
    floor: float  # on a log axis: what is smaller is drawn here
    n_floored: int
    points: JudgedPoints | None
    cells: CountedCells | None


class Comparisons:
    """The comparisons of one study's ensembles; what was computed last is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.compare = lru_cache(64)(self._compare)
        self.scatter = lru_cache(16)(self._scatter)
        self._range = lru_cache(64)(self._measure_range)

    def metrics(self, ensemble: str) -> list[str]:
        """The metrics that an ensemble has."""
        known = [name for name, m in METRICS.items() if m.analysis is None or self._store.has(ensemble, m.analysis)]
        return [name for name in known if name not in OF_TOKENS or self._store.has_tokens(ensemble)]

    def _compare(self, query: FeatureQuery) -> BucketComparison:
        selection, names = FeatureTable(self._store, query).selection, self.metrics(query.ensemble)
        index = selection.index
        compared = index.sample(COMPARED_ROWS, None if query.dead == "count" else index.column("status") != DEAD)
        if selection.found is not None:
            compared = compared[selection.found[compared]]
        member, bucket = compared // index.d_sae, selection.buckets[compared]
        lines = []
        for name in names:
            values = index.column(METRICS[name].column)[compared].astype(np.float64)
            if name == "norm":  # norms set to 1 in training differ in the seventh digit, which says nothing
                values = values.round(5)
            lines.append(metric_line(name, values, bucket, member, len(index.seeds)))
        counted = _triggers(selection)
        triggers = trigger_lines(counted, index.seeds) if self._store.has_tokens(query.ensemble) else None
        return BucketComparison(sum(n for *_, n in counted), int((bucket < len(JUDGED)).sum()), lines, triggers)

    def _measure_range(self, ensemble: str, column: str, count_dead: bool) -> MetricRange:
        """A metric's range; the same for any theta."""
        index = self._store.index(ensemble)
        values = index.column(column)
        values = values[~np.isnan(values) if count_dead else (index.column("status") != DEAD) & ~np.isnan(values)]
        if not len(values):
            return MetricRange(None, math.nan, None, math.nan)
        above = values[values > 0]
        low, positive = (float(np.quantile(above, 0.005)), float(above.min())) if len(above) else (None, None)
        return MetricRange(low, float(values.max()), positive, float(values.min()))

    def _scatter(self, query: FeatureQuery, metric: str, filtered: FeatureQuery) -> Scatter:
        """A metric against stability over what `query` finds and judges, with those marked that `filtered` finds too."""
        selection, column = FeatureTable(self._store, query).selection, METRICS[metric].column
        index = selection.index
        span = self._range(query.ensemble, column, query.dead == "count")
        lowest = None if span.low is None or span.positive is None else max(span.low, span.positive)
        is_log = lowest is not None and span.high / lowest >= 100
        floor = 10.0 ** math.floor(math.log10(lowest)) if lowest is not None and is_log else -math.inf
        key = ("scatter bins", column, query.dead == "count")
        bins = index.kept(key, lambda: _bins(index.column(column), floor if is_log else None, span))
        judged = (selection.buckets < len(JUDGED)) & (bins < _NO_VALUE)
        if selection.found is not None:
            judged &= selection.found
        n = int(np.count_nonzero(judged))
        if n > MOST_POINTS:
            chosen = _marks(filtered, selection, judged)
            counts, n_floored = _cells(bins, selection, judged)
            marked = counts if chosen is None else _cells(bins, selection, chosen)[0]
            cells = CountedCells(_edges(floor if is_log else None, span), counts, marked)
            return Scatter(
                metric, n, None if chosen is None else int(marked.sum()), is_log, floor, n_floored, None, cells
            )
        rows = np.flatnonzero(judged)
        chosen = _marks(filtered, selection, judged)
        marks = np.ones(n, bool) if chosen is None else chosen[rows]
        values = index.column(column)[rows]
        points = JudgedPoints(
            index.seed_of(rows), rows % index.d_sae, selection.buckets[rows], selection.matched[rows], values, marks
        )
        n_floored = int(np.count_nonzero(values < floor))
        return Scatter(metric, n, None if chosen is None else int(marks.sum()), is_log, floor, n_floored, points, None)


def _triggers(selection: Selection) -> list[tuple[int, int, str | None, int]]:
    """(seed, bucket, trigger of what fires, features) of the features that are judged."""
    index, n_classes = selection.index, len(TRIGGERS) + 1
    classes = np.minimum(selection.of("trigger_class"), len(TRIGGERS))
    keys = selection.buckets * np.uint8(n_classes) + classes
    found, names, counted = selection.found, (*TRIGGERS, None), []
    for member, seed in enumerate(index.seeds):
        here = slice(member * index.d_sae, (member + 1) * index.d_sae)
        counts = np.bincount(keys[here] if found is None else keys[here][found[here]])[: len(JUDGED) * n_classes]
        counted += [
            (seed, int(key // n_classes), names[key % n_classes], int(counts[key])) for key in np.flatnonzero(counts)
        ]
    return counted


def _ends(floor: float | None, span: MetricRange) -> tuple[float, float]:
    """Where the first bin begins and the last one ends; logarithms where `floor` is given."""
    if floor is None:
        return span.least, max(span.high, span.least + 1e-6)
    return math.log10(floor), math.log10(span.high)


def _edges(floor: float | None, span: MetricRange) -> np.ndarray:
    edges = np.linspace(*_ends(floor, span), _BINS + 1)
    return edges if floor is None else 10**edges


def _bins(values: np.ndarray, floor: float | None, span: MetricRange) -> np.ndarray:
    """(rows,) the bin of every value, on a log axis from `floor` on where it is given; the same for any theta."""
    bins = np.full(len(values), _NO_VALUE, np.uint8)
    known = np.flatnonzero(~np.isnan(values))
    of_known = values[known]
    if not len(known) or math.isnan(span.least):
        bins[known] = 0
        return bins
    first, last = _ends(floor, span)
    at = of_known.astype(np.float64) if floor is None else np.log10(np.maximum(of_known, floor))
    bins[known] = np.minimum(_BINS - 1, np.floor((at - first) / ((last - first) / _BINS))).clip(0)
    if floor is not None:
        bins[known[of_known < floor]] = _FLOORED
    return bins


def _cells(bins: np.ndarray, selection: Selection, passes: np.ndarray) -> tuple[np.ndarray, int]:
    """((bins, N + 1) features that pass, by bin and by X; how many lie below the floor): these count in the first bin, too."""
    index, width = selection.index, selection.index.n_comparisons + 1
    counts = np.zeros((_FLOORED + 2, width), np.int64)
    matched = selection.matched
    for member in range(len(index.seeds)):  # one after the other: what is counted then stays in the processor's cache
        rows = slice(member * index.d_sae, (member + 1) * index.d_sae)
        keys = np.where(passes[rows], bins[rows], np.uint8(_FLOORED + 1)).astype(np.int64)
        keys *= width
        keys += matched[rows]
        counts += np.bincount(keys, minlength=counts.size).reshape(counts.shape)
    counts[0] += counts[_FLOORED]
    return counts[:_BINS], int(counts[_FLOORED].sum())


def _marks(query: FeatureQuery, selection: Selection, judged: np.ndarray) -> np.ndarray | None:
    """Which judged rows bucket, trigger and density of a query choose; None where it asks for none of these."""
    index, marks = selection.index, []
    if query.bucket is not None:
        marks.append(selection.buckets == BUCKETS.index(query.bucket))
    if query.trigger is not None:
        marks.append(index.column("trigger_class") == TRIGGERS.index(query.trigger))
    if query.density_min is not None:
        marks.append(index.column("density") >= query.density_min)
    if query.density_max is not None:
        marks.append(index.column("density") <= query.density_max)
    return np.logical_and.reduce([judged, *marks]) if marks else None
