"""What counterparts do as rows of the contract."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.tables.function import (
    COUNTERPART_KINDS,
    FunctionSummary,
    SmallSet,
    Substitute,
    TransportPlan,
)
from seedscope.engine.features.function import MemberFunction
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import row_keys


def known(values: np.ndarray) -> list[float | None]:
    """Numbers as the Writer takes them: NaN, which stands for what is not defined, as None."""
    return [None if np.isnan(value) else value for value in values.tolist()]


def add_substitutes(writer: Writer, ensemble: str, seed: int, function: MemberFunction) -> None:
    """One member's counterparts of every kind that was computed."""
    for kind in sorted(COUNTERPART_KINDS):
        of_kind = function.kinds.get(kind)
        if of_kind is None:
            continue
        d_sae, n_comparisons = of_kind.partner.shape
        raw, scaled = (_where_defined(values) for values in (of_kind.raw, of_kind.scaled))
        columns = {
            "kind": np.full(d_sae, kind),
            "partners": of_kind.partner,
            "cosines": of_kind.cosine,
            "correlations": of_kind.correlation,
            "jaccards": of_kind.jaccard,
            "substitutions": raw,
            "scaled_substitutions": scaled,
        }
        if n_comparisons:
            writer.add(Substitute, row_keys(ensemble, seed, np.arange(d_sae)) | columns)


def _where_defined(scores: np.ndarray) -> list[np.ndarray]:
    """A list per feature, empty where its scores are not defined."""
    defined = ~np.isnan(scores).any(1)
    return [row if is_defined else row[:0] for row, is_defined in zip(scores, defined, strict=True)]


def as_columns(table: type, rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """Rows of a table, without the ensemble, as arrays of a part, named `Table.column`.

    NaN stands for None; lists are filled up with NaN, those of whole numbers with -1.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, is_list, _) in schema.columns(table).items():
        values = [getattr(row, name) for row in rows]
        if name == "ensemble" or not rows:
            continue
        if is_list:
            width, filler = max(map(len, values)), -1 if kind is int else np.nan
            values = [[*each, *[filler] * (width - len(each))] for each in values]
        if kind is float and not is_list:
            values = [np.nan if value is None else value for value in values]
        arrays[f"{table.__name__}.{name}"] = np.array(values)
    return arrays


def add_summaries(writer: Writer, ensemble: str, arrays: Mapping[str, np.ndarray]) -> None:
    """The rows of an ensemble's tables that `as_columns` made arrays of."""
    for table in (SmallSet, TransportPlan, FunctionSummary):
        columns: dict[str, Any] = {"ensemble": ensemble}
        for name, (kind, is_list, _) in schema.columns(table).items():
            values = arrays.get(f"{table.__name__}.{name}")
            if values is None:
                continue
            if is_list:
                ends = ((values >= 0) if kind is int else ~np.isnan(values)).sum(1)
                columns[name] = [row[:end] for row, end in zip(values, ends, strict=True)]
            else:
                columns[name] = known(values) if kind is float else values.tolist()
        if len(columns) > 1:
            writer.add(table, columns)
