"""An ensemble along training as stored: training trace, checkpoints, agreement, and single features."""

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import pyarrow as pa

from seedscope.app.findings.features_along import FeaturesAlong, features_along
from seedscope.app.findings.stabilization import Trajectory
from seedscope.app.store.database import Database
from seedscope.engine.contract.index.sampling import fixed_sample
from seedscope.engine.contract.stability import buckets, count_matches
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

    def feature(self, feature: Feature) -> FeatureTrajectory | None:
        """One feature along training; None where that was not measured."""
        where = "ensemble = ? AND seed = ? AND feature = ?"
        rows = self._store.rows(FeatureAlong, where, [feature.ensemble, feature.seed, feature.feature])
        if not rows:
            return None
        (row,), steps = rows, self._store.rows(Checkpoint, "ensemble = ?", [feature.ensemble])
        n, measured = steps[0].n_comparisons, bool(row.worth_ev)
        return FeatureTrajectory(
            [each.step for each in steps], [each.tokens for each in steps], n, row.matched, [x / n for x in row.matched],
            row.best_cosines, row.worth_ev if measured else None, row.n_active if measured else None, steps[0].n_tokens,
        )  # fmt: skip

    def _features(self, ensemble: str) -> FeaturesAlong | None:
        """Features by the bucket in which they end, at the ensemble's own theta and epsilon; None without any."""
        store, row = self._store, self._store.ensemble(ensemble)
        rows = store.arrow(
            "WITH chosen AS (SELECT seed, feature, matched, best_cosines, worth_ev, n_active FROM FeatureAlong WHERE "
            f"ensemble = $ensemble {fixed_sample('n_rows')}) SELECT chosen.*, dead IS TRUE AS dead, "
            "cosines FROM chosen JOIN Feature USING (seed, feature) WHERE ensemble = $ensemble ORDER BY seed, feature",
            {"ensemble": ensemble, "n_rows": N_FEATURES},
        )
        if not len(rows):
            return None
        checkpoints = store.rows(Checkpoint, "ensemble = ?", [ensemble])
        n_matched = count_matches(_matrix(rows["cosines"]), row.theta)
        return features_along(
            steps=[each.step for each in checkpoints],
            tokens=[each.tokens for each in checkpoints],
            bucket=np.asarray(buckets(n_matched, row.n_comparisons, rows["dead"].to_numpy(), row.epsilon)),
            member=rows["seed"].to_numpy(),
            stability=_matrix(rows["matched"]) / max(checkpoints[0].n_comparisons, 1),
            best_cosine=_matrix(rows["best_cosines"]),
            worth=_matrix(rows["worth_ev"]),
            density=_matrix(rows["n_active"]) / (checkpoints[0].n_tokens or 1),
            n_all=row.n_members * row.d_sae,
        )

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


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long lists as (rows, entries)."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(values) else np.zeros((len(column), 0))
