"""An ensemble's geometry as rows of the contract, kept as a part: what `engine.geometry.measure` and `engine.geometry.map` found.

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
from seedscope.engine.geometry.map import Atlas
from seedscope.engine.geometry.measure import Geometry, SpanGeometry
from seedscope.engine.geometry.subspaces import Curve, FeatureEnergy, Transfer
from seedscope.engine.store.database import Writer
from seedscope.engine.store.parts import Part

ANALYSIS = "subspaces"
FIRST_RANK = 1 / 8  # of d_in, about: where random spans capture an eighth and curves still differ
Columns = dict[str, Any]


def first_rank(ranks: Sequence[int], d: int) -> int:
    """The rank of the grid that pages show first."""
    return int(min(ranks, key=lambda rank: abs(np.log(rank / (d * FIRST_RANK)))))


def as_arrays(found: Geometry, atlas: Atlas, dead: np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """One ensemble's geometry as the arrays of a part; `dead` is (members, d_sae)."""
    tables: dict[type, list[Columns]] = {
        SpanCurve: [*_transferred(found.transfer), *_overlapping(found.spans)],
        SpanPair: _pairs(found, seeds),
        SpanMember: _members(found, seeds),
        SpanResidual: [_residual(*each) for each in found.residuals.items()],
        SpanPrediction: _predicted(found),
        FeatureSpan: [_features(found, atlas, dead, seeds)],
    }
    arrays = {
        f"{table.__name__}.{column}": _joined([part[column] for part in parts])
        for table, parts in tables.items()
        if parts
        for column in parts[0]
    }
    predicted = found.predictability
    return arrays | {
        "remarks": np.array([*found.remarks, f"map: {atlas.remark}"], str),
        "clusters": np.array([predicted.n_clusters, predicted.largest_cluster] if predicted else [], float),
        "span_rank": np.array(
            [first_rank(found.transfer.ranks.tolist(), found.transfer.d)] if found.transfer else [], int
        ),
    }


def add_spans(writer: Writer, ensemble: str, part: Part | None) -> Columns:
    """Add what a part holds; returns the columns of the ensemble's own row that belong to it."""
    none = {"span_rank": None, "span_remarks": [], "n_clusters": None, "largest_cluster": None}
    if part is None:
        return none
    held = part.read(min(part.seeds))
    for table in (SpanCurve, SpanPair, SpanMember, SpanResidual, SpanPrediction, FeatureSpan):
        prefix = f"{table.__name__}."
        found = {name.removeprefix(prefix): column for name, column in held.items() if name.startswith(prefix)}
        if found:
            kinds = schema.columns(table)
            writer.add(
                table, {"ensemble": ensemble} | {name: _read(values, kinds[name]) for name, values in found.items()}
            )
    told = {"span_remarks": held["remarks"].tolist()}
    if len(held["span_rank"]):
        told["span_rank"] = int(held["span_rank"][0])
    if len(held["clusters"]):
        told |= {"n_clusters": int(held["clusters"][0]), "largest_cluster": float(held["clusters"][1])}
    return none | told


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


def _transferred(found: Transfer | None) -> list[Columns]:
    """Every curve of captured energy there is."""
    if found is None:
        return []
    curves = {name: getattr(found, name) for name in SPAN_CURVES if isinstance(getattr(found, name, None), Curve)}
    rows = [_curve(name, found.ranks, curve) for name, curve in curves.items()]
    nothing = np.full(len(found.ranks), np.nan)
    flat = {"mean": found.random_subspace, "spread": nothing, "split_spread": nothing}
    counts = {"n_pairs": np.zeros(len(found.ranks), int), "n_fitted": np.zeros(len(found.ranks), int)}
    return [*rows, _named("random_subspace", found.ranks) | flat | counts]


def _named(name: str, ranks: np.ndarray) -> Columns:
    return {"curve": np.full(len(ranks), name), "rank": ranks}


def _curve(name: str, ranks: np.ndarray, curve: Curve) -> Columns:
    split = curve.split_spread if name != "activations" else np.full(len(ranks), np.nan)  # nothing is drawn there
    return _named(name, ranks) | {
        "mean": curve.mean, "spread": curve.spread, "split_spread": split, "n_pairs": curve.n_pairs,
        "n_fitted": np.full(len(ranks), curve.n_fitted.min()),
    }  # fmt: skip


def _overlapping(spans: SpanGeometry | None) -> list[Columns]:
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


def _pairs(found: Geometry, seeds: Sequence[int]) -> list[Columns]:
    """Ordered pairs; a member with itself is fitted on one half and measured on the other."""
    if found.transfer is None:
        return []
    energies = found.transfer.cross.energy.copy()
    n, at = len(found.members), np.arange(len(found.members))
    energies[at, at] = found.transfer.within.energy[:, 0]
    first, second = (which.ravel() for which in np.indices((n, n)))
    of = np.array(seeds)[found.members]
    overlap, angle = (values[first, second] for values in (found.spans.overlap, found.spans.angle))
    energy = energies[first, second]
    return [{"seed": of[first], "other": of[second], "energies": energy, "overlaps": overlap, "angles": angle}]


def _members(found: Geometry, seeds: Sequence[int]) -> list[Columns]:
    rows = []
    for row in found.ranks:
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


def _residual(bucket: str, found: Any) -> Columns:
    k = np.arange(1, len(found.mean) + 1)
    return {
        "bucket": np.full(len(k), bucket), "k": k, "mean": found.mean, "spread": found.spread, **found.chance,
        "n_pairs": np.full(len(k), int(np.isfinite(found.by_pair[..., 0]).sum())),
        "n_rows": np.full(len(k), int(found.n_rows.sum())),
    }  # fmt: skip


def _predicted(found: Geometry) -> list[Columns]:
    told = found.predictability
    if told is None:
        return []
    rows = []
    for name in PREDICTION_SETTINGS[:-1]:
        figures = getattr(told, name)
        if figures.n_pairs:
            numbers = ("f1_mean", "f1_spread", "auroc_mean", "auroc_spread", "n_pairs", "n_train", "n_test")
            rows.append({"setting": [name]} | {n.removesuffix("_mean"): [getattr(figures, n)] for n in numbers})
    nothing = {name: [np.nan] for name in ("f1_spread", "auroc", "auroc_spread", "n_train", "n_test")}
    return [
        *rows,
        {"setting": [PREDICTION_SETTINGS[-1]], "f1": [told.always_stable_f1], "n_pairs": [0]} | nothing,
    ]


def _features(found: Geometry, atlas: Atlas, dead: np.ndarray, seeds: Sequence[int]) -> Columns:
    """Living features, member by member."""
    energies = dict(zip(found.members.tolist(), found.energy or (), strict=False))
    parts = []
    for member, seed in enumerate(seeds):
        alive = np.flatnonzero(~dead[member])
        energy = energies.get(member) or FeatureEnergy(*[np.zeros((len(alive), 0))] * 2)
        place = {"x": atlas.x[member, alive], "y": atlas.y[member, alive]}
        parts.append({"seed": np.full(len(alive), seed), "feature": alive} | energy._asdict() | place)
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}
