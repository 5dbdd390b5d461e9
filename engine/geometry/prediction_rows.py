"""Predictors and predictions as arrays of a part and as rows of the contract.

Small tables are kept in a part as JSON, row by row; the predictions of single features as one array per column.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.tables.predictions import (
    CarriedPrediction,
    Prediction,
    Predictor,
    PredictorInput,
    PredictorScore,
    ReliabilityBin,
)
from seedscope.engine.geometry.predictor import Predicted, StabilityModel
from seedscope.engine.geometry.predictor_scores import PredictionQuality, ScoreWithInterval
from seedscope.engine.store.database import Writer
from seedscope.engine.store.parts import Part

SMALL = (Predictor, PredictorScore, ReliabilityBin, PredictorInput, CarriedPrediction)
Rows = list[dict[str, Any]]


def score_rows(ensemble: str, by_setting: Mapping[str, PredictionQuality]) -> Rows:
    """A PredictorScore per setting."""
    return [
        asdict(
            PredictorScore(
                ensemble, setting, *each.auroc, each.auroc_stable, *each.error, n_rows=each.n_rows
            )
        )
        for setting, each in by_setting.items()
    ]  # fmt: skip


def reliability_rows(ensemble: str, found: PredictionQuality) -> Rows:
    """A ReliabilityBin per bin."""
    bins = zip(found.predicted.tolist(), found.observed.tolist(), found.counts.tolist(), strict=True)
    return [
        asdict(ReliabilityBin(ensemble, at, p, observed, low, high, n))
        for at, (p, (observed, low, high), n) in enumerate(bins)
    ]


def input_rows(ensemble: str, model: StabilityModel, aurocs: Sequence[float]) -> Rows:
    """A PredictorInput per input; `aurocs` are those of each input alone."""
    columns = zip(model.inputs, model.lowest.tolist(), model.highest.tolist(), aurocs, strict=True)
    return [asdict(PredictorInput(ensemble, *each)) for each in columns]


def carried_row(
    ensemble: str,
    trained_on: Sequence[str],
    found: PredictionQuality,
    own: PredictionQuality,
    base_rate: float,
    mean_predicted: float,
) -> dict[str, Any]:
    """The CarriedPrediction of one left-out ensemble."""
    auroc: ScoreWithInterval = found.auroc
    return asdict(
        CarriedPrediction(
            ensemble, list(trained_on), *auroc, own.auroc.value, found.error.value, own.error.value, base_rate,
            mean_predicted, found.n_rows,
        )
    )  # fmt: skip


def as_arrays(
    tables: Mapping[type, Rows], seed: int = 0, at: np.ndarray | None = None, predicted: Predicted | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a part; `predicted` are predictions of the features `at` of the member with a seed."""
    arrays = {table.__name__: np.array(json.dumps(rows, allow_nan=False)) for table, rows in tables.items()}
    if at is None or predicted is None:
        return arrays
    columns = {"seed": np.full(len(at), seed, np.int64), "feature": at, "p": predicted.p, "p_low": predicted.low,
               "p_high": predicted.high, "inside": predicted.inside}  # fmt: skip
    return arrays | {f"Prediction.{name}": column for name, column in columns.items()}


def read_rows(part: Part, table: type) -> Rows:
    """The rows of a small table."""
    arrays = part.read(min(part.seeds))
    rows: Rows = json.loads(str(arrays[table.__name__])) if table.__name__ in arrays else []
    return rows


def add_predictions(writer: Writer, ensemble: str, *parts: Part | None) -> None:
    """Add what parts hold, if there are any; their rows are named after the ensemble."""
    for part in parts:
        if part is None:
            continue
        arrays = part.read(min(part.seeds))
        for table in SMALL:
            if rows := read_rows(part, table):
                columns = {name: [row[name] for row in rows] for name in schema.columns(table)}
                writer.add(table, columns | {"ensemble": [ensemble] * len(rows)})
        if len(arrays.get("Prediction.p", ())):
            names = [name for name in schema.columns(Prediction) if name != "ensemble"]
            writer.add(Prediction, {"ensemble": ensemble} | {name: arrays[f"Prediction.{name}"] for name in names})
