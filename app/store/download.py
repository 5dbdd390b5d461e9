"""The features that a query finds as one table, which says by which settings they were judged."""

import json
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa

from seedscope.app.formats import recipe_remark
from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.stability import BUCKETS

METADATA_KEY = b"seedscope"  # of a Parquet file's schema metadata: `described` as JSON


def feature_download(store: Database, query: FeatureQuery) -> pa.Table:
    """All features that a query finds, in its order, one row each.

    Each row names theta, epsilon, rule and the data's digest, so that a part of the file still says what its numbers mean, and
    its page (`permalink`, a path under any dashboard that serves the study). The schema's metadata holds the whole query.
    """
    row = store.ensembles[query.ensemble]
    n = row.n_comparisons
    remarks: dict[str, str | None] = {"of_anchor": None, "of_others": None}
    if row.anchor is not None:
        remarks = {"of_anchor": recipe_remark(row.anchor, n, row.anchor), "of_others": recipe_remark(row.anchor, n, -1)}
    columns = (
        "density, n_active, n_tokens, mean_activation, max_activation, decoder_norm, worth_ev, worth_loss, trigger, "
        "trigger_share, trigger_what, token_entropy, top_token_share, explanation, explainer, score"
    )
    table = FeatureTable(store, query)
    rows = table.select_arrow(
        f"SELECT ensemble, seed, feature, n_matched / nullif({n:d}, 0) AS stability, n_matched, {n:d} AS n_comparisons, "
        f"{list(BUCKETS)}[bucket + 1] AS bucket, dead, {columns}, coalesce(seed = $anchor::BIGINT, false) AS anchor, "
        f"CASE WHEN seed = $anchor::BIGINT THEN $of_anchor::VARCHAR ELSE $of_others::VARCHAR END AS remark, "
        "$theta_said::DOUBLE AS theta, $epsilon_said::DOUBLE AS epsilon, $rule_said::VARCHAR AS rule, "
        "$digest::VARCHAR AS digest, $base::VARCHAR || seed || '/' || feature || $link::VARCHAR AS permalink, "
        f"top_token_ids, top_token_counts FROM filtered ORDER BY {table.order}",
        remarks
        | {"anchor": row.anchor, "theta_said": query.theta, "epsilon_said": query.epsilon, "rule_said": query.rule}
        | {"digest": row.digest, "base": f"/s/{store.study.study}/{row.ensemble}/", "link": "?" + urlencode(_link(store, query))},
    )  # fmt: skip
    return _with_tokens(store, query, rows).replace_schema_metadata(
        {METADATA_KEY: json.dumps(described(store, query)).encode()}
    )


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


def _with_tokens(store: Database, query: FeatureQuery, rows: pa.Table) -> pa.Table:
    """Ids and counts of top tokens replaced by the tokens and the shares of the feature's firings on them."""
    ids, counts, n_active = (rows[name].to_pylist() for name in ("top_token_ids", "top_token_counts", "n_active"))
    rows = rows.drop_columns(["top_token_ids", "top_token_counts"])
    tokens: list[list[str] | None] = [None] * len(rows)
    shares: list[list[float] | None] = [None] * len(rows)
    if store.has(query.ensemble, "activity"):
        tokens = [[store.tokens[i] for i in line if i >= 0] for line in ids]
        shares = [
            [n / (total or 1) for i, n in zip(line, firings, strict=True) if i >= 0]
            for line, firings, total in zip(ids, counts, n_active, strict=True)
        ]
    rows = rows.append_column("top_tokens", pa.array(tokens, pa.list_(pa.string())))
    return rows.append_column("top_token_shares", pa.array(shares, pa.list_(pa.float64())))
