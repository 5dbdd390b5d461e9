"""The table of a site as Parquet: what DuckDB-WASM filters, sorts, counts and searches by (static/site-query.js)."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMPRESSION = "zstd"
_TYPES: dict[str, pa.DataType] = {
    "i": pa.int32(), "seed": pa.string(), "feature": pa.int32(), "bucket": pa.string(), "trigger": pa.string(),
    "n_matched": pa.int32(), "n_active": pa.int64(), "density": pa.float64(), "worth_ev": pa.float64(),
    "worth_loss": pa.float64(), "cofiring": pa.float64(), "max_activation": pa.float64(), "token_entropy": pa.float64(),
    "score": pa.float64(), "predicted": pa.float64(),
}  # fmt: skip
_SEARCHED: dict[str, pa.DataType] = {
    "i": pa.int32(), "explanation": pa.string(), "top_tokens": pa.list_(pa.int32()), "top_token_counts": pa.list_(pa.int64()),
}  # fmt: skip


def parquet_files(blocks: list[dict[str, list[Any]]]) -> dict[str, bytes]:
    """{name: content}: `table.parquet` with the numbers of all rows, `search.parquet` with what a search reads besides.

    `blocks` are those of `RowTable.columns`, in the order of the rows; `i` counts the rows from 0. Values are the very ones
    that the blocks hold, so that both ways to the table compare the same numbers.
    """
    rows = [len(block["seed"]) for block in blocks]
    return {"table.parquet": _file(blocks, rows, _TYPES), "search.parquet": _file(blocks, rows, _SEARCHED)}


def _file(blocks: list[dict[str, list[Any]]], rows: list[int], types: dict[str, pa.DataType]) -> bytes:
    values = {
        name: [each for block, n in zip(blocks, rows, strict=True) for each in block.get(name) or [None] * n]
        for name in types
    }
    values["i"] = list(range(sum(rows)))
    table = pa.table({name: pa.array(values[name], type=kind) for name, kind in types.items()})
    file = io.BytesIO()
    pq.write_table(table, file, compression=COMPRESSION)
    return file.getvalue()
