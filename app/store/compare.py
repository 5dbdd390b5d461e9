"""Stable beside unstable features: metrics by bucket with effect sizes, trigger classes, and a metric against stability."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from seedscope.app.store.database import Database
from seedscope.app.store.sampling import fixed_sample
from seedscope.app.store.table import FeatureQuery, FeatureTable
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.stability import BUCKETS

JUDGED = BUCKETS[:3]  # a dead feature has nothing to compare
COMPARED_ROWS = 10_000  # features that quartiles and effect sizes are computed from
MOST_POINTS = 20_000  # drawn one by one; more are counted in cells
N_DRAWS = 200
_FEWEST_MEMBERS = 3  # that an interval over members means anything for
_BINS = 40


class Metric(NamedTuple):
    """A number that every feature has once its analysis was computed."""

    column: str
    words: str
    unit: str
    analysis: str | None  # of schema.ANALYSES; None: the decoder alone says it


METRICS = {
    "density": Metric("density", "density", "share of tokens", "activity"),
    "entropy": Metric("token_entropy", "token-type entropy", "bits", "activity"),
    "top_share": Metric("top_token_share", "share of the top token type", "share of firings", "activity"),
    "worth_ev": Metric("worth_ev", "marginal worth", "explained variance", "ablate"),
    "worth_loss": Metric("worth_loss", "marginal worth", "nats per token", "loss"),
    "norm": Metric("decoder_norm", "decoder norm", "", None),
    "max": Metric("max_activation", "max activation", "", "activity"),
}


@dataclass(frozen=True)
class Quartiles:
    """A metric in one bucket; without features all but n are None."""

    n: int
    low: float | None
    median: float | None
    high: float | None


@dataclass(frozen=True)
class MetricLine:
    """A metric in the three buckets, and P(stable > unstable) + P(equal) / 2 with its 95 % interval."""

    metric: str
    words: str
    unit: str
    buckets: dict[str, Quartiles]
    auc: float | None  # None where a bucket is empty
    auc_low: float | None  # None with fewer than three members
    auc_high: float | None


@dataclass(frozen=True)
class TriggerLine:
    """A trigger class: features per bucket, their share of it, and share among unstable / share among stable ones."""

    trigger: str
    counts: dict[str, int]
    shares: dict[str, float]
    ratio: float | None  # None where no stable feature is of the class
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True)
class BucketComparison:
    """What sets the buckets of an ensemble apart; triggers are counted over all features that fire."""

    n_features: int
    n_compared: int  # that the metrics are computed from: all of them, or a fixed random choice
    metrics: list[MetricLine]
    triggers: list[TriggerLine] | None


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
        return [name for name, m in METRICS.items() if m.analysis is None or self._store.has(ensemble, m.analysis)]

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
            lines.append(_metric_line(name, values, bucket, member, len(seeds)))
        # One scan for all that is counted.
        counted = table.select(
            f"SELECT seed, bucket, CASE WHEN n_active > 0 THEN trigger END AS class, count(*) FROM filtered "
            f"WHERE bucket < {len(JUDGED)} GROUP BY ALL"
        )
        triggers = _trigger_lines(counted, seeds) if self._store.has(query.ensemble, "activity") else None
        return BucketComparison(sum(n for *_, n in counted), int((bucket < len(JUDGED)).sum()), lines, triggers)

    def _measure_range(self, ensemble: str, column: str, count_dead: bool) -> tuple[float | None, ...]:
        """A metric's lowest half percent of what is above 0, largest, smallest above 0, and smallest; the same for any theta."""
        dead = "" if count_dead else "AND dead IS NOT TRUE"
        sql = (
            f"SELECT approx_quantile({column}, 0.005) FILTER ({column} > 0), max({column}), min({column}) FILTER ({column} > 0), "
            f"min({column}) FROM Feature WHERE ensemble = ? {dead}"
        )
        return self._store.fetch(sql, [ensemble])[0]

    def _scatter(self, query: FeatureQuery, metric: str, filtered: FeatureQuery) -> Scatter:
        """A metric against stability over what `query` finds and judges, with those marked that `filtered` finds too."""
        table, column = FeatureTable(self._store, query), METRICS[metric].column
        where, parameters = _marks(filtered)
        judged = f"bucket < {len(JUDGED)} AND {column} IS NOT NULL"
        low, high, positive, least = self._range(query.ensemble, column, query.dead == "count")
        is_log = positive is not None and high / max(low, positive) >= 100
        floor = 10.0 ** math.floor(math.log10(max(low, positive))) if is_log else -math.inf
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
            cells = self._cells(table, column, where, parameters, judged, floor if is_log else None, (least, high))
        marked = n_chosen if where != "true" else None
        return Scatter(metric, n, marked, is_log, floor, n_floored, points, cells)

    def _cells(
        self, table: FeatureTable, column: str, where: str, parameters: dict, judged: str, floor: float | None,
        span: tuple[float, float],
    ) -> CountedCells:  # fmt: skip
        low, high = span
        if floor is None:
            at, first, last = column, low, max(high, low + 1e-6)
        else:
            at, first, last = f"log10(greatest({column}, $floor))", math.log10(floor), math.log10(high)
        given = {"first": first, "step": (last - first) / _BINS, "floor": floor}
        rows = table.select(
            f"SELECT n_matched, least({_BINS - 1}, floor(({at} - $first) / $step))::INTEGER AS bin, count(*), "
            f"count(*) FILTER ({where}) FROM filtered WHERE {judged} GROUP BY ALL",
            parameters | given,
        )
        n = self._store.ensembles[table.query.ensemble].n_comparisons
        counts, chosen = np.zeros((_BINS, n + 1), np.int64), np.zeros((_BINS, n + 1), np.int64)
        for x, bin, held, marked in rows:
            counts[bin, x], chosen[bin, x] = held, marked
        edges = np.linspace(first, last, _BINS + 1)
        return CountedCells(edges if floor is None else 10**edges, counts, chosen)


def _marks(query: FeatureQuery) -> tuple[str, dict[str, object]]:
    """Condition and parameters for the features that bucket, trigger and density of a query choose."""
    asked = {
        "bucket = $mark_bucket": None if query.bucket is None else BUCKETS.index(query.bucket),
        "trigger = $mark_trigger AND n_active > 0": query.trigger,
        "density >= $mark_min": query.density_min,
        "density <= $mark_max": query.density_max,
    }
    given = {sql: value for sql, value in asked.items() if value is not None}
    where = " AND ".join(f"coalesce({sql}, false)" for sql in given) or "true"
    return where, {sql.split("$")[1].split()[0]: value for sql, value in given.items()}


def _trigger_lines(counted: list[tuple[int, int, str | None, int]], seeds: list[int]) -> list[TriggerLine]:
    counts = np.zeros((len(seeds), len(JUDGED), len(TRIGGERS)), np.int64)
    for seed, bucket, trigger, n in counted:
        if trigger is not None:
            counts[seeds.index(seed), bucket, TRIGGERS.index(trigger)] = n
    drawn = np.tensordot(_draw_members(len(seeds)), counts, 1)
    total, ratio, ratios = counts.sum(0), _ratio(counts.sum(0)), _ratio(drawn)
    size = np.maximum(total.sum(1), 1)
    return [
        TriggerLine(
            trigger,
            {bucket: int(total[b, t]) for b, bucket in enumerate(JUDGED)},
            {bucket: float(total[b, t] / size[b]) for b, bucket in enumerate(JUDGED)},
            _finite(ratio[t]),
            *_interval(ratios[:, t], len(seeds)),
        )
        for t, trigger in enumerate(TRIGGERS)
    ]


def _metric_line(name: str, values: np.ndarray, bucket: np.ndarray, member: np.ndarray, n_members: int) -> MetricLine:
    known = ~np.isnan(values)
    of = {b: known & (bucket == i) for i, b in enumerate(JUDGED)}
    stable, unstable = of["stable"], of["unstable"]
    wins, pairs = _wins(values[stable], member[stable], values[unstable], member[unstable], n_members)
    auc, low, high = None, None, None
    if pairs.sum():
        drawn = _draw_members(n_members)
        auc = float(wins.sum() / pairs.sum())
        total = ((drawn @ pairs) * drawn).sum(1)
        held = total > 0  # a draw may hold members without a stable feature
        low, high = _interval(((drawn @ wins) * drawn).sum(1)[held] / total[held], n_members)
    return MetricLine(
        name, METRICS[name].words, METRICS[name].unit, {b: _quartiles(values[i]) for b, i in of.items()}, auc, low, high
    )


def _wins(
    a: np.ndarray, member_a: np.ndarray, b: np.ndarray, member_b: np.ndarray, n_members: int
) -> tuple[np.ndarray, np.ndarray]:
    """(members of a, members of b): pairs in which a's value is larger, ties half; and all pairs.

    A bootstrap over members is then two small products per draw instead of another sort.
    """
    order = np.argsort(b, kind="stable")
    below = np.zeros((len(b) + 1, n_members))  # b's features per member among the smallest
    below[np.arange(1, len(b) + 1), member_b[order]] = 1
    below = below.cumsum(0)
    beaten = (below[np.searchsorted(b[order], a, "left")] + below[np.searchsorted(b[order], a, "right")]) / 2
    wins = np.zeros((n_members, n_members))
    by_member = np.argsort(member_a, kind="stable")
    present, starts = np.unique(member_a[by_member], return_index=True)
    if len(present):
        wins[present] = np.add.reduceat(beaten[by_member], starts)
    return wins, np.outer(np.bincount(member_a, minlength=n_members), np.bincount(member_b, minlength=n_members))


@lru_cache(8)
def _draw_members(n_members: int) -> np.ndarray:
    """(draws, members) how often each member is drawn. Members are the units: their features share a training run."""
    share = np.full(n_members, 1 / n_members)
    return np.random.default_rng(0).multinomial(n_members, share, N_DRAWS).astype(np.float64)


def _interval(draws: np.ndarray, n_members: int) -> tuple[float | None, float | None]:
    """95 % percentile interval; None for an end that is not finite, and with too few members."""
    draws = draws[~np.isnan(draws)]
    if n_members < _FEWEST_MEMBERS or not len(draws):
        return None, None
    low, high = np.quantile(draws, (0.025, 0.975), method="inverted_cdf")  # no arithmetic with infinities
    return _finite(low), _finite(high)


def _ratio(counts: np.ndarray) -> np.ndarray:
    """Share of every class among unstable features over that among stable ones; counts (..., buckets, classes)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = counts / counts.sum(-1, keepdims=True)
        return shares[..., JUDGED.index("unstable"), :] / shares[..., JUDGED.index("stable"), :]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _quartiles(values: np.ndarray) -> Quartiles:
    if not len(values):
        return Quartiles(0, None, None, None)
    return Quartiles(len(values), *(float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))))
