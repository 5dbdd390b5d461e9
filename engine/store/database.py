"""Writer: validate rows, stream them to a temporary DuckDB file, publish it under a new name: nobody sees half a study.

Reader: the rows of a published store again, table by table and part by part.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from seedscope.engine.contract import schema
from seedscope.engine.contract.duckdb_settings import READ_ONLY
from seedscope.engine.contract.published import PublishedStore, publish_store, published
from seedscope.engine.contract.stability import count_on_grid
from seedscope.engine.contract.tables import pools, synthetic
from seedscope.engine.contract.tables.features import Ablation, Feature, Pair
from seedscope.engine.contract.tables.study import Ensemble, Member

BATCH_ROWS = 65_536
MEMORY_LIMIT = "4GB"  # of what DuckDB holds before it writes to the file
HEADERS = 3 * 4096  # bytes of a DuckDB file in front of its blocks
_ARROW = {int: pa.int32(), float: pa.float32(), bool: pa.bool_(), str: pa.string()}
_SQL = {int: "INTEGER", float: "FLOAT", bool: "BOOLEAN", str: "VARCHAR"}
# Sums over tokens and settings keep their digits; cosines and activations are float32 as computed.
_DOUBLE = {(Ensemble, "lr"), (Ensemble, "theta"), (Ensemble, "epsilon"), (Member, "ev"),
           (Member, "l0"), (Ablation, "ev"), (Ablation, "ev_sd"), (Feature, "density"),
           (Feature, "worth_ev"), (Feature, "worth_loss"),
           (Member, "loss_own"), (Member, "loss_spliced"), (Member, "loss_zero"),
           (Ablation, "loss"), (Ablation, "loss_sd"), (Pair, "mean_cosine"), (Pair, "gap"),
           (synthetic.Synthetic, "rate_free"), (synthetic.Synthetic, "rate_low"), (synthetic.TrueFeature, "rate"),
           (synthetic.PhaseCell, "rate_low"), (pools.FeaturePool, "theta"), (pools.PooledFeature, "density")}  # fmt: skip


class Writer:
    """Streams the tables of one study into a temporary file and publishes them together.

    `add` takes columns as arrays or lists, lists of numbers as 2-d arrays (rows, entries) or ragged lists; every column
    of the schema must be there, all of one length. What is added leaves memory at once: 96 members of 16,384 features fit.
    Used as a context manager, whatever was not published is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._temporary = folder / "study-unpublished.tmp"
        self._discard()
        self._connection = duckdb.connect(str(self._temporary), config={"memory_limit": MEMORY_LIMIT})
        self._last_key: dict[type, tuple[Any, ...]] = {}
        self._unsorted: set[type] = set()
        for table in schema.TABLES:
            definition = ", ".join(f'"{name}" {kind}' for name, kind in _sql_columns(table).items())
            self._connection.execute(f"CREATE TABLE {table.__name__} ({definition})")
        self._connection.execute("BEGIN")  # one transaction: rows go to the file once, not to a log first

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()
        self._discard()

    def add(self, table: type, columns: dict[str, Any]) -> None:
        """Append rows to a table; raises ValueError on missing, unknown or unequal columns and on NaN."""
        wanted = schema.columns(table)
        if set(columns) != set(wanted):
            missing, unknown = sorted(set(wanted) - set(columns)), sorted(set(columns) - set(wanted))
            raise ValueError(f"table {table.__name__}: missing columns {missing}, unknown columns {unknown}")
        lengths = {name: len(values) for name, values in columns.items() if not isinstance(values, str | None)}
        n_rows = max(lengths.values())
        arrays = {}
        for name, (kind, is_list, optional) in wanted.items():
            values = columns[name]
            if isinstance(values, str) or (optional and values is None):
                values = [values] * n_rows
            element = pa.float64() if (table, name) in _DOUBLE else _ARROW[kind]
            arrays[name] = _list_array(values, element) if is_list else pa.array(values, element)
            numbers = arrays[name].flatten() if is_list else arrays[name].drop_null()
            if arrays[name].null_count and not optional:
                raise ValueError(f"table {table.__name__}, column {name}: found a missing value, expected none")
            if kind is float and not np.isfinite(numbers.to_numpy(zero_copy_only=False)).all():
                raise ValueError(f"table {table.__name__}, column {name}: found a value that is not finite")
        if len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(f"table {table.__name__}: columns of unequal length {lengths}")
        for name, rule in schema.THETA_COUNTED.get(table, {}).items():
            if len({len(cosines) for cosines in columns[name]}) != 1:
                raise ValueError(
                    f"table {table.__name__}, column {name}: lists of unequal length, expected one per comparison"
                )
            counts = count_on_grid(np.asarray(columns[name], np.float32)).astype(np.uint16)
            arrays |= {schema.count_column(rule, i): np.ascontiguousarray(counts[:, i]) for i in range(schema.N_THETAS)}
        self._insert(table, pa.table(arrays))

    def _insert(self, table: type, rows: pa.Table) -> None:
        keys = schema.SORT_KEYS[table]
        rows = rows.sort_by([(key, "ascending") for key in keys])
        first, last = (tuple(rows.column(key)[at].as_py() for key in keys) for at in (0, len(rows) - 1))
        if table in self._last_key and first <= self._last_key[table]:
            self._unsorted.add(table)
        self._last_key[table] = max(last, self._last_key.get(table, last))
        self._connection.register("incoming", rows)
        self._connection.execute(f"INSERT INTO {table.__name__} SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def publish(self, *, built_from: str) -> Path:
        """Name the file `study-<digest>.duckdb` and point CURRENT at it; returns the store's path.

        The previous store stays until the next publish, because a reader may hold it open; older ones are removed.
        Raises ValueError where a table without which no page can be drawn is empty.
        """
        for table in schema.REQUIRED:
            if table not in self._last_key:
                self.__exit__()
                raise ValueError(f"table {table.__name__} has no rows; nothing is published")
        for table in self._unsorted:
            name, keys = table.__name__, ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
            self._connection.execute(f"CREATE TABLE sorted AS SELECT * FROM {name} ORDER BY {keys}")
            self._connection.execute(f"DROP TABLE {name}")
            self._connection.execute(f"ALTER TABLE sorted RENAME TO {name}")
        self._connection.execute("COMMIT")
        target = self._folder / f"study-{_digest(self._connection)}.duckdb"
        self._connection.execute("CHECKPOINT")
        self._connection.close()
        self._temporary.replace(target)
        _point_current(self._folder, target.name, built_from)
        return target

    def _discard(self) -> None:
        for leftover in self._folder.glob("study-unpublished.tmp*"):  # the write-ahead log has its own suffix
            leftover.unlink(missing_ok=True)


class OtherSchemaError(ValueError):
    """A whole store that another version of SeedScope wrote."""


class StoreReader:
    """A published store, read-only: the columns of the contract, without the counts that the Writer derives.

    Used as a context manager, it is closed at the end. Raises ValueError for a file that is damaged or of another schema.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = duckdb.connect(str(path), read_only=True, config=READ_ONLY)
            found, n_bytes = self._connection.sql(
                "SELECT schema_version, (SELECT block_size * total_blocks FROM pragma_database_size()) FROM Study"
            ).fetchall()[0]
            if path.stat().st_size < HEADERS + n_bytes:
                raise EOFError  # DuckDB itself would notice at the block that is missing
        except (duckdb.Error, IndexError, EOFError):
            raise ValueError(f"{path} is damaged, expected a published store; build the study again") from None
        if found != schema.SCHEMA_VERSION:
            self._connection.close()
            raise OtherSchemaError(
                f"{path} has schema {found}, this version reads {schema.SCHEMA_VERSION}; build the study again"
            )

    def __enter__(self) -> "StoreReader":
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def table(self, table: type, names: Sequence[str] = (), **where: Any) -> pa.Table:
        """Rows in the order of the keys; `where` holds a value that a column must have, or a range of them."""
        shown = ", ".join(f'"{name}"' for name in names or schema.columns(table))
        conditions = ["true"]
        parameters: list[object] = []
        for name, value in where.items():
            bounds = (value.start, value.stop - 1) if isinstance(value, range) else (value, value)
            conditions.append(f'"{name}" BETWEEN ? AND ?')
            parameters += bounds
        order = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
        sql = f"SELECT {shown} FROM {table.__name__} WHERE {' AND '.join(conditions)} ORDER BY {order}"
        return self._connection.sql(sql, params=parameters).to_arrow_table()

    def rows(self, table: type, **where: Any) -> list[Any]:
        """Rows as the contract's dataclasses, for tables that are small."""
        return [table(**row) for row in self.table(table, **where).to_pylist()]


def _sql_columns(table: type) -> dict[str, str]:
    """{column: SQL type} of a table, derived counts included."""
    found = {
        name: ("DOUBLE" if (table, name) in _DOUBLE else _SQL[kind]) + "[]" * is_list + " NOT NULL" * (not optional)
        for name, (kind, is_list, optional) in schema.columns(table).items()
    }
    for rule in schema.THETA_COUNTED.get(table, {}).values():
        found |= {schema.count_column(rule, i): "USMALLINT" for i in range(schema.N_THETAS)}
    return found


def _point_current(folder: Path, name: str, built_from: str) -> None:
    """Publish a store of a folder and remove all others but it and the one that was published before."""
    previous = published(folder)
    publish_store(folder, PublishedStore(name, built_from))
    keep = {name, previous.name if previous else name}
    for store in folder.glob("study-*"):
        if store.name not in keep:
            store.unlink(missing_ok=True)


def _list_array(values: Any, element: pa.DataType) -> pa.ListArray:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), element))
    if pa.types.is_string(element):
        return pa.array(values, pa.list_(element))
    lengths = [len(entry) for entry in values]
    flat = np.concatenate([np.asarray(entry) for entry in values]) if lengths else np.array([])
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, element))


def _digest(connection: duckdb.DuckDBPyConnection) -> str:
    """16 hex digits over schema, column values and list lengths of the sorted rows; never over a file or a time."""
    sha = hashlib.sha256(str(schema.SCHEMA_VERSION).encode())
    for table in schema.TABLES:
        for name in schema.columns(table):
            lengths, values, kind, n_rows = hashlib.sha256(), hashlib.sha256(), "", 0
            for batch in connection.sql(f'SELECT "{name}" FROM {table.__name__}').to_arrow_reader(BATCH_ROWS):
                column = batch.column(0)
                kind, n_rows = str(column.type), n_rows + len(column)
                if pa.types.is_list(column.type):
                    lengths.update(np.diff(column.offsets.to_numpy()).astype(np.int32).tobytes())
                    column = column.flatten()
                if column.null_count:
                    lengths.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
                    column = column.drop_null()
                if pa.types.is_string(column.type):
                    for text in column.to_pylist():
                        values.update(len(text).to_bytes(4, "little") + text.encode())
                else:
                    values.update(column.to_numpy(zero_copy_only=False).tobytes())
            sha.update(f"{table.__name__}.{name}:{kind}:{n_rows}".encode() + lengths.digest() + values.digest())
    return sha.hexdigest()[:16]
