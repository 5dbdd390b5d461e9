"""What was followed along a training, as arrays of a part and as rows of the contract."""

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
    for snapshot, found in zip(snapshots, followed, strict=True):
        evs = [] if found.used is None else found.used.evs
        told = {"n_tokens": np.nan if n_tokens is None else n_tokens, "n_comparisons": n_compared(len(seeds))}
        tables[Checkpoint].append({"step": snapshot.step, "tokens": snapshot.tokens} | told | {"evs": evs})
        for population, n_features in zip(POPULATIONS, (found.n_all, found.n_live), strict=True):
            if (pairs := getattr(found, population)) is not None:
                row = {"step": snapshot.step, "population": population, "n_features": n_features}
                tables[AgreementPoint].append(
                    row
                    | {"n_pairs": len(pairs.best)}
                    | _spread("distance", pairs.distance)
                    | _spread("best_cosine", pairs.best)
                )
        geometry = {"mean_cosine": found.common.mean_cosine, "mean_share": found.common.mean_share}
        geometry |= {"centred_distance": _mean(found.common.centred.distance)}
        geometry |= {"centred_best_cosine": _mean(found.common.centred.best)}
        geometry |= {"random_distance": _mean(level.distance), "random_best_cosine": _mean(level.best)}
        tables[CosineGeometry].append({"step": snapshot.step} | geometry)
    shared = {
        f"{table.__name__}.{column}": np.array([row[column] for row in rows])
        for table, rows in tables.items()
        for column in rows[0]
    }
    nothing = np.zeros((followed[0].best.shape[1], 0))
    found: dict[int, dict[str, Any]] = {}
    for m, seed in enumerate(seeds):
        along = {"matched": [each.matched[m] for each in followed], "best_cosines": [each.best[m] for each in followed]}
        if n_tokens is not None:
            along |= {"worth_ev": [each.used.worth[m] for each in followed]}
            along |= {"n_active": [each.used.n_active[m] for each in followed]}
        columns = {name: np.stack(values, 1) for name, values in along.items()}
        columns = {"worth_ev": nothing, "n_active": nothing.astype(int)} | columns
        found[seed] = {f"{FeatureAlong.__name__}.{name}": values for name, values in columns.items()}
    found[seeds[0]] |= shared
    return found


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
    told = [
        TracePoint(
            ensemble, seed, point.step, point.tokens, None if point.loss is None else point.loss[m], point.ev[m],
            point.l0[m], point.dead_frac[m],
        )
        for point in points
        for m, seed in enumerate(point.seeds)
    ]  # fmt: skip
    if told:
        writer.add(TracePoint, {name: [getattr(row, name) for row in told] for name in schema.columns(TracePoint)})
    if part is None:
        if snapshots:
            n = len(snapshots)
            columns = {"step": [each.step for each in snapshots], "tokens": [each.tokens for each in snapshots]}
            columns |= {"n_tokens": None, "n_comparisons": [n_compared(len(seeds))] * n, "evs": [[]] * n}
            writer.add(Checkpoint, {"ensemble": ensemble} | columns)
        return
    shared = part.read(seeds[0])
    for table in (Checkpoint, AgreementPoint, CosineGeometry):
        _add(writer, table, {"ensemble": ensemble}, shared)
    for seed in seeds:
        held = part.read(seed)
        n = len(held[f"{FeatureAlong.__name__}.matched"])
        _add(writer, FeatureAlong, {"ensemble": ensemble, "seed": [seed] * n, "feature": np.arange(n)}, held)


def _add(writer: Writer, table: type, keys: dict[str, Any], held: dict[str, np.ndarray]) -> None:
    """Add a table's columns to its keys; NaN says None."""
    prefix, kinds = f"{table.__name__}.", schema.columns(table)
    found = {name.removeprefix(prefix): values for name, values in held.items() if name.startswith(prefix)}
    for name, values in found.items():
        if kinds[name].optional:
            found[name] = [None if np.isnan(value) else kinds[name].kind(value) for value in values.tolist()]
        elif not kinds[name].is_list:
            found[name] = values.tolist()
    writer.add(table, keys | found)
