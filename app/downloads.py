"""Rows as CSV, Parquet or JSON, encoded some at a time: memory does not grow with the number of rows."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

ROWS_AT_ONCE = 512  # that become Python objects in one call, which keeps all other threads from running

Encoder = Callable[[pa.Schema, Iterator[pa.RecordBatch], dict[str, Any]], Iterator[bytes]]


class _Sink(io.RawIOBase):
    """A file that hands on what was written to it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, content: Any) -> int:
        self._parts.append(bytes(content))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def taken(self) -> bytes:
        """What was written since it was taken last."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The same rows, a few at a time; none of an empty batch."""
    return (batch.slice(begin, ROWS_AT_ONCE) for begin in range(0, len(batch), ROWS_AT_ONCE))


def _json(schema: pa.Schema, batches: Iterator[pa.RecordBatch], about: dict[str, Any]) -> Iterator[bytes]:
    """An object with the fields of `about` and the rows."""
    yield json.dumps(about, ensure_ascii=False)[:-1].encode() + b', "rows": ['
    between = ""
    for batch in filter(len, batches):  # nothing stands between rows that are not there
        rows = ", ".join(json.dumps(row, ensure_ascii=False) for some in _slices(batch) for row in some.to_pylist())
        yield (between + rows).encode()
        between = ", "
    yield b"]}"


def _csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch], about: dict[str, Any]) -> Iterator[bytes]:
    sink = _Sink()
    flat = _lists_as_json(schema.empty_table()).schema
    with pyarrow.csv.CSVWriter(sink, flat) as writer:
        for batch in batches:
            for some in _slices(batch):
                writer.write_table(_harmless(_lists_as_json(pa.Table.from_batches([some])).cast(flat)))
            yield sink.taken()
    yield sink.taken()


def _parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch], about: dict[str, Any]) -> Iterator[bytes]:
    sink = _Sink()
    with pyarrow.parquet.ParquetWriter(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield sink.taken()
    yield sink.taken()


def _harmless(table: pa.Table) -> pa.Table:
    """Texts that a spreadsheet would take for a formula begin with an apostrophe, which it takes for the sign of a text."""
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            is_formula = pc.match_substring_regex(table[i], r"^[=+\-@\t\r\n]")
            if pc.any(is_formula).as_py():
                quoted = pc.binary_join_element_wise("'", table[i], "")
                table = table.set_column(i, field, pc.if_else(pc.fill_null(is_formula, False), quoted, table[i]))
    return table


def _lists_as_json(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [
                None if values is None else json.dumps(values, ensure_ascii=False) for values in table[i].to_pylist()
            ]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table


ENCODERS: dict[str, Encoder] = {"json": _json, "csv": _csv, "parquet": _parquet}
