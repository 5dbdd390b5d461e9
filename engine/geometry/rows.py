"""An ensemble's geometry, as `measure` and `map` return it, as arrays of a part and as rows of the contract.

The arrays of the part ARE the columns of the tables, named `Table.column`; lists of unequal length are padded with NaN.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.tables.spans import (
    PREDICTION_SETTINGS,
    SPAN_CURVES,
    FeatureSpan,
    SpanCurve,
    SpanMember,
    SpanPair,
    SpanPrediction,
    SpanResidual,
)
from seedscope.engine.geometry.map import DirectionMap
from seedscope.engine.geometry.measure import Geometry, SpanGeometry
from seedscope.engine.geometry.pursuit import Residuals
from seedscope.engine.geometry.subspaces import Curve, FeatureEnergy, Transfer
from seedscope.engine.store.database import Writer
from seedscope.engine.store.parts import Part

ANALYSIS = "subspaces"
FIRST_RANK = 1 / 8  # of d_in, about: where random spans capture an eighth and curves still differ
Columns = dict[str, Any]


def first_rank(ranks: Sequence[int], d: int) -> int:
    """The rank of the grid that pages show first."""
    return int(min(ranks, key=lambda rank: abs(np.log(rank / (d * FIRST_RANK)))))


def as_arrays(geometry: Geometry, direction_map: DirectionMap, seeds: Sequence[int]) -> dict[str, Any]:
    """One ensemble's geometry but for its features' own rows, as the arrays of a part."""
    tables: dict[type, list[Columns]] = {
        SpanCurve: [*_energy_curves(geometry.transfer), *_overlap_curve(geometry.spans)],
        SpanPair: _pairs(geometry, seeds),
        SpanMember: _members(geometry, seeds),
        SpanResidual: [_residual(*each) for each in geometry.residuals.items()],
        SpanPrediction: _predictions(geometry),
    }
    arrays = {
        f"{table.__name__}.{column}": _joined([part[column] for part in parts])
        for table, parts in tables.items()
        if parts
        for column in parts[0]
    }
    predicted = geometry.predictability
    transfer = geometry.transfer
    return arrays | {
        "remarks": np.array([*geometry.remarks, f"map: {direction_map.remark}"], str),
        "clusters": np.array([predicted.n_clusters, predicted.largest_cluster] if predicted else [], float),
        "span_rank": np.array([first_rank(transfer.ranks.tolist(), transfer.d)] if transfer else [], int),
    }


def add_spans(writer: Writer, ensemble: str, part: Part | None) -> Columns:
    """Add what a part holds; returns the columns of the ensemble's own row that belong to it."""
    none: Columns = {"span_rank": None, "span_remarks": [], "n_clusters": None, "largest_cluster": None}
    if part is None:
        return none
    arrays = part.read(min(part.seeds))
    for seed in sorted(part.seeds):
        of_seed = arrays if seed == min(part.seeds) else part.read(seed)
        for table in (SpanCurve, SpanPair, SpanMember, SpanResidual, SpanPrediction, FeatureSpan):
            _add_table(writer, table, ensemble, of_seed)
    of_ensemble: Columns = {"span_remarks": arrays["remarks"].tolist()}
    if len(arrays["span_rank"]):
        of_ensemble["span_rank"] = int(arrays["span_rank"][0])
    if len(arrays["clusters"]):
        of_ensemble |= {"n_clusters": int(arrays["clusters"][0]), "largest_cluster": float(arrays["clusters"][1])}
    return none | of_ensemble


def _add_table(writer: Writer, table: type, ensemble: str, arrays: dict[str, np.ndarray]) -> None:
    """Add a table's rows, where the arrays have any of it."""
    prefix, kinds = f"{table.__name__}.", schema.columns(table)
    columns = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    if columns:
        read = {name: _read(values, kinds[name]) for name, values in columns.items()}
        writer.add(table, {"ensemble": ensemble} | read)


def _read(values: np.ndarray, kind: schema.Column) -> Any:
    """A column as the Writer takes it: NaN is the end of a list, or None."""
    if kind.is_list:
        ends = (~np.isnan(values)).sum(1)
        return [row[:end].astype(kind.kind) for row, end in zip(values, ends, strict=True)]
    if kind.kind is float and kind.optional:
        return [None if np.isnan(value) else value for value in values.tolist()]
    return values.tolist()


def _joined(parts: list[Any]) -> np.ndarray:
    """Rows below rows; lists padded to the longest."""
    arrays = [np.asarray(part) for part in parts]
    if arrays[0].ndim == 1:
        return np.concatenate(arrays)
    width = max(array.shape[1] for array in arrays)
    padded = (np.pad(a.astype(float), ((0, 0), (0, width - a.shape[1])), constant_values=np.nan) for a in arrays)
    return np.concatenate(list(padded)).astype(np.float32)


def _energy_curves(transfer: Transfer | None) -> list[Columns]:
    """Every curve of captured energy there is."""
    if transfer is None:
        return []
    ranks = transfer.ranks
    curves = {name: getattr(transfer, name) for name in SPAN_CURVES if isinstance(getattr(transfer, name, None), Curve)}
    rows = [_curve(name, ranks, curve) for name, curve in curves.items()]
    nothing = np.full(len(ranks), np.nan)
    flat = {"mean": transfer.random_subspace, "spread": nothing, "split_spread": nothing}
    counts = {"n_pairs": np.zeros(len(ranks), int), "n_fitted": np.zeros(len(ranks), int)}
    return [*rows, _named("random_subspace", ranks) | flat | counts]


def _named(name: str, ranks: np.ndarray) -> Columns:
    return {"curve": np.full(len(ranks), name), "rank": ranks}


def _curve(name: str, ranks: np.ndarray, curve: Curve) -> Columns:
    split = curve.split_spread if name != "activations" else np.full(len(ranks), np.nan)  # nothing is drawn there
    return _named(name, ranks) | {
        "mean": curve.mean, "spread": curve.spread, "split_spread": split, "n_pairs": curve.n_pairs,
        "n_fitted": np.full(len(ranks), curve.n_fitted.min()),
    }  # fmt: skip


def _overlap_curve(spans: SpanGeometry | None) -> list[Columns]:
    if spans is None:
        return []
    n_pairs = np.isfinite(spans.pairs).sum(0)
    mean, spread = np.full((2, len(spans.ranks)), np.nan)
    reached = n_pairs > 0
    mean[reached], spread[reached] = np.nanmean(spans.pairs[:, reached], 0), np.nanstd(spans.pairs[:, reached], 0)
    rest = {
        "split_spread": np.full(len(mean), np.nan),
        "n_pairs": n_pairs,
        "n_fitted": np.full(len(mean), spans.fewest),
    }
    return [_named("overlap", spans.ranks) | {"mean": mean, "spread": spread} | rest]


def _pairs(geometry: Geometry, seeds: Sequence[int]) -> list[Columns]:
    """Ordered pairs; a member with itself is fitted on one half and measured on the other."""
    transfer, spans = geometry.transfer, geometry.spans
    if transfer is None or spans is None:  # they are there together
        return []
    energies = transfer.cross.energy.copy()
    n, at = len(geometry.members), np.arange(len(geometry.members))
    energies[at, at] = transfer.within.energy[:, 0]
    first, second = (which.ravel() for which in np.indices((n, n)))
    of = np.array(seeds)[geometry.members]
    overlap, angle = (values[first, second] for values in (spans.overlap, spans.angle))
    energy = energies[first, second]
    return [{"seed": of[first], "other": of[second], "energies": energy, "overlaps": overlap, "angles": angle}]


def _members(geometry: Geometry, seeds: Sequence[int]) -> list[Columns]:
    rows = []
    for row in geometry.ranks:
        equal = {
            f"{name}_equal{suffix}": [getattr(matched, field) if matched else np.nan]
            for name in ("stable", "unstable", "random")
            for matched in (getattr(row, f"{name}_matched"),)
            for suffix, field in (("", "mean"), ("_sd", "spread"))
        }
        values = {
            f"{name}_values": getattr(row.spectra, name)[None] if row.spectra else np.zeros((1, 0))
            for name in ("stable", "unstable", "random")
        }
        counts = {"seed": [seeds[row.member]], "n_stable": [row.n_stable], "n_unstable": [row.n_unstable]}
        rows.append(
            counts | {"stable_rank": [row.stable], "unstable_rank": [row.unstable], "n_equal": [row.n]} | equal | values
        )
    return rows


def _residual(bucket: str, residuals: Residuals) -> Columns:
    k = np.arange(1, len(residuals.mean) + 1)
    return {
        "bucket": np.full(len(k), bucket), "k": k, "mean": residuals.mean, "spread": residuals.spread, **residuals.chance,
        "n_pairs": np.full(len(k), int(np.isfinite(residuals.by_pair[..., 0]).sum())),
        "n_rows": np.full(len(k), int(residuals.n_rows.sum())),
    }  # fmt: skip


def _predictions(geometry: Geometry) -> list[Columns]:
    predictability = geometry.predictability
    if predictability is None:
        return []
    rows = []
    for name in PREDICTION_SETTINGS[:-1]:
        figures = getattr(predictability, name)
        if figures.n_pairs:
            numbers = ("f1_mean", "f1_spread", "auroc_mean", "auroc_spread", "n_pairs", "n_train", "n_test")
            rows.append({"setting": [name]} | {n.removesuffix("_mean"): [getattr(figures, n)] for n in numbers})
    nothing = {name: [np.nan] for name in ("f1_spread", "auroc", "auroc_spread", "n_train", "n_test")}
    return [
        *rows,
        {"setting": [PREDICTION_SETTINGS[-1]], "f1": [predictability.always_stable_f1], "n_pairs": [0]} | nothing,
    ]


def feature_arrays(
    geometry: Geometry, direction_map: DirectionMap, dead: np.ndarray, member: int, seed: int
) -> dict[str, Any]:
    """One member's living features as the arrays of a part; `dead` is (members, d_sae)."""
    energies = dict(zip(geometry.members.tolist(), geometry.energy or (), strict=False))
    alive = np.flatnonzero(~dead[member])
    energy = energies.get(member) or FeatureEnergy(*[np.zeros((len(alive), 0))] * 2)
    place = {"x": direction_map.x[member, alive], "y": direction_map.y[member, alive]}
    columns = {"seed": np.full(len(alive), seed), "feature": alive} | energy._asdict() | place
    return {f"{FeatureSpan.__name__}.{name}": _joined([values]) for name, values in columns.items()}
