"""Traces, snapshots and measurements along a training, as arrays of a part and as rows of the contract."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.tables.training import (
    POPULATIONS,
    AgreementPoint,
    Checkpoint,
    CosineGeometry,
    FeatureAlong,
    TracePoint,
)
from seedscope.engine.store.database import Writer
from seedscope.engine.store.parts import Part
from seedscope.engine.training.snapshots import Snapshot
from seedscope.engine.training.trace import Point
from seedscope.engine.training.trajectory import Alike, Followed, n_compared


def as_arrays(
    snapshots: Sequence[Snapshot],
    followed: Sequence[Followed],
    level: Alike,
    seeds: Sequence[int],
    n_tokens: int | None,
) -> dict[int, dict[str, Any]]:
    """{seed: arrays of its part}: features by member, and under the first seed what is the ensemble's."""
    tables: dict[type, list[dict[str, Any]]] = {Checkpoint: [], AgreementPoint: [], CosineGeometry: []}
    for snapshot, at_step in zip(snapshots, followed, strict=True):
        evs: np.ndarray | list[float] = [] if at_step.used is None else at_step.used.evs
        sizes = {"n_tokens": np.nan if n_tokens is None else n_tokens, "n_comparisons": n_compared(len(seeds))}
        tables[Checkpoint].append({"step": snapshot.step, "tokens": snapshot.tokens} | sizes | {"evs": evs})
        for population, n_features in zip(POPULATIONS, (at_step.n_all, at_step.n_live), strict=True):
            if (pairs := getattr(at_step, population)) is not None:
                row = {"step": snapshot.step, "population": population, "n_features": n_features}
                tables[AgreementPoint].append(
                    row
                    | {"n_pairs": len(pairs.best)}
                    | _spread("distance", pairs.distance)
                    | _spread("best_cosine", pairs.best)
                )
        geometry = {"mean_cosine": at_step.common.mean_cosine, "mean_share": at_step.common.mean_share}
        geometry |= {"centred_distance": _mean(at_step.common.centred.distance)}
        geometry |= {"centred_best_cosine": _mean(at_step.common.centred.best)}
        geometry |= {"random_distance": _mean(level.distance), "random_best_cosine": _mean(level.best)}
        tables[CosineGeometry].append({"step": snapshot.step} | geometry)
    shared = {
        f"{table.__name__}.{column}": np.array([row[column] for row in rows])
        for table, rows in tables.items()
        for column in rows[0]
    }
    nothing = np.zeros((followed[0].best.shape[1], 0))
    arrays: dict[int, dict[str, Any]] = {}
    for m, seed in enumerate(seeds):
        along = {"matched": [each.matched[m] for each in followed], "best_cosines": [each.best[m] for each in followed]}
        if n_tokens is not None:
            used = [each.used for each in followed if each.used is not None]
            along |= {"worth_ev": [each.worth[m] for each in used], "n_active": [each.n_active[m] for each in used]}
        columns = {name: np.stack(values, 1) for name, values in along.items()}
        columns = {"worth_ev": nothing, "n_active": nothing.astype(int)} | columns
        arrays[seed] = {f"{FeatureAlong.__name__}.{name}": values for name, values in columns.items()}
    arrays[seeds[0]] |= shared
    return arrays


def _mean(values: np.ndarray | None) -> float:
    return np.nan if values is None else float(values.mean())


def _spread(name: str, values: np.ndarray | None) -> dict[str, float]:
    if values is None:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    return {name: float(values.mean()), f"{name}_low": float(values.min()), f"{name}_high": float(values.max())}


def add_trajectory(
    writer: Writer,
    ensemble: str,
    seeds: Sequence[int],
    points: Iterable[Point],
    snapshots: Sequence[Snapshot],
    part: Part | None,
) -> None:
    """Add how training went, which snapshots there are, and what was measured on them."""
    trace = [
        TracePoint(
            ensemble, seed, point.step, point.tokens, None if point.loss is None else point.loss[m], point.ev[m],
            point.l0[m], point.dead_frac[m],
        )
        for point in points
        for m, seed in enumerate(point.seeds)
    ]  # fmt: skip
    if trace:
        writer.add(TracePoint, {name: [getattr(row, name) for row in trace] for name in schema.columns(TracePoint)})
    if part is None:
        if snapshots:
            n = len(snapshots)
            columns: dict[str, Any] = {
                "step": [each.step for each in snapshots],
                "tokens": [each.tokens for each in snapshots],
            }
            columns |= {"n_tokens": None, "n_comparisons": [n_compared(len(seeds))] * n, "evs": [[]] * n}
            writer.add(Checkpoint, {"ensemble": ensemble} | columns)
        return
    shared = part.read(seeds[0])
    for table in (Checkpoint, AgreementPoint, CosineGeometry):
        _add(writer, table, {"ensemble": ensemble}, shared)
    for seed in seeds:
        arrays = part.read(seed)
        n = len(arrays[f"{FeatureAlong.__name__}.matched"])
        _add(writer, FeatureAlong, {"ensemble": ensemble, "seed": [seed] * n, "feature": np.arange(n)}, arrays)


def _add(writer: Writer, table: type, keys: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Add a table's columns to its keys; NaN says None."""
    prefix, kinds = f"{table.__name__}.", schema.columns(table)
    columns: dict[str, Any] = {}
    for full_name, values in arrays.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        if kinds[name].optional:
            columns[name] = [None if np.isnan(value) else kinds[name].kind(value) for value in values.tolist()]
        else:
            columns[name] = values if kinds[name].is_list else values.tolist()
    writer.add(table, keys | columns)
