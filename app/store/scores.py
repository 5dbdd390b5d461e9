"""Scores of a whole ensemble's explanations, counted under a judgement; what does not depend on it is kept as arrays."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seedscope.app.findings.bucket_comparison import JUDGED, Quartiles
from seedscope.app.findings.group_quantiles import RankedColumn, are_all, find_levels, group_quantiles, rank
from seedscope.app.findings.scores import ScoreTally
from seedscope.app.store.database import Database
from seedscope.app.store.feature_index import FeatureIndex
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable

# What one explainer and one kind of score say of a feature, as bits.
_ASKED, _EXPLAINED, _FAILED, _SCORED, _ABOVE = (np.uint8(1 << i) for i in range(5))
_N_FLAGS = 32
_Column = Callable[[int], np.ndarray]


class _Results(NamedTuple):
    """What one explainer and one kind of score say of all rows, whatever the judgement."""

    flags: np.ndarray  # (rows,) uint8
    score: RankedColumn
    shuffled_p95: RankedColumn


def tally_scores(store: Database, query: FeatureQuery, explainer: str, kind: str) -> ScoreTally:
    """Every feature that `query` judges, with what one explainer and one kind of score say of it, counted."""
    selection = FeatureTable(store, query).selection
    index, n_comparisons = selection.index, selection.index.n_comparisons
    results = _results(store, query.ensemble, explainer, kind)
    bucket, matched = np.minimum(selection.buckets, np.uint8(len(JUDGED))), selection.matched
    if selection.found is not None:
        bucket = np.where(selection.found, bucket, np.uint8(len(JUDGED)))
    flags = np.zeros((len(JUDGED) + 1, _N_FLAGS), np.int64)
    n, total = (np.zeros((len(index.seeds), n_comparisons + 1), dtype) for dtype in (np.int64, np.float64))
    is_counted = np.zeros(256, bool)  # by bucket and flags
    is_counted[: len(JUDGED) * _N_FLAGS] = np.arange(len(JUDGED) * _N_FLAGS) & _SCORED > 0
    for member in range(len(index.seeds)):  # one after the other: what is counted then stays in the processor's cache
        rows = slice(member * index.d_sae, (member + 1) * index.d_sae)
        keys = bucket[rows] * np.uint8(_N_FLAGS) | results.flags[rows]
        flags += np.bincount(keys, minlength=flags.size).reshape(flags.shape)
        x = matched[rows].astype(np.intp)
        x[~is_counted[keys]] = n_comparisons + 1
        n[member] = np.bincount(x, minlength=n_comparisons + 2)[:-1]
        total[member] = np.bincount(x, results.score.at(rows), minlength=n_comparisons + 2)[:-1]
    judged, values = flags[: len(JUDGED)], np.arange(_N_FLAGS)

    def count(flag: np.uint8) -> np.ndarray:
        return judged[:, values & flag > 0].sum(1)

    quartiles = group_quantiles(results.score, bucket, len(JUDGED), (0.25, 0.5, 0.75))
    medians = group_quantiles(results.shuffled_p95, bucket, len(JUDGED), (0.5,))
    return ScoreTally(
        judged.sum(1), count(_ASKED), count(_EXPLAINED), count(_FAILED), count(_SCORED), count(_ABOVE),
        [Quartiles(size, *(ends or (None, None, None))) for size, ends in quartiles],
        [ends[0] if ends else None for _, ends in medians], n, total,
    )  # fmt: skip


def _results(store: Database, ensemble: str, explainer: str, kind: str) -> _Results:
    index, key = store.index(ensemble), ("scores", explainer, kind)
    read: list[tuple[np.ndarray, ...]] = []  # once, whichever of the arrays are not kept

    def column(i: int) -> np.ndarray:
        if not read:
            read.append(_read(store, index, ensemble, explainer, kind))
        return read[0][i]

    flags = index.kept((*key, "flags"), lambda: column(0))
    return _Results(flags, *(_ranked(index, (*key, name), i, column) for i, name in ((1, "score"), (2, "p95"))))


def _ranked(index: FeatureIndex, key: tuple, i: int, column: _Column) -> RankedColumn:
    levels = index.kept((*key, "levels"), lambda: find_levels(column(i)))
    codes = index.kept((*key, "codes"), lambda: rank(column(i), levels))
    values = levels if are_all(levels) else index.kept((*key, "values"), lambda: column(i))
    return RankedColumn(levels, codes, values)


def _read(store: Database, index: FeatureIndex, ensemble: str, explainer: str, kind: str) -> tuple[np.ndarray, ...]:
    """(rows,) flags, scores and chance levels of the scored features; NaN where there is none."""
    flags = np.zeros(index.n_rows, np.uint8)
    score, shuffled_p95 = np.full((2, index.n_rows), np.nan, np.float32)
    where = "FROM {} WHERE ensemble = $ensemble AND explainer = $by"
    parameters = {"ensemble": ensemble, "by": explainer}

    def flag(batch: pa.RecordBatch, name: str, flag: np.uint8) -> np.ndarray:
        return batch[name].to_numpy(zero_copy_only=False).astype(np.uint8) * flag

    columns = "seed, feature, text IS NOT NULL AS explained, failure IS NOT NULL AS failed"
    for batch in store.batches(f"SELECT {columns} {where.format('Explanation')}", parameters):
        rows = index.rows_at(batch["seed"], batch["feature"])
        flags[rows] = _ASKED | flag(batch, "explained", _EXPLAINED) | flag(batch, "failed", _FAILED)
    columns = "seed, feature, value, shuffled_p95, failure IS NOT NULL AS failed"
    sql = f"SELECT {columns} {where.format('Score')} AND kind = $kind"
    for batch in store.batches(sql, parameters | {"kind": kind}):
        rows = index.rows_at(batch["seed"], batch["feature"])
        flags[rows] |= flag(batch, "failed", _FAILED)
        score[rows] = batch["value"].to_numpy(zero_copy_only=False)
        shuffled_p95[rows] = batch["shuffled_p95"].to_numpy(zero_copy_only=False)
    shuffled_p95[np.isnan(score)] = np.nan
    flags |= ~np.isnan(score) * _SCORED
    flags |= (score > shuffled_p95) * _ABOVE
    return flags, score, shuffled_p95
