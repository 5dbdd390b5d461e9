"""How an ensemble came to be: its training, agreement from the start on, and its features by where they end."""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.precedence import QUANTITIES, Lag, Separation, lags, separations
from seedscope.app.store.sampling import fixed_sample
from seedscope.engine.contract.stability import BUCKETS, buckets, count_matches
from seedscope.engine.contract.tables import training as training_tables
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.training import (
    AgreementPoint,
    Checkpoint,
    CosineGeometry,
    FeatureAlong,
    TracePoint,
)

N_FEATURES = 40_000  # of an ensemble, that averages are of; of more a fixed random choice
EQUAL_START = 0.01  # distance from which on starts are not one


@dataclass(frozen=True)
class BucketPoint:
    """Features that end in one bucket, at one checkpoint; means over features, spreads are standard deviations over members."""

    bucket: str
    step: int
    tokens: int
    n: int
    stability: float  # matches / comparisons at that step
    stability_spread: float | None  # None for one member
    best_cosine: float
    worth: float | None  # EV lost when one is masked alone; None without activity, as is what follows
    worth_spread: float | None
    density: float | None
    density_spread: float | None


@dataclass(frozen=True)
class Features:
    """What features were along training, by where they end."""

    n: int
    n_all: int  # features of the ensemble: n is a choice of them where it is smaller
    points: list[BucketPoint]
    separations: list[Separation]
    lags: list[Lag]


@dataclass(frozen=True)
class Stabilization:
    """Whether training brought members together, judged by how the measure fell from the start to the end."""

    kind: Literal["shown", "not shown", "shared start"]
    measure: Literal["Hungarian distance", "1 − mean best cosine"]
    start: float
    end: float
    random: float  # of random dictionaries of the same size
    centred_start: float  # the mean direction taken out
    centred_end: float
    live_start: float | None
    live_end: float | None
    fall: float
    n_pairs: int


@dataclass(frozen=True)
class Trajectory:
    """Everything of one ensemble but what its features have; lists that were not computed are empty."""

    trace: list[TracePoint]
    checkpoints: list[Checkpoint]
    agreement: list[AgreementPoint]
    geometry: list[CosineGeometry]

    def of(self, population: str) -> list[AgreementPoint]:
        """Agreement among all, or among living features."""
        return [row for row in self.agreement if row.population == population]


@dataclass(frozen=True)
class FeatureTrajectory:
    """One feature along training; lists run over checkpoints."""

    steps: list[int]
    tokens: list[int]
    n_comparisons: int
    matched: list[int]  # comparisons whose best cosine reached theta, as they stood at the same step
    stability: list[float]
    best_cosines: list[float]  # means over comparisons
    worth_ev: list[float] | None  # EV lost when it alone is masked; None without activity, as is n_active
    n_active: list[int] | None
    n_tokens: int | None  # that worth and activity were measured on


class Trajectories:
    """The trajectories of one study's ensembles; what was read of features is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.features = lru_cache(8)(self._features)

    def read(self, ensemble: str) -> Trajectory:
        """What there is of an ensemble."""
        tables = (TracePoint, Checkpoint, AgreementPoint, CosineGeometry)
        return Trajectory(*(self._store.rows(table, "ensemble = ?", [ensemble]) for table in tables))

    def feature(self, found: Feature) -> FeatureTrajectory | None:
        """One feature along training; None where that was not measured."""
        where = "ensemble = ? AND seed = ? AND feature = ?"
        held = self._store.rows(FeatureAlong, where, [found.ensemble, found.seed, found.feature])
        if not held:
            return None
        (row,), steps = held, self._store.rows(Checkpoint, "ensemble = ?", [found.ensemble])
        n, measured = steps[0].n_comparisons, bool(row.worth_ev)
        return FeatureTrajectory(
            [each.step for each in steps], [each.tokens for each in steps], n, row.matched, [x / n for x in row.matched],
            row.best_cosines, row.worth_ev if measured else None, row.n_active if measured else None, steps[0].n_tokens,
        )  # fmt: skip

    def _features(self, ensemble: str) -> Features | None:
        """Features by the bucket in which they end, at the ensemble's own theta and epsilon; None without any."""
        store, row = self._store, self._store.ensemble(ensemble)
        held = store.arrow(
            "WITH chosen AS (SELECT seed, feature, matched, best_cosines, worth_ev, n_active FROM FeatureAlong WHERE "
            f"ensemble = $ensemble {fixed_sample('n_rows')}) SELECT chosen.*, dead IS TRUE AS dead, "
            "cosines FROM chosen JOIN Feature USING (seed, feature) WHERE ensemble = $ensemble ORDER BY seed, feature",
            {"ensemble": ensemble, "n_rows": N_FEATURES},
        )
        if not len(held):
            return None
        steps = store.rows(Checkpoint, "ensemble = ?", [ensemble])
        at, tokens = [each.step for each in steps], [each.tokens for each in steps]
        member, dead = held["seed"].to_numpy(), held["dead"].to_numpy()
        n_matched = count_matches(_matrix(held["cosines"]), row.theta)
        bucket = np.asarray(buckets(n_matched, row.n_comparisons, dead, row.epsilon))
        stability = _matrix(held["matched"]) / max(steps[0].n_comparisons, 1)
        cosine, worth = _matrix(held["best_cosines"]), _matrix(held["worth_ev"])
        density = _matrix(held["n_active"]) / (steps[0].n_tokens or 1)
        known = worth.shape == cosine.shape
        points = [
            BucketPoint(
                name, at[t], tokens[t], int(own.sum()), *_mean(stability[own, t], member[own]), float(cosine[own, t].mean()),
                *(_mean(worth[own, t], member[own]) if known else (None, None)),
                *(_mean(density[own, t], member[own]) if known else (None, None)),
            )
            for name in BUCKETS
            if (own := bucket == name).any()
            for t in range(len(at))
        ]  # fmt: skip
        alive = bucket != "dead"
        quantities = dict(
            zip(QUANTITIES, (cosine, worth, density), strict=True) if known else [("best cosine", cosine)]
        )
        return Features(
            len(held), row.n_members * row.d_sae, points, separations(at, tokens, quantities, bucket, member),
            lags(at, tokens, worth[alive], cosine[alive], member[alive]) if known else [],
        )  # fmt: skip

    def table(self, ensemble: str) -> pa.Table:
        """Agreement at every checkpoint, both populations, with every column, for downloads."""
        names = ", ".join(f'a."{f.name}"' for f in fields(AgreementPoint))
        geometry = ", ".join(f'"{f.name}"' for f in fields(CosineGeometry) if f.name not in ("ensemble", "step"))
        order = ", ".join(training_tables.SORT_KEYS[AgreementPoint])
        sql = (
            f"SELECT {names}, tokens, {geometry} FROM AgreementPoint a JOIN Checkpoint USING (ensemble, step) JOIN CosineGeometry "
            f"USING (ensemble, step) WHERE ensemble = $ensemble ORDER BY {order}"
        )
        return self._store.arrow(sql, {"ensemble": ensemble})


def judge_stabilization(found: Trajectory, shared_start: str) -> Stabilization | None:
    """The verdict; None where agreement was not measured.

    Shown where members began apart, every pair ends nearer than any pair began, and the fall is no work of the mean direction
    alone: what is left of every row without it comes nearer, too.
    """
    points, live = found.of("all"), found.of("live")
    if len(points) < 2:
        return None
    first, last, geometry = points[0], points[-1], (found.geometry[0], found.geometry[-1])
    if first.distance is not None:
        measure = "Hungarian distance"
        start, end = (first.distance, first.distance_low), (last.distance, last.distance_high)
        centred, random = [each.centred_distance for each in geometry], geometry[0].random_distance
        alive = [each.distance for each in live]
    else:
        measure = "1 − mean best cosine"
        start, end = (
            (1 - first.best_cosine, 1 - first.best_cosine_high),
            (1 - last.best_cosine, 1 - last.best_cosine_low),
        )
        centred = [1 - each.centred_best_cosine for each in geometry]
        random, alive = 1 - geometry[0].random_best_cosine, [1 - each.best_cosine for each in live]
    fell = end[1] < start[1] and centred[1] < centred[0]
    kind = "shared start" if shared_start == "yes" or start[0] < EQUAL_START else "shown" if fell else "not shown"
    steps = {row.step for row in live}
    known = {first.step, last.step} <= steps
    return Stabilization(
        kind, measure, start[0], end[0], random, *centred, alive[0] if known else None, alive[-1] if known else None,
        start[0] - end[0], first.n_pairs,
    )  # fmt: skip


def _mean(values: np.ndarray, member: np.ndarray) -> tuple[float, float | None]:
    """Mean over features, and the standard deviation of members' means."""
    means = [values[member == m].mean() for m in np.unique(member)]
    return float(values.mean()), float(np.std(means, ddof=1)) if len(means) > 1 else None


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long lists as (rows, entries)."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(values) else np.zeros((len(column), 0))
