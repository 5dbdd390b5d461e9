"""What counterparts do over whole buckets: means and shares over pairs, with intervals from a bootstrap over seeds."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from seedscope.engine.contract.stability import bucket_bounds, seed_bootstrap_ratio
from seedscope.engine.contract.tables.function import (
    COUNTERPART_KINDS,
    FUNCTION_BUCKETS,
    SUBSTITUTES,
    FunctionSummary,
)
from seedscope.engine.features.function import MemberFunction, OfKind

NOTHING: dict[str, Any] = {field.name: None for field in fields(FunctionSummary)}


def summarise(
    ensemble: str, functions: Sequence[MemberFunction], buckets: Sequence[np.ndarray], epsilon: float
) -> list[FunctionSummary]:
    """A row per bucket and kind that was computed; `buckets` are (d_sae,) names of every member's features."""
    kinds = [kind for kind in COUNTERPART_KINDS if kind in functions[0].kinds]
    return [
        _summary(
            ensemble,
            bucket,
            kind,
            [function.kinds[kind] for function in functions],
            [_in_bucket(names, bucket) for names in buckets],
            epsilon,
        )
        for bucket in FUNCTION_BUCKETS
        for kind in kinds
    ]


def _in_bucket(names: np.ndarray, bucket: str) -> np.ndarray:
    return np.isin(names, FUNCTION_BUCKETS[:3]) if bucket == "living" else names == bucket


def _summary(
    ensemble: str, bucket: str, kind: str, members: list[OfKind], chosen: list[np.ndarray], epsilon: float
) -> FunctionSummary:
    n = len(members)
    cells = {
        name: np.zeros((n, n))
        for name in ("pairs", "scored", "cosine", "correlation", "jaccard", "raw", "scaled", "beside")
    }
    n_always = n_defined = 0
    for anchor, (of_kind, rows) in enumerate(zip(members, chosen, strict=True)):
        others = [other for other in range(n) if other != anchor]
        some = OfKind(*(array[rows] for array in of_kind))
        has = some.partner >= 0
        scored = has & ~np.isnan(some.raw)
        values = {
            "pairs": has, "scored": scored, "cosine": np.where(has, some.cosine, 0),
            "correlation": some.correlation * has, "jaccard": some.jaccard * has,
            "raw": scored & (some.raw >= SUBSTITUTES), "scaled": scored & (some.scaled >= SUBSTITUTES),
            "beside": scored & (some.beside >= SUBSTITUTES),
        }  # fmt: skip
        for name, of_pairs in values.items():
            cells[name][anchor, others] = of_pairs.sum(0, dtype=np.float64)
        defined = ~np.isnan(some.raw).any(1) & has.any(1)
        needed = bucket_bounds(len(others), epsilon).stable
        n_defined += int(defined.sum())
        n_always += int((values["raw"].sum(1) >= needed)[defined].sum())

    def share(name: str, of: str) -> float | None:
        below = cells[of].sum()
        return float(cells[name].sum() / below) if below else None

    def with_interval(column: str, name: str, of: str) -> dict[str, float | None]:
        low, high = (cells[of].sum() and seed_bootstrap_ratio(cells[name], cells[of])) or (None, None)
        return {column: share(name, of), f"{column}_low": low, f"{column}_high": high}

    return FunctionSummary(
        ensemble=ensemble,
        bucket=bucket,
        kind=kind,
        n_features=int(sum(rows.sum() for rows in chosen)),
        n_pairs=int(cells["pairs"].sum()),
        n_scored=int(cells["scored"].sum()),
        cosine=share("cosine", "pairs"),
        beside_share=share("beside", "scored"),
        always_share=n_always / n_defined if n_defined else None,
        **with_interval("correlation", "correlation", "pairs"),
        **with_interval("jaccard", "jaccard", "pairs"),
        **with_interval("raw_share", "raw", "scored"),
        **with_interval("scaled_share", "scaled", "scored"),
    )


def summary_of_sets(ensemble: str, bucket: str, kind: str, reached: np.ndarray, count: np.ndarray) -> FunctionSummary:
    """A row of small sets: `reached` of `count` sets, both (members, members), have a score of at least SUBSTITUTES."""
    low, high = seed_bootstrap_ratio(reached, count) or (None, None)
    n = int(count.sum())
    of_sets = {"ensemble": ensemble, "bucket": bucket, "kind": kind, "n_features": n, "n_pairs": n, "n_scored": n}
    shares = {"scaled_share": float(reached.sum() / n), "scaled_share_low": low, "scaled_share_high": high}
    return FunctionSummary(**(NOTHING | of_sets | shares))
