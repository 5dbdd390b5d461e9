"""The store of a study, one DuckDB file with the tables of the contract: `Writer` writes and publishes it, `StoreReader` reads it.

Rows are validated and streamed to a temporary file, which takes its name, a digest of its content, when it is complete.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedscope.engine.contract import schema
from seedscope.engine.contract.former_stores import UnknownSchemaError, complete
from seedscope.engine.contract.index.build import open_index
from seedscope.engine.contract.published import PublishedStore, publish_store, published
from seedscope.engine.contract.store_file import mended_by, open_store, reading
from seedscope.engine.contract.tables import pools, synthetic
from seedscope.engine.contract.tables.features import Ablation, Feature, NullMatch, Pair
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.store.consistency import contradictions, require_consistent

BATCH_ROWS = 65_536
MEMORY_LIMIT = "1500MB"  # of what DuckDB holds before it writes to the file
# List columns with one entry per comparison.
_OF_COMPARISONS: dict[type, tuple[str, ...]] = {Feature: tuple(schema.RULE_COLUMN.values()), NullMatch: ("cosines",)}
_ARROW = {int: pa.int32(), float: pa.float32(), bool: pa.bool_(), str: pa.string()}
_SQL = {int: "INTEGER", float: "FLOAT", bool: "BOOLEAN", str: "VARCHAR"}
# Columns stored as float64: settings, and means over many tokens. Cosines and activations are float32, as they are computed.
_DOUBLE = {(Ensemble, "lr"), (Ensemble, "theta"), (Ensemble, "epsilon"), (Member, "ev"),
           (Member, "l0"), (Ablation, "ev"), (Ablation, "ev_sd"), (Feature, "density"),
           (Feature, "worth_ev"), (Feature, "worth_loss"),
           (Member, "loss_own"), (Member, "loss_spliced"), (Member, "loss_zero"),
           (Ablation, "loss"), (Ablation, "loss_sd"), (Pair, "mean_cosine"), (Pair, "gap"),
           (synthetic.Synthetic, "rate_free"), (synthetic.Synthetic, "rate_low"), (synthetic.TrueFeature, "rate"),
           (synthetic.PhaseCell, "rate_low"), (pools.FeaturePool, "theta"), (pools.PooledFeature, "density")}  # fmt: skip


class Writer:
    """Streams the tables of one study into a temporary file and publishes them together.

    Rows go to the file as they are added, so that studies larger than memory fit. Used as a context manager, it removes what
    was not published.
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
        """Append rows to a table.

        `columns` has every column of the schema: an array or list with one entry per row, or one string, or None, for all
        rows; list columns are 2-d arrays (rows, entries) or lists of arrays. Raises ValueError where columns are missing,
        unknown or of unequal length, and where a value is missing or not finite.
        """
        expected = schema.columns(table)
        if set(columns) != set(expected):
            missing, unknown = sorted(set(expected) - set(columns)), sorted(set(columns) - set(expected))
            raise ValueError(f"table {table.__name__}: missing columns {missing}, unknown columns {unknown}")
        lengths = {name: len(values) for name, values in columns.items() if not isinstance(values, str | None)}
        n_rows = max(lengths.values())
        arrays = {}
        for name, (kind, is_list, optional) in expected.items():
            values = columns[name]
            if isinstance(values, str) or (optional and values is None):
                values = [values] * n_rows
            element = _arrow_type(table, name, kind)
            arrays[name] = _list_array(values, element) if is_list else pa.array(values, element)
            numbers = arrays[name].flatten() if is_list else arrays[name].drop_null()
            if arrays[name].null_count and not optional:
                raise ValueError(f"table {table.__name__}, column {name}: found a missing value, expected none")
            if kind is float and not np.isfinite(numbers.to_numpy(zero_copy_only=False)).all():
                raise ValueError(f"table {table.__name__}, column {name}: found a value that is not finite")
        if len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(f"table {table.__name__}: columns of unequal length {lengths}")
        for name in _OF_COMPARISONS.get(table, ()):
            if len({len(cosines) for cosines in columns[name]}) != 1:
                raise ValueError(
                    f"table {table.__name__}, column {name}: lists of unequal length, expected one per comparison"
                )
        self._insert(table, pa.table(arrays))

    def _insert(self, table: type, rows: pa.Table) -> None:
        keys = schema.SORT_KEYS[table]
        if not _is_sorted(rows, keys):
            rows = rows.sort_by([(key, "ascending") for key in keys])
        first, last = (tuple(rows.column(key)[at].as_py() for key in keys) for at in (0, len(rows) - 1))
        if table in self._last_key and first <= self._last_key[table]:
            self._unsorted.add(table)
        self._last_key[table] = max(last, self._last_key.get(table, last))
        # Not `register`: a registered table stays in memory until COMMIT, unregistered or not. Columns are taken by position.
        self._connection.from_arrow(rows.select(list(_sql_columns(table)))).insert_into(table.__name__)

    def require_consistent(self) -> None:
        """Raise ValueError where the rows that were added contradict each other: for rows that come from elsewhere."""
        require_consistent(self._connection)

    def publish(self, *, built_from: str, compared: bool = True) -> Path:
        """Rename the file to `study-<digest>.duckdb` and make it the study's published store; returns its path.

        The store published before stays until the next publish, because a reader may have it open; older ones are removed.
        Raises ValueError where a table of schema.REQUIRED is empty; matches are not required unless SAEs were `compared`.
        """
        for table in schema.REQUIRED:
            if table not in self._last_key and (compared or table not in (Pair, NullMatch)):
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
        open_index(target)
        _point_current(self._folder, target.name, built_from)
        return target

    def _discard(self) -> None:
        for leftover in self._folder.glob("study-unpublished.tmp*"):  # the write-ahead log has its own suffix
            leftover.unlink(missing_ok=True)


class OtherSchemaError(ValueError):
    """Raised for an undamaged store that was written under another version of the schema."""


class StoreReader:
    """A published store, read-only: the columns of the contract, filled in where a former schema lacks them (`is_former`).

    Used as a context manager, it is closed at the end. Raises DamagedStoreError, a ValueError, for a file that is damaged, also
    where that is found while reading, and OtherSchemaError for one of another schema.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path):
            try:
                self._connection, self.is_former = complete(open_store(path), path)
            except UnknownSchemaError as error:
                raise OtherSchemaError(f"{error}; {mended_by(path.parent)}") from None

    def __enter__(self) -> "StoreReader":
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def table(self, table: type, names: Sequence[str] = (), **where: Any) -> pa.Table:
        """Rows in the order of the table's sort keys, with the columns `names`, or all of them.

        `where` restricts columns, each to one value or to a range of whole numbers.
        """
        selected = ", ".join(f'"{name}"' for name in names or schema.columns(table))
        conditions = ["true"]
        parameters: list[object] = []
        for name, value in where.items():
            bounds = (value.start, value.stop - 1) if isinstance(value, range) else (value, value)
            conditions.append(f'"{name}" BETWEEN ? AND ?')
            parameters += bounds
        order = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
        sql = f"SELECT {selected} FROM {table.__name__} WHERE {' AND '.join(conditions)} ORDER BY {order}"
        with reading(self._path):
            return self._connection.sql(sql, params=parameters).to_arrow_table()

    def contradictions(self) -> list[str]:
        """What the tables say that cannot be, in words; empty for a whole store. Reads all of it."""
        with reading(self._path):
            return [str(each) for each in contradictions(self._connection)]

    def digest(self) -> str:
        """The digest of all content, which is in the name of the file; reads all of it."""
        with reading(self._path):
            return _digest(self._connection)

    def table_bytes(self) -> dict[str, int]:
        """{table: bytes of the blocks that hold its columns}; a block that two columns share counts once."""
        sizes = {}
        ((block_bytes,),) = self._connection.sql("SELECT block_size FROM pragma_database_size()").fetchall()
        for table in schema.TABLES:
            sql = f"SELECT count(DISTINCT block_id) FROM pragma_storage_info('{table.__name__}') WHERE persistent"
            ((n_blocks,),) = self._connection.sql(sql).fetchall()
            sizes[table.__name__] = n_blocks * block_bytes
        return sizes

    def rows(self, table: type, **where: Any) -> list[Any]:
        """Rows as instances of the table's dataclass; `where` as in `table`. For tables that fit into memory as Python objects."""
        return [table(**row) for row in self.table(table, **where).to_pylist()]


def _is_wide(name: str, kind: type) -> bool:
    """Whether a column's values are seeds or numbers of tokens, which take 64 bits."""
    return kind is int and name in schema.WIDE_COLUMNS


def _arrow_type(table: type, name: str, kind: type) -> pa.DataType:
    """Arrow's type of a column's values, or of the entries of its lists."""
    if _is_wide(name, kind):
        return pa.int64()
    return pa.float64() if (table, name) in _DOUBLE else _ARROW[kind]


def _sql_type(table: type, name: str, kind: type) -> str:
    """DuckDB's type of the same."""
    if _is_wide(name, kind):
        return "BIGINT"
    return "DOUBLE" if (table, name) in _DOUBLE else _SQL[kind]


def _sql_columns(table: type) -> dict[str, str]:
    """{column: SQL type} of a table."""
    return {
        name: _sql_type(table, name, kind) + "[]" * is_list + " NOT NULL" * (not optional)
        for name, (kind, is_list, optional) in schema.columns(table).items()
    }


def _is_sorted(rows: pa.Table, keys: Sequence[str]) -> bool:
    """Whether rows ascend by their keys: sorting copies every list of them, and most come sorted."""
    undecided = np.ones(max(len(rows) - 1, 0), bool)  # pairs of neighbours whose former keys are equal
    for key in keys:
        column = rows[key].combine_chunks()
        here, following = column[:-1], column[1:]
        if (pc.less(following, here).to_numpy(zero_copy_only=False) & undecided).any():
            return False
        undecided &= pc.equal(here, following).to_numpy(zero_copy_only=False)
    return True


def _point_current(folder: Path, name: str, built_from: str) -> None:
    """Publish a store of this folder; remove all others but the one that was published before."""
    previous = published(folder)
    publish_store(folder, PublishedStore(name, built_from))
    keep = {Path(each).stem for each in (name, previous.name if previous else name)}
    for old in folder.glob("study-*"):
        if old.stem not in keep:
            old.unlink(missing_ok=True) if old.is_file() else shutil.rmtree(old, ignore_errors=True)


def _list_array(values: Any, element: pa.DataType) -> pa.ListArray:
    """A list column from a 2-d array, or from one sequence per row."""
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
    """16 hex digits over schema, column values and list lengths of the sorted rows; never over a file or a time.

    Seeds and numbers of tokens count as 32-bit numbers where all of a column are below 2^31: the digest of such a study does
    not depend on the width of its columns.
    """
    sha = hashlib.sha256(str(schema.SCHEMA_VERSION).encode())
    for table in schema.TABLES:
        for name, (of_values, is_list, _) in schema.columns(table).items():
            column_sql = f'"{name}"'
            if _is_wide(name, of_values) and _largest(connection, table, name, is_list=is_list) < 2**31:
                column_sql += "::INTEGER" + "[]" * is_list
            lengths, values, kind, n_rows = hashlib.sha256(), hashlib.sha256(), "", 0
            for batch in connection.sql(f"SELECT {column_sql} FROM {table.__name__}").to_arrow_reader(BATCH_ROWS):
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


def _largest(connection: duckdb.DuckDBPyConnection, table: type, name: str, *, is_list: bool) -> int:
    """The largest value of a column of whole numbers, 0 where it has none."""
    value = f'list_max("{name}")' if is_list else f'"{name}"'
    ((largest,),) = connection.sql(f"SELECT max({value}) FROM {table.__name__}").fetchall()
    return largest or 0
