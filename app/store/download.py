"""The features that a query finds as one table, which says by which settings they were judged."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa

from seedscope.app.formats import recipe_remark
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable, optional
from seedscope.engine.contract.index import layout
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.stability import BUCKETS

BATCH_ROWS = 16_384
_FIELDS = [
    ("ensemble", pa.string()), ("seed", pa.int64()), ("feature", pa.int32()), ("stability", pa.float64()),
    ("n_matched", pa.uint16()), ("n_comparisons", pa.int32()), ("bucket", pa.string()), ("dead", pa.bool_()),
    ("density", pa.float64()), ("n_active", pa.int64()), ("n_tokens", pa.int64()), ("mean_activation", pa.float32()),
    ("max_activation", pa.float32()), ("decoder_norm", pa.float32()), ("worth_ev", pa.float64()),
    ("worth_loss", pa.float64()), ("cofiring", pa.float32()), ("substitution", pa.float32()), ("predicted", pa.float32()),
    ("trigger", pa.string()),
    ("trigger_share", pa.float32()), ("trigger_what", pa.string()),
    ("token_entropy", pa.float32()), ("top_token_share", pa.float32()), ("explanation", pa.string()),
    ("explainer", pa.string()), ("score", pa.float32()), ("anchor", pa.bool_()), ("remark", pa.string()),
    ("theta", pa.float64()), ("epsilon", pa.float64()), ("rule", pa.string()), ("digest", pa.string()),
    ("permalink", pa.string()), ("top_tokens", pa.list_(pa.string())), ("top_token_shares", pa.list_(pa.float64())),
]  # fmt: skip
METADATA_KEY = b"seedscope"  # of a Parquet file's schema metadata: `described` as JSON


@dataclass(frozen=True)
class FeatureDownload:
    """The features that a query finds, in its order, some at a time: however many they are, few are in memory."""

    schema: pa.Schema
    n: int
    batches: Iterator[pa.RecordBatch]

    def table(self) -> pa.Table:
        """All of them at once."""
        return pa.Table.from_batches(self.batches, self.schema)


def feature_download(store: Database, query: FeatureQuery) -> FeatureDownload:
    """All features that a query finds, in its order, one row each.

    Each row names theta, epsilon, rule and the data's digest, so that a part of the file still says what its numbers mean, and
    its page (`permalink`, a path under any dashboard that serves the study). The schema's metadata holds the whole query.
    """
    schema = pa.schema(_FIELDS, {METADATA_KEY: json.dumps(described(store, query)).encode()})
    table = FeatureTable(store, query)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = table.selection.order.whole()
        for begin in range(0, len(rows), BATCH_ROWS):
            yield _batch(store, table, rows[begin : begin + BATCH_ROWS].astype(np.int64), schema)

    return FeatureDownload(schema, table.count(), batches())


def _batch(store: Database, table: FeatureTable, rows: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of some rows."""
    index, query = table.index, table.query
    row = store.ensembles[query.ensemble]
    n, link = row.n_comparisons, "?" + urlencode(_link(store, query))
    matched, buckets = table.judged(rows)
    seeds, features = index.seed_of(rows), rows % index.d_sae
    status, triggers = index.column("status")[rows], index.column("trigger_code")[rows]
    texts = index.texts(rows)
    tokens, shares = _tokens(store, query, texts, index.column("n_active")[rows])
    remark = {row.anchor: recipe_remark(row.anchor, n, row.anchor)} if row.anchor is not None else {}
    of_others = recipe_remark(row.anchor, n, -1) if row.anchor is not None else None
    base = f"/s/{store.study.study}/{row.ensemble}"
    values: dict[str, Any] = {name: optional(index.column(name)[rows]) for name in layout.scalar_columns()}
    p = table.selection.column("predicted")[rows] if store.is_predicted(row.ensemble) else np.full(len(rows), np.nan)
    values |= {
        "predicted": optional(p),
        "ensemble": [row.ensemble] * len(rows),
        "seed": seeds,
        "feature": features,
        "stability": matched / n if n else [None] * len(rows),
        "n_matched": matched,
        "n_comparisons": np.full(len(rows), n),
        "bucket": [BUCKETS[code] if code < len(BUCKETS) else None for code in buckets.tolist()],
        "dead": [None if code == layout.UNKNOWN else code == layout.DEAD for code in status.tolist()],
        "trigger": [None if code == layout.NO_TRIGGER else TRIGGERS[code] for code in triggers.tolist()],
        "anchor": seeds == row.anchor if row.anchor is not None else np.zeros(len(rows), bool),
        "remark": [remark.get(seed, of_others) for seed in seeds.tolist()],
        "theta": np.full(len(rows), query.theta),
        "epsilon": np.full(len(rows), query.epsilon),
        "rule": [query.rule] * len(rows),
        "digest": [row.digest] * len(rows),
        "permalink": [f"{base}/{s}/{f}{link}" for s, f in zip(seeds.tolist(), features.tolist(), strict=True)],
        "top_tokens": tokens,
        "top_token_shares": shares,
        **{name: texts[name] for name in ("trigger_what", "explanation", "explainer")},
    }
    arrays = [pa.array(values[field.name], field.type, from_pandas=False) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def described(store: Database, query: FeatureQuery) -> dict[str, Any]:
    """What a download holds, and by which settings its numbers were made."""
    judged = ("ensemble", "theta", "epsilon", "rule", "dead", "sort", "descending")
    chosen = {k: v for k, v in vars(query).items() if k not in judged and v is not None}
    row = store.ensembles[query.ensemble]
    return {
        "study": store.study.study, "ensemble": row.ensemble, "digest": row.digest, "theta": query.theta,
        "epsilon": query.epsilon, "rule": query.rule, "dead": query.dead, "filter": chosen, "sort": query.sorted_by,
        "descending": query.descending,
    }  # fmt: skip


def _link(store: Database, query: FeatureQuery) -> dict[str, Any]:
    """Parameters of a permalink: the digest, and of the judgement what differs from the ensemble's own."""
    row = store.ensembles[query.ensemble]
    link: dict[str, Any] = {"v": row.digest}
    link |= {name: value for name, value, own in (
        ("theta", query.theta, row.theta), ("epsilon", query.epsilon, row.epsilon), ("rule", query.rule, "argmax"),
    ) if value != own}  # fmt: skip
    return link | ({"dead": "count"} if query.dead == "count" else {})


def _tokens(
    store: Database, query: FeatureQuery, texts: dict[str, list[Any]], n_active: np.ndarray
) -> tuple[list[list[str] | None], list[list[float] | None]]:
    """Top tokens, and the shares of the feature's firings on them; None without activity."""
    ids, counts = texts["top_token_ids"], texts["top_token_counts"]
    if not store.has(query.ensemble, "activity"):
        return [None] * len(ids), [None] * len(ids)
    words = [[store.tokens[i] for i in line if i >= 0] for line in ids]
    shares: list[list[float] | None] = [
        [n / (total if total > 0 else 1) for i, n in zip(line, firings, strict=True) if i >= 0]
        for line, firings, total in zip(ids, counts, n_active.tolist(), strict=True)
    ]
    return list(words), shares
