"""One ensemble's index as pages read it: mapped columns, matches at any theta, and the rows that hold a token or a word."""

import json
import mmap
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from seedscope.app.store.byte_cache import ByteCache
from seedscope.app.store.errors import DamagedIndexError
from seedscope.engine.contract.index import layout
from seedscope.engine.contract.index.cells import count_between
from seedscope.engine.contract.index.rows import row_numbers
from seedscope.engine.contract.schema import NO_MATCH, theta_index

MOST_MAPPED = 160 << 20  # bytes of mapped columns that a process may hold


def _mapped_bytes() -> int:
    """Bytes of files that this process maps and has touched, libraries among them; 0 where the system does not say."""
    with suppress(OSError):  # there is no such file but on Linux
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    return 0


@cache
def _of_libraries() -> int:
    """What was mapped when the first index was opened."""
    return _mapped_bytes()


class FeatureIndex:
    """The index of one ensemble; row r is feature r % d_sae of the member r // d_sae, in ascending order of seeds.

    Columns are mapped, not read: what a request does not touch costs nothing. Safe to call from several threads.
    """

    def __init__(self, folder: Path, array_cache: ByteCache) -> None:
        self.folder = self._folder = folder
        self._cache = array_cache
        _of_libraries()
        self._maps: dict[str, mmap.mmap] = {}
        self._present: dict[str, bool] = {}
        self.is_damaged = False  # a file could not be read
        with self._reading(layout.ABOUT):
            about = json.loads((folder / layout.ABOUT).read_text())
        self.seeds: list[int] = about["seeds"]
        self.d_sae: int = about["d_sae"]
        self.n_comparisons: int = about["n_comparisons"]
        self.rules: list[str] = about["rules"]
        self.null_p999: dict[str, float] = about["null_p999"]
        self.n_rows = len(self.seeds) * self.d_sae
        self._member = {seed: i for i, seed in enumerate(self.seeds)}

    # -- rows ----------------------------------------------------------------------------------------------------

    def row(self, seed: int, feature: int) -> int | None:
        """The row of a feature; None where there is none."""
        member = self._member.get(seed)
        return member * self.d_sae + feature if member is not None and 0 <= feature < self.d_sae else None

    def place(self, row: int) -> tuple[int, int]:
        """(seed, feature) of a row."""
        member, feature = divmod(int(row), self.d_sae)
        return self.seeds[member], feature

    def key(self, seed: int, feature: int) -> float:
        """Where (seed, feature) would stand among rows, for comparison with them; between two rows where it is none."""
        row = self.row(seed, feature)
        if row is not None:
            return row
        member = bisect_left(self.seeds, seed)
        within = self.d_sae if seed in self._member else 0
        return member * self.d_sae + within - 0.5

    def rows_at(self, seeds: ArrayLike, features: ArrayLike) -> np.ndarray:
        """Rows of features; raises ValueError where there is no such feature."""
        return row_numbers(self.seeds, self.d_sae, seeds, features)

    def seed_of(self, rows: np.ndarray) -> np.ndarray:
        """Seeds of rows."""
        return np.array(self.seeds, np.int64)[rows // self.d_sae]

    # -- columns -------------------------------------------------------------------------------------------------

    def column(self, name: str) -> np.ndarray:
        """(rows,) a column by the name of its file, mapped; see engine.contract.index.layout."""
        return self._open(f"{name}.npy")

    def order(self, column: str, *, down: bool) -> np.ndarray:
        """(rows,) rows sorted by a column."""
        return self._open(f"order-{column}-{'down' if down else 'up'}.npy")

    def has(self, name: str) -> bool:
        """Whether there is a file of that name; files do not change while an index is open."""
        if name not in self._present:
            self._present[name] = (self._folder / name).exists()
        return self._present[name]

    @cached_property
    def _texts(self) -> pa.RecordBatchFileReader:
        with self._reading(layout.TEXTS):
            return pa.ipc.open_file(pa.py_buffer(self._map(layout.TEXTS)))

    def texts(self, rows: np.ndarray, names: Sequence[str] = layout.TEXT_COLUMNS) -> dict[str, list[Any]]:
        """Texts and token lists of rows, in their order."""
        rows = np.asarray(rows, np.int64)
        members = rows // self.d_sae
        taken: list[pa.RecordBatch] = []
        order = np.argsort(members, kind="stable")
        for member in np.unique(members):
            features = pa.array(rows[members == member] % self.d_sae)
            taken.append(self._texts.get_batch(int(member)).select(list(names)).take(features))
        if not taken:
            return {name: [] for name in names}
        table = pa.Table.from_batches(taken)
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return {name: _reordered(table[name].to_pylist(), back) for name in names}

    # -- matches -------------------------------------------------------------------------------------------------

    def matched(self, rule: str, theta: float) -> np.ndarray:
        """(rows,) X of every feature under a rule at theta.

        On the grid of hundredths a stored column; elsewhere counted from the cosines between two hundredths.
        """
        if not self.n_comparisons:
            return np.zeros(self.n_rows, np.uint8)
        return self._cache.get((self._folder, "matched", rule, theta), lambda: self._count(rule, theta))

    def matched_at(self, rule: str, theta: float, rows: np.ndarray) -> np.ndarray:
        """X of a few features."""
        if len(rows) > self.n_rows // 16 or not self.n_comparisons:
            return self.matched(rule, theta)[rows]
        index = theta_index(theta)
        if index is not None:
            return self._open(f"counts-{rule}.npy")[index][rows]
        return (self.cosines(rule, rows) >= np.float32(theta)).sum(1)

    def _count(self, rule: str, theta: float) -> np.ndarray:
        index = theta_index(theta)
        if index is not None:
            return np.array(self._open(f"counts-{rule}.npy")[index])
        between = count_between(rule, theta, self._open)
        if between is not None:
            return between
        counted = np.zeros((len(self.seeds), self.d_sae), np.uint8 if self.n_comparisons < 256 else np.uint16)
        for member, of_member in enumerate(counted):
            of_member[:] = self.reached(rule, theta, member).sum(1, dtype=counted.dtype).reshape(-1)[: self.d_sae]
        self.release_cosines()
        return counted.reshape(-1)

    def reached(self, rule: str, theta: float, member: int) -> np.ndarray:
        """(tiles, comparisons, TILE) whether each cosine of a member reaches theta; none beyond the last feature."""
        cosines, mask = self._cosines(rule)
        reached = cosines[member] >= np.float32(theta)
        if mask is not None:
            reached &= np.unpackbits(mask[member], axis=-1, bitorder="little").view(bool)
        return reached

    def _cosines(self, rule: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Tiled cosines, and which of them are of pairs; None where all are as they stand."""
        if self.has(f"cosines-{rule}.npy"):
            return self._open(f"cosines-{rule}.npy"), None
        return self._open("cosines-argmax.npy"), self._open(f"mask-{rule}.npy")

    def cosines(self, rule: str, rows: np.ndarray) -> np.ndarray:
        """(rows, comparisons) cosines that theta is compared with."""
        rows = np.asarray(rows, np.int64)
        if not self.n_comparisons:
            return np.zeros((len(rows), 0), np.float32)
        member, feature = np.divmod(rows, self.d_sae)
        tile, within = np.divmod(feature, layout.TILE)
        cosines, mask = self._cosines(rule)
        values = cosines[member, tile, :, within]
        if mask is None:
            return values
        bits = mask[member, tile, :, within // 8] >> (within % 8).astype(np.uint8)[:, None] & 1
        return np.where(bits.astype(bool), values, np.float32(NO_MATCH))

    def pair_cosines(self, rule: str, member: int, slot: int) -> np.ndarray:
        """(d_sae,) cosines of a member's features in one comparison."""
        cosines, mask = self._cosines(rule)
        values = cosines[member, :, slot].reshape(-1)[: self.d_sae]
        if mask is None:
            return values
        taken = np.unpackbits(mask[member, :, slot].reshape(-1), count=self.d_sae, bitorder="little").view(bool)
        return np.where(taken, values, np.float32(NO_MATCH))

    # -- search --------------------------------------------------------------------------------------------------

    def rows_of_tokens(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(rows, firings) of every place where a feature has one of the tokens among its top tokens."""
        offsets = self._open("token-offsets.npy")
        chosen = np.asarray(tokens, np.int64)
        chosen = chosen[chosen + 1 < len(offsets)]
        bounds = zip(offsets[chosen].tolist(), offsets[chosen + 1].tolist(), strict=True)
        stretches = [slice(begin, end) for begin, end in bounds if end > begin]
        return self._stretches("token-rows.npy", stretches), self._stretches("token-firings.npy", stretches)

    def token_counts(self) -> np.ndarray:
        """(tokens,) features that have each token among their top tokens."""
        return np.diff(self._open("token-offsets.npy"))

    @cached_property
    def words(self) -> list[str]:
        """All words of explanations, sorted."""
        with self._reading(layout.WORDS):
            words: list[str] = json.loads((self._folder / layout.WORDS).read_text())
        return words

    def word_counts(self) -> np.ndarray:
        """(words,) features whose explanations hold each word."""
        return np.diff(self._open("word-offsets.npy"))

    def rows_of_words(self, first: str, end: str | None = None) -> np.ndarray:
        """Rows, ascending, whose explanations hold the word `first`; with `end`, any word from `first` to before `end`."""
        begin = bisect_left(self.words, first)
        stop = bisect_left(self.words, end) if end else begin + (self.words[begin : begin + 1] == [first])
        offsets = self._open("word-offsets.npy")
        rows = self._stretches("word-rows.npy", [slice(offsets[begin], offsets[stop])])
        if stop == begin + 1 or not len(rows):
            return rows
        if len(rows) < self.n_rows // 16:
            return np.unique(rows)
        holds = np.zeros(self.n_rows, bool)  # costs less than sorting so many
        holds[rows] = True
        return np.flatnonzero(holds)

    def _stretches(self, name: str, stretches: list[slice]) -> np.ndarray:
        array = self._open(name)
        parts = [array[stretch] for stretch in stretches]
        return np.concatenate(parts) if parts else np.zeros(0, array.dtype)

    # -- samples and chance --------------------------------------------------------------------------------------

    def sample(self, n: int, passes: np.ndarray | None = None) -> np.ndarray:
        """The first n rows, ascending, of a fixed random order: of all, or of those that pass; all of them where they are few."""
        order, size = self._open("order-random.npy"), max(4 * n, 4_096)
        taken: list[np.ndarray] = []
        for begin in range(0, self.n_rows, size):
            rows = order[begin : begin + size]
            taken.append(rows if passes is None else rows[passes[rows]])
            if sum(map(len, taken)) >= n:
                break
        return np.sort(np.concatenate(taken)[:n].astype(np.int64))

    def in_random_order(self, passes: np.ndarray, at_once: int) -> Iterator[np.ndarray]:
        """All rows that pass, in the fixed random order, some at a time."""
        order, size = self._open("order-random.npy"), max(4 * at_once, 4_096)
        for begin in range(0, self.n_rows, size):
            rows = order[begin : begin + size]
            rows = rows[passes[rows]]
            yield from np.split(rows, range(at_once, len(rows), at_once))

    def null_counts(self, theta: float) -> dict[str, list[int]]:
        """{null kind: chance features by X}."""
        kinds = list(self.null_p999)
        index = theta_index(theta)
        if index is not None:
            counts = self._open("null-counts.npy")
            return {kind: counts[i, index].tolist() for i, kind in enumerate(kinds)}
        counts = self.kept(("null", theta), lambda: self._count_null(theta))  # an answer asks for them three times
        return {kind: counts[i].tolist() for i, kind in enumerate(kinds)}

    def _count_null(self, theta: float) -> np.ndarray:
        """(kinds, comparisons + 1) chance features by X."""
        counts = np.zeros((len(self.null_p999), self.n_comparisons + 1), np.int64)
        for of_kind, kind in zip(counts, self.null_p999, strict=True):
            cosines = self._open(f"null-cosines-{kind}.npy")
            n_reached = np.zeros(cosines.shape[1], np.uint16)
            for of_comparison in cosines:
                n_reached += of_comparison >= np.float32(theta)
            of_kind += np.bincount(n_reached, minlength=self.n_comparisons + 1)
        return counts

    # -- kept values, and memory ---------------------------------------------------------------------------------

    def kept(self, key: tuple, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is computed once, while there is room for it."""
        return self._cache.get((self._folder, *key), compute)

    def release_if_large(self) -> None:
        """Give mapped pages back where they have become many: they are the system's cache, but count as this process's memory."""
        if _mapped_bytes() - _of_libraries() > MOST_MAPPED:
            self.release()

    def release_cosines(self) -> None:
        """Give the pages of cosines back: a gigabyte that was read once for a theta off the grid."""
        self.release("cosines-")

    def release(self, beginning: str = "") -> None:
        """Give mapped pages back, of files whose name begins so; touched again, they come from the system's cache."""
        for name, each in list(self._maps.items()):
            if name.startswith(beginning) and hasattr(mmap, "MADV_DONTNEED"):
                each.madvise(mmap.MADV_DONTNEED)

    def _open(self, name: str) -> np.ndarray:
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = self._read(name)
        return array

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Raise what goes wrong with a file as DamagedIndexError."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.is_damaged = True
            store = self._folder.parent.with_suffix(".duckdb")
            raise DamagedIndexError(store, self._folder / name, f"{type(error).__name__}: {error}") from None

    def _read(self, name: str) -> np.ndarray:
        with self._reading(name):
            return self._read_mapped(name)

    def _read_mapped(self, name: str) -> np.ndarray:
        if name.endswith(".bin"):
            has_bytes = (self._folder / name).stat().st_size
            return np.frombuffer(self._map(name), np.uint8) if has_bytes else np.zeros(0, np.uint8)
        with open(self._folder / name, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"{self._folder / name} is of format {version}, expected 1.0")
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        if not np.prod(shape):
            return np.zeros(shape, kind)
        return np.frombuffer(self._map(name), kind, offset=offset).reshape(shape)

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with open(self._folder / name, "rb") as file:
                self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]


def _reordered(values: list[Any], places: np.ndarray) -> list[Any]:
    return [values[i] for i in places]
