"""What a predictor says of one SAE's features, and how well it does: rows for pages and downloads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.engine.contract.tables.predictions import (
    PREDICTOR_SETTINGS,
    CarriedPrediction,
    Prediction,
    Predictor,
    PredictorInput,
    PredictorScore,
    ReliabilityBin,
)
from seedscope.engine.contract.tables.study import Ensemble

N_BARS = 20  # of the distribution of predicted p


@dataclass(frozen=True)
class StoredPredictor:
    """A predictor that was trained on an ensemble, or that predicts its one SAE; lists are empty where it was refused."""

    predictor: Predictor
    scores: list[PredictorScore]  # in the order of PREDICTOR_SETTINGS
    bins: list[ReliabilityBin]
    inputs: list[PredictorInput]
    carried: list[CarriedPrediction]  # of the ensembles of the study, where each was predicted from the others

    @property
    def score(self) -> PredictorScore | None:
        """The figure that counts: of held-out clusters."""
        return next((each for each in self.scores if each.setting == PREDICTOR_SETTINGS[0]), None)


def prediction_sources(studies: Iterable[Database], ensemble: Ensemble) -> list[str]:
    """STUDY/ENSEMBLE of those that a predictor of one SAE can be trained on: their p is measured, and rows are as long."""
    return [
        f"{store.study.study}/{name}"
        for store in studies
        for name, row in store.ensembles.items()
        if row.n_comparisons and row.d_in == ensemble.d_in
    ]


def read_predictor(store: Database, ensemble: str) -> StoredPredictor | None:
    """The predictor of an ensemble, with how far such carry in its study; None where there is none."""
    found = store.rows(Predictor, "ensemble = ?", [ensemble])
    if not found:
        return None
    scores, bins, inputs = (
        store.rows(table, "ensemble = ?", [ensemble]) for table in (PredictorScore, ReliabilityBin, PredictorInput)
    )
    scores.sort(key=lambda row: PREDICTOR_SETTINGS.index(row.setting))
    inputs.sort(key=lambda row: -abs(row.auroc - 0.5))
    return StoredPredictor(found[0], scores, bins, inputs, store.rows(CarriedPrediction))


def predictions_at(store: Database, ensemble: str, places: list[tuple[int, int]]) -> list[Prediction]:
    """The predictions of some (seed, feature), as far as there are any."""
    return store.rows_at(Prediction, ensemble, places) if places else []


def predicted_p(store: Database, ensemble: str) -> np.ndarray:
    """(rows,) the predicted p of every feature, in the order of the ensemble's index; NaN where there is none."""
    index = store.index(ensemble)

    def read() -> np.ndarray:
        sql = "SELECT seed, feature, p FROM Prediction WHERE ensemble = $ensemble"
        found = store.arrow(sql, {"ensemble": ensemble})
        p = np.full(index.n_rows, np.nan, np.float32)
        rows = index.rows_at(found.column("seed").to_numpy(), found.column("feature").to_numpy())
        p[rows] = found.column("p").to_numpy()
        return p

    return index.kept(("predicted",), read)


def prediction_counts(store: Database, ensemble: str) -> list[int]:
    """Features by predicted p, in N_BARS equal parts of 0 to 1."""
    sql = (
        "SELECT least(floor(p * $n), $n - 1)::INTEGER AS bar, count(*) FROM Prediction WHERE ensemble = $ensemble "
        "GROUP BY bar ORDER BY bar"
    )
    held = dict(store.fetch(sql, {"ensemble": ensemble, "n": N_BARS}))
    return [held.get(bar, 0) for bar in range(N_BARS)]


def prediction_table(store: Database, ensemble: str) -> pa.Table:
    """All predictions of an ensemble, for downloads."""
    sql = "SELECT * FROM Prediction WHERE ensemble = $ensemble ORDER BY seed, feature"
    return store.arrow(sql, {"ensemble": ensemble})
