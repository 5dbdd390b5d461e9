"""Stores of former schemas, read as if they were of this one: what they have no column for was not computed.

A schema grows by tables, and by columns that may be None, be empty, or have a default. A store that lacks them is opened in memory
with a view over each of its tables that fills them in; nothing is written, so that a root that is read-only will do. Whatever a
change of the schema cannot express so has to be published again. `tests/engine/store/samples` holds a store of every schema that
is read.
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import duckdb

from seedscope.engine.contract import schema
from seedscope.engine.contract.duckdb_settings import READ_ONLY
from seedscope.engine.contract.tables.study import Study

_AT_START = ("memory_limit", "threads")  # settings that a connection begins with; the others end its right to attach
_SQL = {int: "INTEGER", float: "FLOAT", bool: "BOOLEAN", str: "VARCHAR"}


class UnknownSchemaError(ValueError):
    """A store of a schema that this version does not read; `found` is its number."""

    def __init__(self, path: Path, found: Any, lacks: str | None = None) -> None:
        oldest, newest = schema.READABLE[0], schema.READABLE[-1]
        reads = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
        detail = f" without {lacks}" if lacks else ""
        super().__init__(f"{path} has schema {found}{detail}, this version reads {reads}")
        self.found, self.reads = found, reads


def complete(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[duckdb.DuckDBPyConnection, bool]:
    """A connection to a store with every table and column of this schema, and whether any had to be filled in.

    `connection` is open on `path`; it is returned as it is where nothing lacks, else closed. Raises UnknownSchemaError.
    """
    (version,) = connection.execute("SELECT schema_version FROM Study").fetchall()[0]
    if version not in schema.READABLE:
        connection.close()
        raise UnknownSchemaError(path, version)
    present = _columns(connection)
    lacking = {table: set(schema.columns(table)) - present.get(table.__name__, set()) for table in schema.TABLES}
    if version == schema.SCHEMA_VERSION and not any(lacking.values()):
        return connection, False
    for table, names in lacking.items():
        lost = sorted(name for name in names if default_of(table, name) is MISSING)
        has_rows = table.__name__ in present and lost and connection.table(table.__name__).limit(1).fetchall()
        if has_rows:
            connection.close()
            raise UnknownSchemaError(path, version, f"{table.__name__}.{lost[0]}")
    connection.close()
    return _with_views(path, present), True


def default_of(table: type, name: str) -> Any:
    """What a column holds in a store that lacks it; MISSING where nothing can be said."""
    (default,) = (field.default for field in fields(table) if field.name == name)
    column = schema.columns(table)[name]
    if default is not MISSING:
        return default
    return [] if column.is_list else None if column.optional else MISSING


def _columns(connection: duckdb.DuckDBPyConnection) -> dict[str, set[str]]:
    """{table: its columns} of a store."""
    found: dict[str, set[str]] = {}
    for table, name in connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
    ).fetchall():
        found.setdefault(table, set()).add(name)
    return found


def _with_views(path: Path, present: dict[str, set[str]]) -> duckdb.DuckDBPyConnection:
    """A database in memory that shows a store's tables as this schema has them."""
    settings = {name: value for name, value in READ_ONLY.items() if name in _AT_START}
    connection = duckdb.connect(":memory:", config=settings | {"temp_directory": f"{path}.tmp"})
    quoted = str(path).replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS former (READ_ONLY)")
    for table in schema.TABLES:
        name, has = table.__name__, present.get(table.__name__)
        columns = [
            f'"{column}"' if column in (has or ()) else _filled(table, column) for column in schema.columns(table)
        ]
        if table is Study:
            columns = [
                column.replace('"schema_version"', f"{schema.SCHEMA_VERSION} AS schema_version") for column in columns
            ]
        of_store = f"rowid FROM former.{name}" if has else "0 AS rowid WHERE false"
        connection.execute(f"CREATE VIEW {name} AS SELECT {', '.join(columns)}, {of_store}")
    for setting, value in READ_ONLY.items():
        if setting not in _AT_START:
            connection.execute(f"SET {setting} = {value}")
    return connection


def _filled(table: type, name: str) -> str:
    """A column that a store lacks, as SQL."""
    column, default = schema.columns(table)[name], default_of(table, name)
    value = "NULL" if default in (None, MISSING) else "[]" if default == [] else repr(default)
    kind = "BIGINT" if column.kind is int and name in schema.WIDE_COLUMNS else _SQL[column.kind]
    return f'CAST({value} AS {kind}{"[]" * column.is_list}) AS "{name}"'
