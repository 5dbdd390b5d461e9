"""Writer: validate rows, write a temporary DuckDB file, publish it under a new name. Readers never see half a study."""

import hashlib
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from engine import schema

_ARROW = {int: pa.int32(), float: pa.float32(), bool: pa.bool_(), str: pa.string()}
_SQL = {int: "INTEGER", float: "FLOAT", bool: "BOOLEAN", str: "VARCHAR"}
# Sums over tokens and settings keep their digits; cosines and activations are float32 as computed.
_DOUBLE = {(schema.Ensemble, "lr"), (schema.Ensemble, "theta"), (schema.Ensemble, "epsilon"), (schema.Member, "ev"),
           (schema.Member, "l0"), (schema.Ablation, "ev"), (schema.Ablation, "ev_sd"), (schema.Feature, "density"),
           (schema.Feature, "worth_ev")}  # fmt: skip


class Writer:
    """Collects the tables of one study and publishes them together.

    `add` takes columns as arrays or lists, lists of numbers as 2-d arrays (rows, entries) or ragged lists; every column
    of the schema must be there, all of one length.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[type, list[pa.Table]] = {table: [] for table in schema.TABLES}

    def add(self, table: type, columns: dict[str, Any]) -> None:
        """Append rows to a table; raises ValueError on missing, unknown or unequal columns and on NaN."""
        wanted = schema.columns(table)
        if set(columns) != set(wanted):
            missing, unknown = sorted(set(wanted) - set(columns)), sorted(set(columns) - set(wanted))
            raise ValueError(f"table {table.__name__}: missing columns {missing}, unknown columns {unknown}")
        lengths = {name: len(values) for name, values in columns.items() if not isinstance(values, str)}
        n_rows = max(lengths.values())
        arrays = {}
        for name, (kind, is_list) in wanted.items():
            values = columns[name]
            if isinstance(values, str):
                values = [values] * n_rows
            element = pa.float64() if (table, name) in _DOUBLE else _ARROW[kind]
            arrays[name] = _list_array(values, element) if is_list else pa.array(values, element)
            numbers = arrays[name].flatten() if is_list else arrays[name]
            if kind is float and not np.isfinite(numbers.to_numpy(zero_copy_only=False)).all():
                raise ValueError(f"table {table.__name__}, column {name}: found a value that is not finite")
        if len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(f"table {table.__name__}: columns of unequal length {lengths}")
        self._parts[table].append(pa.table(arrays))

    def publish(self, *, built_from: str) -> Path:
        """Write everything to `study-<digest>.duckdb` and point CURRENT at it; returns the store's path.

        The previous store stays until the next publish, because a reader may hold it open; older ones are removed.
        """
        tables = {}
        for table, parts in self._parts.items():
            if not parts:
                raise ValueError(f"table {table.__name__} has no rows; nothing is published")
            keys = [(key, "ascending") for key in schema.SORT_KEYS[table]]
            tables[table] = pa.concat_tables(parts).sort_by(keys).combine_chunks()
        target = self._folder / f"study-{_digest(tables)}.duckdb"
        temporary = target.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with duckdb.connect(str(temporary)) as connection:
            for table, rows in tables.items():
                definition = ", ".join(
                    f'"{name}" {"DOUBLE" if (table, name) in _DOUBLE else _SQL[kind]}{"[]" if is_list else ""} NOT NULL'
                    for name, (kind, is_list) in schema.columns(table).items()
                )
                connection.execute(f"CREATE TABLE {table.__name__} ({definition})")
                connection.register("incoming", rows)
                connection.execute(f"INSERT INTO {table.__name__} SELECT * FROM incoming")
                connection.unregister("incoming")
            connection.execute("CHECKPOINT")
        temporary.replace(target)
        _point_current(self._folder, target.name, built_from)
        return target


def published(folder: Path) -> tuple[str, str] | None:
    """(store file name, what it was built from) of a study folder, or None where nothing is published."""
    try:
        name, built_from = (folder / schema.CURRENT).read_text().splitlines()
    except (FileNotFoundError, ValueError):
        return None
    return (name, built_from) if (folder / name).is_file() else None


def _point_current(folder: Path, name: str, built_from: str) -> None:
    previous = published(folder)
    temporary = folder / (schema.CURRENT + ".tmp")
    with open(temporary, "w") as file:
        file.write(f"{name}\n{built_from}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / schema.CURRENT)
    keep = {name, previous[0] if previous else name}
    for store in folder.glob("study-*"):
        if store.name not in keep:
            store.unlink(missing_ok=True)


def _list_array(values: Any, element: pa.DataType) -> pa.ListArray:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), element))
    lengths = [len(entry) for entry in values]
    flat = np.concatenate([np.asarray(entry) for entry in values]) if lengths else np.array([])
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, element))


def _digest(tables: dict[type, pa.Table]) -> str:
    """16 hex digits over schema, column values and list lengths of the sorted rows; never over a file or a time."""
    sha = hashlib.sha256(str(schema.SCHEMA_VERSION).encode())
    for table, rows in tables.items():
        for name in rows.column_names:
            column = rows.column(name).combine_chunks()
            sha.update(f"{table.__name__}.{name}:{column.type}:{len(column)}".encode())
            if pa.types.is_list(column.type):
                sha.update(np.diff(column.offsets.to_numpy()).tobytes())
                column = column.flatten()
            if pa.types.is_string(column.type):
                for text in column.to_pylist():
                    sha.update(len(text).to_bytes(4, "little") + text.encode())
            else:
                sha.update(column.to_numpy(zero_copy_only=False).tobytes())
    return sha.hexdigest()[:16]
