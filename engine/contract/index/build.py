"""Writes the index of a published store: reads each ensemble member by member, in memory bounded by one member's features."""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from seedscope.engine.contract.checksums import damaged_file, write_sums
from seedscope.engine.contract.environment import INDEX_FOLDER
from seedscope.engine.contract.former_stores import complete
from seedscope.engine.contract.index import layout
from seedscope.engine.contract.index.cosines import (
    CosineWriter,
    counts_on_grid,
    give_back,
    matrix,
    new_array,
    thetas_reached,
)
from seedscope.engine.contract.index.rows import row_numbers
from seedscope.engine.contract.index.sampling import SAMPLE_ORDER
from seedscope.engine.contract.names import inside
from seedscope.engine.contract.schema import N_THETAS, RULE_COLUMN, TRIGGERS
from seedscope.engine.contract.store_file import HEADERS, open_store

# Files of an index that have fewer bytes are read and compared with their checksums whenever the index is opened.
SMALL_FILE = 2**18
_BATCH = 262_144  # rows of a statement that are held at once
_MEMORY_LIMIT = "1GB"
Report = Callable[[int, int], None]


class _Frame(NamedTuple):
    """What an ensemble's arrays are sized by."""

    ensemble: str
    seeds: list[int]
    d_sae: int
    n_comparisons: int

    @property
    def n_rows(self) -> int:
        return len(self.seeds) * self.d_sae

    def rows(self, table: str, seeds: ArrayLike, features: ArrayLike) -> np.ndarray:
        """Rows of features that a table names; raises ValueError where there is no such feature."""
        try:
            return row_numbers(self.seeds, self.d_sae, seeds, features)
        except ValueError as error:
            raise ValueError(f"table {table}, {self.ensemble}: {error}") from None


def build_index(store: Path, folder: Path | None = None, report: Report = lambda done, total: None) -> Path:
    """Write the index of a store into `folder`, or beside the store, in one step; returns its folder.

    `report` is called with members done and all members. Raises ValueError where an ensemble's features are not complete.
    """
    folder = folder or layout.index_folder(store)
    unfinished = folder.with_name(f"{folder.name}-{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    connection = _opened(store)
    try:
        frames = _frames(connection)
        total, done = sum(len(frame.seeds) for frame in frames), 0
        for frame in frames:
            here = layout.ensemble_folder(unfinished, frame.ensemble)
            here.mkdir()
            for _ in _write_members(connection, frame, here):
                done += 1
                report(done, total)
            _write_orders(frame, here)
            _write_words(connection, frame, here)
            _write_random_order(connection, frame, here)
            _write_context_places(connection, frame, here)
            kinds = _write_null(connection, frame, here)
            _write_about(frame, here, kinds)
        write_sums(unfinished)
        (unfinished / layout.ABOUT).write_text(json.dumps(_stamp(store)))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
        for former in folder.parent.glob(f"{folder.stem}.index*"):  # of other layouts: gigabytes that nobody reads
            if former != folder == layout.index_folder(store) and former.suffix != ".tmp":
                shutil.rmtree(former, ignore_errors=True)
    finally:
        connection.close()
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def open_index(store: Path) -> Path:
    """The folder of a store's index, which is made where there is none of this layout.

    Beside the store; where nothing can be written there, in `temporary_folder`.
    """
    folder = layout.index_folder(store)
    if is_usable(folder, store):
        return folder
    try:
        return build_index(store)
    except OSError:
        key = hashlib.sha256(f"{store.resolve()} {store.stat().st_mtime_ns}".encode()).hexdigest()[:16]
        elsewhere = temporary_folder() / f"{key}.index"
        return elsewhere if is_usable(elsewhere, store) else build_index(store, elsewhere)


@cache
def temporary_folder() -> Path:
    """The folder that INDEX_FOLDER names, else one that lasts as long as this process."""
    if INDEX_FOLDER in os.environ:
        return Path(os.environ[INDEX_FOLDER])
    folder = Path(tempfile.mkdtemp(prefix="seedscope-index-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_usable(folder: Path, store: Path) -> bool:
    """Whether a folder holds a complete index of this layout and this store, as far as sizes and sums of small files tell."""
    try:
        if json.loads((folder / layout.ABOUT).read_text()) != _stamp(store):
            return False
    except (OSError, ValueError):
        return False
    return damaged_file(folder, read_below=SMALL_FILE) is None


def _opened(store: Path) -> duckdb.DuckDBPyConnection:
    """A connection that keeps few blocks in memory: each is read once. A process that has the store open keeps its own settings.

    Of a store of a former schema, with the columns that it lacks filled in.
    """
    try:
        connection = open_store(store, memory_limit=_MEMORY_LIMIT)
    except duckdb.ConnectionException:
        connection = open_store(store)
    return complete(connection, store)[0]


def _stamp(store: Path) -> dict[str, object]:
    """What an index is made for: the layout, and the store's size and headers, which change with its content, not by copying."""
    with open(store, "rb") as file:
        headers = hashlib.sha256(file.read(HEADERS)).hexdigest()[:16]
    return {"version": layout.LAYOUT_VERSION, "bytes": store.stat().st_size, "headers": headers}


def _frames(connection: duckdb.DuckDBPyConnection) -> list[_Frame]:
    rows = connection.execute("SELECT ensemble, d_sae, n_comparisons FROM Ensemble ORDER BY ensemble").fetchall()
    frames = []
    for ensemble, d_sae, n_comparisons in rows:
        sql = "SELECT seed, count(*), min(feature), max(feature) FROM Feature WHERE ensemble = ? GROUP BY seed ORDER BY seed"
        members = connection.execute(sql, [ensemble]).fetchall()
        for seed, n, first, last in members:
            if (n, first, last) != (d_sae, 0, d_sae - 1):
                raise ValueError(f"{ensemble}, seed {seed}: {n} features, {first} to {last}, expected 0 to {d_sae - 1}")
        if len(inside(ensemble).parts) != 1:  # a folder is made of it
            raise ValueError(f"ensemble name is {ensemble!r:.80}, expected one that a folder can have")
        frames.append(_Frame(ensemble, [seed for seed, *_ in members], d_sae, n_comparisons))
    return frames


def _write_members(connection: duckdb.DuckDBPyConnection, frame: _Frame, here: Path) -> Iterator[int]:
    """Columns, cosines, counts, texts and the tokens' rows; yields the seed of every member that is written."""
    rules = _rules(connection, frame)
    numbers = {
        name: new_array(here / f"{name}.npy", (frame.n_rows,), _dtype(connection, name))
        for name in layout.scalar_columns()
    }
    status = new_array(here / "status.npy", (frame.n_rows,), np.uint8)
    trigger, of_firing = (
        new_array(here / f"trigger_{name}.npy", (frame.n_rows,), np.uint8) for name in ("code", "class")
    )
    cosines = CosineWriter(here, len(frame.seeds), frame.d_sae, frame.n_comparisons, rules)
    lists = ", ".join(RULE_COLUMN[rule] for rule in rules)
    names = ["feature", "dead", "trigger", *numbers, *layout.TEXT_COLUMNS] + ([lists] if lists else [])
    sql = f"SELECT {', '.join(names)} FROM Feature WHERE ensemble = ? AND seed = ? ORDER BY feature"
    texts: pa.RecordBatchFileWriter | None = None
    with pa.OSFile(str(here / layout.TEXTS), "wb") as file:
        for member, seed in enumerate(frame.seeds):
            rows = connection.sql(sql, params=[frame.ensemble, seed]).to_arrow_table().combine_chunks()
            here_rows = slice(member * frame.d_sae, (member + 1) * frame.d_sae)
            for name, array in numbers.items():
                array[here_rows] = _numbers(rows[name], array.dtype)
            dead = rows["dead"].cast(pa.uint8())
            status[here_rows] = dead.fill_null(layout.UNKNOWN).to_numpy()
            trigger[here_rows] = _codes(rows["trigger"])
            of_firing[here_rows] = np.where(numbers["n_active"][here_rows] > 0, trigger[here_rows], layout.NO_TRIGGER)
            cosines.add(member, rows)
            batch = rows.select(list(layout.TEXT_COLUMNS)).combine_chunks()
            texts = texts or pa.ipc.new_file(file, batch.schema)
            texts.write_table(batch)
            give_back([*numbers.values(), status, trigger, of_firing, *cosines.arrays()])
            yield seed
        if texts:
            texts.close()
    cosines.close()
    _write_tokens(frame, here)


def _dtype(connection: duckdb.DuckDBPyConnection, name: str) -> Any:
    sql = f'SELECT "{name}" FROM Feature LIMIT 0'
    return {"DOUBLE": np.float64, "FLOAT": np.float32}.get(str(connection.sql(sql).types[0]), np.int64)


def _numbers(column: pa.ChunkedArray, kind: Any) -> np.ndarray:
    """A column as numbers of a kind; None is NaN, of whole numbers -1."""
    if np.issubdtype(kind, np.integer):
        numbers: np.ndarray = column.cast(pa.int64()).fill_null(-1).to_numpy()
        return numbers
    return np.asarray(column.to_numpy(), kind)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Triggers as indices into TRIGGERS, NO_TRIGGER for None."""
    texts = column.combine_chunks()
    codes = pc.index_in(texts, pa.array(TRIGGERS))
    if codes.null_count > texts.null_count:
        unknown = sorted(set(texts.to_pylist()) - {*TRIGGERS, None})
        raise ValueError(f"found trigger {unknown[0]!r}, expected one of {', '.join(TRIGGERS)}")
    return np.asarray(codes.fill_null(layout.NO_TRIGGER).to_numpy(zero_copy_only=False), np.uint8)


def _rules(connection: duckdb.DuckDBPyConnection, frame: _Frame) -> list[str]:
    """Rules whose cosines an ensemble has."""
    if not frame.n_comparisons:
        return []
    lengths = ", ".join(f"max(len({column}))" for column in RULE_COLUMN.values())
    counts = connection.execute(f"SELECT {lengths} FROM Feature WHERE ensemble = ?", [frame.ensemble]).fetchall()[0]
    return [rule for rule, n in zip(RULE_COLUMN, counts, strict=True) if n]


def _write_tokens(frame: _Frame, here: Path) -> None:
    """Rows by token, from the texts written before: counted first, then put in place member by member."""
    with pa.memory_map(str(here / layout.TEXTS)) as file:
        reader = pa.ipc.open_file(file)
        n_tokens = 1
        for member in range(reader.num_record_batches):
            ids = reader.get_batch(member).column("top_token_ids").flatten().to_numpy()
            n_tokens = max(n_tokens, int(ids.max(initial=-1)) + 1)
        totals = np.zeros(n_tokens, np.int64)
        for member in range(reader.num_record_batches):
            ids = reader.get_batch(member).column("top_token_ids").flatten().to_numpy()
            totals += np.bincount(ids[ids >= 0], minlength=n_tokens)
        offsets = np.concatenate([[0], totals.cumsum()])
        np.save(here / "token-offsets.npy", offsets)
        rows = new_array(here / "token-rows.npy", (int(offsets[-1]),), np.uint32)
        firings = new_array(here / "token-firings.npy", (int(offsets[-1]),), np.int64)
        at = offsets[:-1].copy()
        for member in range(reader.num_record_batches):
            batch = reader.get_batch(member)
            lists = batch.column("top_token_ids")
            ids, counts = lists.flatten().to_numpy(), batch.column("top_token_counts").flatten().to_numpy()
            own = np.repeat(np.arange(batch.num_rows), np.diff(lists.offsets.to_numpy())) + member * frame.d_sae
            order = np.argsort(ids, kind="stable")
            order = order[np.searchsorted(ids[order], 0) :]  # a place without a token is -1
            ids, counts, own = ids[order], counts[order], own[order]
            per_token = np.bincount(ids, minlength=n_tokens)
            first = np.concatenate([[0], per_token.cumsum()[:-1]])
            places = at[ids] + np.arange(len(ids)) - first[ids]
            rows[places], firings[places] = own, counts
            at += per_token


def _write_orders(frame: _Frame, here: Path) -> None:
    """Rows by every column that lists are sorted by."""
    for name in layout.SORTED:
        values = np.load(here / f"{name}.npy", mmap_mode="r").astype(np.float64)
        if name == "n_active":
            values[values < 0] = np.nan
        for direction in layout.DIRECTIONS:  # argsort puts NaN last
            signed = -values if direction == "down" else values
            order = np.argsort(signed, kind="stable").astype(_row_type(frame))
            np.save(here / f"order-{name}-{direction}.npy", order)


def _write_words(connection: duckdb.DuckDBPyConnection, frame: _Frame, here: Path) -> None:
    """Rows by word; the table is sorted by it."""
    ((n,),) = connection.execute("SELECT count(*) FROM Word WHERE ensemble = ?", [frame.ensemble]).fetchall()
    rows = new_array(here / "word-rows.npy", (n,), np.uint32)
    sql = "SELECT word, seed, feature FROM Word WHERE ensemble = ? ORDER BY word, seed, feature"
    texts: list[str] = []
    ends: list[np.ndarray] = []
    at = 0
    for batch in connection.sql(sql, params=[frame.ensemble]).to_arrow_reader(_BATCH):
        runs = pc.run_end_encode(batch.column(0))
        values, run_ends = runs.values.to_pylist(), runs.run_ends.to_numpy() + at
        if texts and values and values[0] == texts[-1]:  # a word goes on in this batch
            texts.pop()
            ends[-1] = ends[-1][:-1]
        texts += values
        ends.append(run_ends)
        rows[at : at + len(batch)] = frame.rows("Word", batch.column(1), batch.column(2))
        at += len(batch)
    (here / layout.WORDS).write_text(json.dumps(texts, ensure_ascii=False))
    np.save(here / "word-offsets.npy", np.concatenate([[0], *ends]).astype(np.int64))


def _write_random_order(connection: duckdb.DuckDBPyConnection, frame: _Frame, here: Path) -> None:
    """All rows in the order of fixed samples."""
    sql = f"SELECT seed, feature FROM Feature WHERE ensemble = $ensemble ORDER BY {SAMPLE_ORDER}"
    order = new_array(here / "order-random.npy", (frame.n_rows,), _row_type(frame))
    at = 0
    for batch in connection.sql(sql, params={"ensemble": frame.ensemble}).to_arrow_reader(_BATCH):
        order[at : at + len(batch)] = frame.rows("Feature", batch.column(0), batch.column(1))
        at += len(batch)


def _write_context_places(connection: duckdb.DuckDBPyConnection, frame: _Frame, here: Path) -> None:
    """Where in the Context table a feature's contexts lie; nothing where they do not lie together, which a Writer never leaves."""
    first = np.full(frame.n_rows, -1, np.int64)
    counts = np.zeros(frame.n_rows, np.int32)
    sql = (
        "SELECT feature, min(rowid), max(rowid), count(*) FROM Context WHERE ensemble = ? AND seed = ? GROUP BY feature"
    )
    for seed in frame.seeds:
        rows = connection.sql(sql, params=[frame.ensemble, seed]).to_arrow_table()
        feature, low, high, n = (rows.column(i).to_numpy() for i in range(4))
        if (high - low + 1 != n).any():
            return
        at = frame.rows("Context", np.full(len(rows), seed), feature)
        first[at], counts[at] = low, n
    np.save(here / "context-first.npy", first)
    np.save(here / "context-counts.npy", counts)


def _row_type(frame: _Frame) -> Any:
    return np.int32 if frame.n_rows < 2**31 else np.int64


def _write_null(connection: duckdb.DuckDBPyConnection, frame: _Frame, here: Path) -> dict[str, float]:
    """Chance features by X at every theta, and their cosines; returns {null kind: 99.9th percentile of its cosines}."""
    n = frame.n_comparisons
    sql = "SELECT DISTINCT kind FROM NullMatch WHERE ensemble = ? ORDER BY kind"
    kinds = [kind for (kind,) in connection.execute(sql, [frame.ensemble]).fetchall()]
    counts = np.zeros((len(kinds), N_THETAS, n + 1), np.int64)
    for i, kind in enumerate(kinds):
        sql = "SELECT cosines FROM NullMatch WHERE ensemble = ? AND kind = ? ORDER BY seed, feature"
        rows = connection.sql(sql, params=[frame.ensemble, kind]).to_arrow_table()
        cosines = matrix(rows["cosines"], n)
        by_theta = counts_on_grid(thetas_reached(cosines))
        for theta in range(N_THETAS):
            counts[i, theta] = np.bincount(by_theta[theta], minlength=n + 1)
        np.save(here / f"null-cosines-{kind}.npy", np.ascontiguousarray(cosines.T))
    np.save(here / "null-counts.npy", counts)
    sql = (
        "SELECT kind, quantile_cont(c, 0.999) FROM (SELECT kind, unnest(cosines) AS c FROM NullMatch WHERE ensemble = ?) "
        "GROUP BY kind ORDER BY kind"
    )
    return dict(connection.execute(sql, [frame.ensemble]).fetchall())


def _write_about(frame: _Frame, here: Path, null_p999: dict[str, float]) -> None:
    rules = [rule for rule in RULE_COLUMN if (here / f"counts-{rule}.npy").exists()]
    about = {
        "seeds": frame.seeds,
        "d_sae": frame.d_sae,
        "n_comparisons": frame.n_comparisons,
        "rules": rules,
        "null_p999": null_p999,
    }
    (here / layout.ABOUT).write_text(json.dumps(about))
