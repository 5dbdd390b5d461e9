"""Rows that are encoded some at a time, read back by other readers."""

import io
import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.downloads import ENCODERS

SCHEMA = pa.schema([("feature", pa.int64()), ("tokens", pa.list_(pa.string()))])
ROWS = [{"feature": 1, "tokens": ["a", "b"]}, {"feature": 2, "tokens": None}, {"feature": 3, "tokens": []}]


def batches(*sizes):
    rows = iter(ROWS)
    return iter([pa.RecordBatch.from_pylist([next(rows) for _ in range(size)], SCHEMA) for size in sizes])


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (0, 1, 0, 2, 0)])
def test_rows_are_the_same_however_they_come(sizes):
    content = {kind: b"".join(encode(SCHEMA, batches(*sizes), {"n": 3})) for kind, encode in ENCODERS.items()}
    assert json.loads(content["json"]) == {"n": 3, "rows": ROWS}
    assert pa.parquet.read_table(io.BytesIO(content["parquet"])).to_pylist() == ROWS
    table = pa.csv.read_csv(io.BytesIO(content["csv"]))
    assert table["feature"].to_pylist() == [1, 2, 3]
    assert table["tokens"].to_pylist() == ['["a", "b"]', "", "[]"]


def test_without_rows_each_file_is_whole():
    for sizes in ((), (0,)):
        content = {kind: b"".join(encode(SCHEMA, batches(*sizes), {"n": 0})) for kind, encode in ENCODERS.items()}
        assert json.loads(content["json"]) == {"n": 0, "rows": []}
        assert pa.parquet.read_table(io.BytesIO(content["parquet"])).schema.names == SCHEMA.names
        assert content["csv"].decode().strip() == '"feature","tokens"'
