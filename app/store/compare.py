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
from seedscope.app.store.sampling import fixed_sample
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.stability import BUCKETS

COMPARED_ROWS = 10_000  # features that quartiles and effect sizes are computed from
MOST_POINTS = 20_000  # drawn one by one; more are counted in cells
_BINS = 40


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
        self._lines = lru_cache(8)(self._draw_lines)
        self._range = lru_cache(64)(self._measure_range)

    def metrics(self, ensemble: str) -> list[str]:
        """The metrics that an ensemble has."""
        known = [name for name, m in METRICS.items() if m.analysis is None or self._store.has(ensemble, m.analysis)]
        return [name for name in known if name not in OF_TOKENS or self._store.has_tokens(ensemble)]

    def _draw_lines(self, ensemble: str, count_dead: bool) -> list[int]:
        """Row ids of the features that are compared: all where they are few, else a fixed random choice."""
        dead = "" if count_dead else "AND dead IS NOT TRUE"
        sql = f"SELECT rowid FROM Feature WHERE ensemble = $ensemble {dead} {fixed_sample('n_rows')}"
        return [line for (line,) in self._store.fetch(sql, {"ensemble": ensemble, "n_rows": COMPARED_ROWS})]

    def _compare(self, query: FeatureQuery) -> BucketComparison:
        table, names = FeatureTable(self._store, query), self.metrics(query.ensemble)
        columns = ", ".join(METRICS[name].column for name in names)
        # In the order of the keys: ties and sums then fall the same way in every run.
        rows = table.select_arrow(
            f"SELECT seed, bucket, {columns} FROM filtered WHERE line IN (SELECT unnest($lines::BIGINT[])) "
            "ORDER BY seed, feature",
            {"lines": self._lines(query.ensemble, query.dead == "count")},
        )
        seeds = [member.seed for member in self._store.members(query.ensemble)]
        member = np.searchsorted(seeds, rows["seed"].to_numpy())
        bucket = rows["bucket"].to_numpy()
        lines = []
        for name in names:
            values = rows[METRICS[name].column].to_numpy().astype(np.float64)
            if name == "norm":  # norms set to 1 in training differ in the seventh digit, which says nothing
                values = values.round(5)
            lines.append(metric_line(name, values, bucket, member, len(seeds)))
        # One scan for all that is counted.
        counted = table.select(
            f"SELECT seed, bucket, CASE WHEN n_active > 0 THEN trigger END AS class, count(*) FROM filtered "
            f"WHERE bucket < {len(JUDGED)} GROUP BY ALL"
        )
        triggers = trigger_lines(counted, seeds) if self._store.has_tokens(query.ensemble) else None
        return BucketComparison(sum(n for *_, n in counted), int((bucket < len(JUDGED)).sum()), lines, triggers)

    def _measure_range(self, ensemble: str, column: str, count_dead: bool) -> MetricRange:
        """A metric's range; the same for any theta."""
        dead = "" if count_dead else "AND dead IS NOT TRUE"
        sql = (
            f"SELECT approx_quantile({column}, 0.005) FILTER ({column} > 0), max({column}), min({column}) FILTER ({column} > 0), "
            f"min({column}) FROM Feature WHERE ensemble = ? {dead}"
        )
        return MetricRange(*self._store.fetch(sql, [ensemble])[0])

    def _scatter(self, query: FeatureQuery, metric: str, filtered: FeatureQuery) -> Scatter:
        """A metric against stability over what `query` finds and judges, with those marked that `filtered` finds too."""
        table, column = FeatureTable(self._store, query), METRICS[metric].column
        where, parameters = _marks(filtered)
        judged = f"bucket < {len(JUDGED)} AND {column} IS NOT NULL"
        span = self._range(query.ensemble, column, query.dead == "count")
        lowest = None if span.low is None or span.positive is None else max(span.low, span.positive)
        is_log = lowest is not None and span.high / lowest >= 100
        floor = 10.0 ** math.floor(math.log10(lowest)) if lowest is not None and is_log else -math.inf
        n, n_chosen, n_floored = table.select(
            f"SELECT count(*), count(*) FILTER ({where}), count(*) FILTER ({column} < $floor) FROM filtered "
            f"WHERE {judged}",
            parameters | {"floor": floor},
        )[0]
        points = cells = None
        if n <= MOST_POINTS:
            rows = table.select_arrow(
                f"SELECT seed, feature, bucket, n_matched, {column} AS value, ({where}) AS chosen FROM filtered "
                f"WHERE {judged} ORDER BY seed, feature",
                parameters,
            )
            points = JudgedPoints(*(rows[name].to_numpy() for name in JudgedPoints._fields))
        else:
            cells = self._cells(table, column, where, parameters, judged, floor if is_log else None, span)
        marked = n_chosen if where != "true" else None
        return Scatter(metric, n, marked, is_log, floor, n_floored, points, cells)

    def _cells(
        self, table: FeatureTable, column: str, where: str, parameters: dict, judged: str, floor: float | None,
        span: MetricRange,
    ) -> CountedCells:  # fmt: skip
        if floor is None:
            at, first, last = column, span.least, max(span.high, span.least + 1e-6)
        else:
            at, first, last = f"log10(greatest({column}, $floor))", math.log10(floor), math.log10(span.high)
        bins = {"first": first, "step": (last - first) / _BINS, "floor": floor}
        rows = table.select(
            f"SELECT n_matched, least({_BINS - 1}, floor(({at} - $first) / $step))::INTEGER AS bin, count(*), "
            f"count(*) FILTER ({where}) FROM filtered WHERE {judged} GROUP BY ALL",
            parameters | bins,
        )
        n = self._store.ensembles[table.query.ensemble].n_comparisons
        counts, chosen = np.zeros((_BINS, n + 1), np.int64), np.zeros((_BINS, n + 1), np.int64)
        for x, bin, n_features, n_marked in rows:
            counts[bin, x], chosen[bin, x] = n_features, n_marked
        edges = np.linspace(first, last, _BINS + 1)
        return CountedCells(edges if floor is None else 10**edges, counts, chosen)


def _marks(query: FeatureQuery) -> tuple[str, dict[str, object]]:
    """Condition and parameters for the features that bucket, trigger and density of a query choose."""
    conditions = {
        "bucket = $mark_bucket": None if query.bucket is None else BUCKETS.index(query.bucket),
        "trigger = $mark_trigger AND n_active > 0": query.trigger,
        "density >= $mark_min": query.density_min,
        "density <= $mark_max": query.density_max,
    }
    chosen = {sql: value for sql, value in conditions.items() if value is not None}
    where = " AND ".join(f"coalesce({sql}, false)" for sql in chosen) or "true"
    return where, {sql.split("$")[1].split()[0]: value for sql, value in chosen.items()}
