"""Activations on disk: numbered files that together are one array of rows, written in order and read like an array."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from seedscope.engine.contract.files import write_whole

SHARD_BYTES = 2**30
NOTE, UNITS = "harvest.json", "units.json"
GIB = 2**30


@runtime_checkable
class FileRows(Protocol):
    """Rows (tokens, d_in) of one file, read on demand in `dtype`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray: ...


class Shards:
    """Rows (tokens, d_in) in several files: `len`, `shape`, slices and integer arrays as on a NumPy array, in copies."""

    def __init__(self, parts: Sequence[np.ndarray | FileRows]) -> None:
        self._parts = list(parts)
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        self.shape = (int(self._starts[-1]), parts[0].shape[1])
        self.dtype, self.ndim = parts[0].dtype, 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | np.integer | slice | np.ndarray | list) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._contiguous(start, max(start, stop))
            key = np.arange(start, stop, step)
        index = np.asarray(key)
        index = np.flatnonzero(index) if index.dtype == bool else index
        flat = np.where(index < 0, index + len(self), index).reshape(-1)
        if len(flat) and (flat.min() < 0 or flat.max() >= len(self)):
            raise IndexError(f"row {index.reshape(-1)[0]} is not among {len(self)} rows")
        rows = np.empty((len(flat), self.shape[1]), self.dtype)
        part = np.searchsorted(self._starts, flat, side="right") - 1
        for each in np.unique(part):
            rows[part == each] = self._parts[each][flat[part == each] - self._starts[each]]
        return rows.reshape(*index.shape, self.shape[1])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        whole = self._contiguous(0, len(self))
        return whole if dtype is None else whole.astype(dtype)

    def place(self, row: int) -> tuple[np.ndarray | FileRows, int]:
        """The file that holds a row, as an array, and the row's position in it."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[part], row - int(self._starts[part])

    def _contiguous(self, start: int, stop: int) -> np.ndarray:
        pieces = [
            part[max(start - first, 0) : max(stop - first, 0)]
            for part, first in zip(self._parts, self._starts[:-1], strict=True)
            if start < first + len(part) and first < stop
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), self.dtype)


class Chosen:
    """Some rows (tokens, d_in) of an array, by ascending index, read on demand: `len`, `shape`, slices and integer arrays."""

    def __init__(self, rows: "np.ndarray | Shards | Chosen", index: np.ndarray) -> None:
        self._rows, self._index = rows, index
        self.shape: tuple[int, int] = (len(index), rows.shape[1])
        self.dtype: np.dtype = rows.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        return self._rows[self._index[part]]


class ShardWriter:
    """Fills a folder of shards, and goes on with one: shard i holds the rows of windows [i, i + 1) * windows_per_shard.

    `harvest.json` notes what the rows are made from and how many windows are safely on disk. A shard's size follows from
    the token set, so a file that lost its end is noticed, and only it and what follows is made again.
    """

    def __init__(
        self, folder: Path, made_from: dict[str, str], rows_per_window: np.ndarray, d_in: int, windows_per_shard: int
    ) -> None:
        self.folder, self.d_in, self.dtype = folder, d_in, np.dtype(made_from["dtype"])
        self._made_from = made_from | {"d_in": d_in, "windows_per_shard": windows_per_shard}
        self._per_shard = windows_per_shard
        self._rows = np.concatenate([[0], np.cumsum(rows_per_window)])  # rows in front of each window
        self.n_windows, self.total = len(rows_per_window), int(self._rows[-1])
        self._note = folder / NOTE
        self.windows = self._safe_windows()

    @property
    def rows(self) -> int:
        """Rows on disk."""
        return int(self._rows[self.windows])

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}.{self.dtype.kind}{8 * self.dtype.itemsize}"

    def _bytes(self, shard: int, windows: int) -> int:
        """Size of a shard when `windows` windows of the whole set are written."""
        first = shard * self._per_shard
        last = min(max(windows, first), first + self._per_shard, self.n_windows)
        return int(self._rows[last] - self._rows[first]) * self.d_in * self.dtype.itemsize

    @property
    def n_shards(self) -> int:
        """Files of the whole set."""
        return self._n_shards(self.n_windows)

    def _n_shards(self, windows: int) -> int:
        return -(-windows // self._per_shard)

    def _safe_windows(self) -> int:
        try:
            note = json.loads(self._note.read_text())
        except (OSError, ValueError):
            return 0
        if note.get("digest") != digest(self._made_from):
            return 0
        windows = min(int(note["windows"]), self.n_windows)
        for shard in range(self._n_shards(windows)):
            path = self.path(shard)
            if not path.exists() or path.stat().st_size < self._bytes(shard, windows):
                return shard * self._per_shard
        return windows

    def open(self) -> None:
        """Cut off what is not safely written, and refuse to begin where the rest does not fit on the disk."""
        kept = {self.path(shard) for shard in range(self._n_shards(self.windows))}
        for stale in [*self.folder.glob("shard-*"), self._note]:
            if stale not in kept and (stale != self._note or not self.windows):
                stale.unlink(missing_ok=True)
        for shard, path in enumerate(sorted(kept)):
            os.truncate(path, self._bytes(shard, self.windows))
        (self.folder / UNITS).unlink(missing_ok=True)
        self.require_room()

    def open_for_units(self) -> None:
        """Prepare the folder for shards that units write, each whole; those that they wrote before stay.

        What lies there of other rows, or was not written by units, is removed. Refuses as `open` does.
        """
        made = {"digest": digest(self._made_from)}
        try:
            is_ours = json.loads((self.folder / UNITS).read_text()) == made
        except (OSError, ValueError):
            is_ours = False
        if not is_ours:
            for stale in [*self.folder.glob("shard-*"), self._note]:
                stale.unlink(missing_ok=True)
            write_whole(self.folder / UNITS, json.dumps(made), durable=False)
        self.require_room()

    def windows_of(self, shard: int) -> tuple[int, int]:
        """The first window of a shard, and the one behind its last."""
        first = shard * self._per_shard
        return first, min(first + self._per_shard, self.n_windows)

    def rows_of(self, shard: int) -> int:
        """Rows of a shard."""
        first, last = self.windows_of(shard)
        return int(self._rows[last] - self._rows[first])

    def finish(self) -> None:
        """Note that all shards are there, which units wrote."""
        self.windows = self.n_windows
        self.note()

    def require_room(self) -> None:
        """Raise ValueError where the rest does not fit on the disk."""
        needed = (self.total - self.rows) * self.d_in * self.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"the activations need {needed / GIB:.2f} GiB more in {self.folder} ({self.total - self.rows:,} tokens of "
                f"{self.d_in} {self.dtype} numbers), {free / GIB:.2f} GiB are free; take fewer tokens or another disk"
            )

    def append(self, rows: np.ndarray, windows: int) -> None:
        """Add the rows of the next `windows` windows, all of one shard."""
        with open(self.path(self.windows // self._per_shard), "ab") as file:
            file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.windows = min(self.windows + windows, self.n_windows)

    def note(self) -> None:
        """Make what was appended survive a stop: first the rows, then the note that they are there."""
        if self.windows:
            with open(self.path((self.windows - 1) // self._per_shard), "rb+") as file:
                os.fsync(file.fileno())
        state = {"digest": digest(self._made_from), "windows": self.windows, "made_from": self._made_from}
        write_whole(self._note, json.dumps(state, indent=1))

    def read(self) -> "np.ndarray | Shards":
        """Everything, read-only: a memory map where it is one file, else `Shards`."""
        parts = []
        for shard in range(self.n_shards):
            n_rows = self._bytes(shard, self.n_windows) // (self.d_in * self.dtype.itemsize)
            if n_rows:
                parts.append(np.memmap(self.path(shard), self.dtype, "r", shape=(n_rows, self.d_in)))
        return parts[0] if len(parts) == 1 else Shards(parts)


def reopened(folder: Path) -> "np.ndarray | Shards":
    """What a finished ShardWriter left in a folder, as `ShardWriter.read` gives it; raises OSError or ValueError without it."""
    made_from = json.loads((folder / NOTE).read_text())["made_from"]
    dtype, d_in = np.dtype(made_from["dtype"]), made_from["d_in"]
    files = [path for path in sorted(folder.glob("shard-*")) if path.stat().st_size]
    sizes = [path.stat().st_size // (d_in * dtype.itemsize) for path in files]
    parts = [np.memmap(path, dtype, "r", shape=(n, d_in)) for path, n in zip(files, sizes, strict=True)]
    return parts[0] if len(parts) == 1 else Shards(parts)


def digest(made_from: dict) -> str:
    """16 hex digits over everything a harvest is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
