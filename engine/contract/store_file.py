"""Opens the file of a published store, and tells a damaged file from everything else that DuckDB may say.

DuckDB checks every block that it reads against a checksum, and only then: a store may open and fail on a later page.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from seedscope.engine.contract.duckdb_settings import READ_ONLY

HEADERS = 3 * 4096  # bytes of a DuckDB file before its blocks
# What DuckDB raises for a file that it cannot read as it was written; a bare Error is a checksum that does not agree.
_OF_THE_FILE = (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException)
_OF_SPACE = ("No space left", "space left on device", "max_temp_directory_size")


class DamagedStoreError(ValueError):
    """A store whose file is not as it was written; `path` is the file, `reason` what was found."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason}), expected a published store; {mended_by(path.parent)}")
        self.path, self.reason = path, reason


def mending_command(study: Path) -> str | None:
    """The command that publishes a study with a damaged or old store again; None where nothing says how it was made."""
    return f"seedscope analyze {study.name}" if (study / "study.json").is_file() else None


def mended_by(study: Path) -> str:
    """The same as a sentence."""
    command = mending_command(study)
    return f"publish it again from its results: {command}" if command else "build the study again"


def open_store(path: Path, *, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
    """A connection that reads alone; raises DamagedStoreError for a file that is truncated or no store.

    `memory_limit` is of the blocks that DuckDB keeps, where the process does not say it itself (`keep_small`).
    """
    config = READ_ONLY if memory_limit is None else {"memory_limit": memory_limit} | READ_ONLY
    with reading(path):
        try:
            connection = duckdb.connect(str(path), read_only=True, config=config)
            block, n_blocks, n_used = connection.execute(
                "SELECT block_size, total_blocks, used_blocks FROM pragma_database_size()"
            ).fetchall()[0]
            has_rows = connection.execute("SELECT count(*) FROM Study").fetchall() != [(0,)]
        except (duckdb.CatalogException, duckdb.BinderException, IndexError):
            raise DamagedStoreError(path, "it has no table of a study") from None
    if not has_rows:
        raise DamagedStoreError(path, "it has no study")
    # A block that is missing would be found only when it is read. Free blocks at the end need not be there.
    n_bytes = path.stat().st_size - HEADERS
    if n_bytes < n_blocks * block and (n_bytes % block or n_bytes < n_used * block):
        raise DamagedStoreError(path, f"it has {HEADERS + n_bytes:,} bytes, expected {HEADERS + n_blocks * block:,}")
    return connection


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what DuckDB says of a damaged file as DamagedStoreError; of a full disk, as OSError."""
    try:
        yield
    except duckdb.Error as error:
        said = " ".join(str(error).split())[:200]
        if any(words in said for words in _OF_SPACE):
            raise OSError(f"no space for intermediate results beside {path}: {said}") from None
        if type(error) is duckdb.Error or isinstance(error, _OF_THE_FILE):
            raise DamagedStoreError(path, said) from None
        raise
