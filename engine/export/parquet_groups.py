"""Reads the Parquet files of an export, which may come from anywhere: columns and types are checked, memory is bounded first.

A small file can stand for a large table: repeated values are stored once, and texts once for all of their rows. So a row group is
read only where the numbers of values that it declares fit, and texts are counted before they are written out.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seedscope.engine.contract import schema
from seedscope.engine.machine import available_memory

MOST_VALUES = 2**27  # of one column in a row group: a gigabyte of 64-bit numbers
MOST_TEXT = 2**30  # bytes of texts of one column in a row group
_IS_KIND = {
    int: pa.types.is_integer,
    float: pa.types.is_floating,
    bool: pa.types.is_boolean,
    str: lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}
_ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
Types = dict[str, schema.Column]


class GroupedFile:
    """A Parquet file of an export, read one row group at a time; raises ValueError naming the file for whatever is wrong with it.

    `types` are the columns that it must have; those that an export of a former schema lacks are filled in where `defaults` says
    with what. Used as a context manager, it is closed at the end.
    """

    def __init__(self, path: Path, types: Types, defaults: dict[str, Any] | None = None) -> None:
        self._path, self._types = path, types
        with _named(path):
            present = pq.read_schema(path).names
            texts = [name for name, column in types.items() if column.kind is str and not column.is_list]
            self._file = pq.ParquetFile(path, read_dictionary=[name for name in texts if name in present])
        self._filled = {name: value for name, value in (defaults or {}).items() if name not in present}
        self._names = [name for name in types if name not in self._filled]
        self._require_types({name: types[name] for name in self._names})

    def __enter__(self) -> "GroupedFile":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._file.num_row_groups

    def _require_types(self, types: Types) -> None:
        present = self._file.schema_arrow
        for name, (kind, is_list, _) in types.items():
            found = present.field(name).type if name in present.names else None
            if found is None or present.names.count(name) > 1:
                raise ValueError(f"{self._path} has {present.names.count(name)} columns {name}, expected one")
            found = found.value_type if pa.types.is_dictionary(found) else found
            element = found.value_type if pa.types.is_list(found) or pa.types.is_large_list(found) else None
            plain = element if is_list else found
            # A column without any value may have been written without a type.
            if plain is None or not (_IS_KIND[kind](plain) or pa.types.is_null(plain)):
                wanted = f"{'lists of ' * is_list}{kind.__name__}"
                raise ValueError(f"{self._path}, column {name}: found {str(found)[:80]}, expected {wanted}")

    def read(self, group: int) -> pa.Table:
        """One row group, with the columns of `types` alone, in their order."""
        with _named(self._path):
            self._require_room(group)
            table = self._file.read_row_group(group, columns=self._names)
            for at, name in enumerate(table.column_names):
                column = table.column(at)
                if pa.types.is_dictionary(column.type):
                    table = table.set_column(at, name, self._written_out(name, column))
        for name, default in self._filled.items():
            if default is MISSING and len(table):
                raise ValueError(
                    f"{self._path} has no column {name}; export the study again with the version that wrote it"
                )
            kind, is_list, _ = self._types[name]
            element = _ARROW[kind]
            values = [None if default is MISSING else default] * len(table)
            table = table.append_column(name, pa.array(values, pa.list_(element) if is_list else element))
        return table.select(list(self._types))

    def _require_room(self, group: int) -> None:
        """Raise ValueError where a row group declares more values than it may hold, or than there is memory for."""
        metadata = self._file.metadata.row_group(group)
        chunks = [metadata.column(i) for i in range(metadata.num_columns)]
        largest = max((chunk.num_values for chunk in chunks), default=0)
        n_bytes = sum(8 * chunk.num_values + max(chunk.total_uncompressed_size, 0) for chunk in chunks)
        if largest > MOST_VALUES or metadata.num_rows > MOST_VALUES or n_bytes > available_memory() // 2:
            raise ValueError(
                f"{self._path} declares {largest:,} values of a column in row group {group}, {n_bytes:,} bytes: more than an "
                f"export has ({MOST_VALUES:,}) or than there is memory for"
            )

    def _written_out(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column of texts that are stored once, each in its place."""
        n_bytes = 0
        for chunk in column.chunks:
            lengths = pc.fill_null(pc.binary_length(chunk.dictionary).take(chunk.indices), 0)
            n_bytes += pc.sum(lengths.cast(pa.int64())).as_py() or 0
        if n_bytes > MOST_TEXT:
            raise ValueError(f"{self._path}, column {name}: {n_bytes:,} bytes of texts, expected at most {MOST_TEXT:,}")
        return column.cast(column.type.value_type)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever Arrow says of a file, as a ValueError in one line that names it: hostile bytes fail in any way."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise _damaged(path, error) from None
    except (pa.ArrowException, OSError, KeyError, TypeError, MemoryError, NotImplementedError, OverflowError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> ValueError:
    first = " ".join(str(error).split())[:200]
    return ValueError(
        f"{path} cannot be read ({type(error).__name__}: {first}); copy the export again, or make it again"
    )


def lacks_columns(path: Path, names: Iterable[str]) -> bool:
    """Whether a file has not all of these columns, as those of former schemas; raises ValueError for one that cannot be read."""
    with _named(path):
        return bool(set(names) - set(pq.read_schema(path).names))


def groups(path: Path, types: Types, defaults: dict[str, Any] | None = None) -> Iterator[pa.Table]:
    """The row groups of a file that hold rows."""
    with GroupedFile(path, types, defaults) as file:
        for i in range(len(file)):
            group = file.read(i)
            if len(group):
                yield group
