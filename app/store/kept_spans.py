"""Kept shared spans of an ensemble, their table and the basis of one, for texts and notebooks."""

import numpy as np
import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.errors import BadValue, NotFound
from seedscope.engine.contract.tables.shared_spans import SharedSpan, SharedSpanDirection, SharedSpanExplanation

_NAMED = 20  # spans that a refusal lists


def kept_spans(store: Database, ensemble: str) -> list[SharedSpan] | None:
    """By number; None where the ensemble was not searched."""
    if not store.has(ensemble, "shared_spans"):
        return None
    return sorted(store.rows(SharedSpan, "ensemble = ? AND kept", [ensemble]), key=lambda row: row.number)


def kept_span(store: Database, ensemble: str, span: str) -> SharedSpan:
    """The kept span with an id; raises NotFound naming those there are."""
    kept = kept_spans(store, ensemble)
    for row in kept or ():
        if row.span == span:
            return row
    named = ", ".join(row.span for row in (kept or ())[:_NAMED])
    none = (
        "none was kept" if kept is not None else f"none: {store.missing(ensemble).get('shared_spans', 'not searched')}"
    )
    raise NotFound("kept span", span, named or none)


def span_explanations(store: Database, ensemble: str) -> list[SharedSpanExplanation]:
    """What explainers say of kept spans as wholes; raises BadValue where the ensemble was not searched."""
    _require_searched(store, ensemble)
    return store.rows(SharedSpanExplanation, "ensemble = ?", [ensemble])


def candidates_table(store: Database, ensemble: str) -> pa.Table:
    """All candidates, kept ones first: the columns of SharedSpan. Raises BadValue where the ensemble was not searched."""
    _require_searched(store, ensemble)
    return store.arrow("SELECT * FROM SharedSpan WHERE ensemble = $ensemble ORDER BY number", {"ensemble": ensemble})


def _require_searched(store: Database, ensemble: str) -> None:
    if not store.has(ensemble, "shared_spans"):
        command = f"seedscope analyze {store.study.study} --only shared_spans"
        raise BadValue("ensemble", repr(ensemble), f"one that was searched for shared spans: {command}")


def span_basis(store: Database, ensemble: str, span: str) -> np.ndarray:
    """(rank, d_out) orthonormal rows of a kept span, all seeds together, the strongest first, float32; raises NotFound."""
    kept_span(store, ensemble, span)
    axes = store.rows(SharedSpanDirection, "ensemble = ? AND span = ? AND basis = -1", [ensemble, span])
    return np.array([axis.vector for axis in sorted(axes, key=lambda axis: axis.axis)], np.float32)
