"""Writes an ensemble's best cosines and their counts at every theta of the grid, member by member: see `layout`."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap

from seedscope.engine.contract.index import layout
from seedscope.engine.contract.index.cells import CellWriter
from seedscope.engine.contract.schema import N_THETAS, NO_MATCH, RULE_COLUMN
from seedscope.engine.contract.stability import grid_cells

_AT_ONCE = 32_768  # rows whose counts are made at once: in 64 bits they take a hundred times their cosines


def new_array(path: Path, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """A new array in a file; NumPy cannot map one without entries."""
    if not np.prod(shape):
        np.save(path, np.zeros(shape, kind))
        return np.zeros(shape, kind)
    return open_memmap(path, "w+", kind, shape)


def give_back(arrays: Sequence[np.ndarray]) -> None:
    """Give the pages of written files back to the system: they would count as this process's memory until the end, 8 GB of it."""
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


class CosineWriter:
    """Cosines and counts of every rule, written member by member."""

    def __init__(self, here: Path, n_members: int, d_sae: int, n_comparisons: int, rules: Sequence[str]) -> None:
        self._here, self._rules, self._d_sae, self._n_comparisons = here, rules, d_sae, n_comparisons
        n, members, tiles = n_comparisons, n_members, layout.n_tiles(d_sae)
        kind = np.uint8 if n < 256 else np.uint16
        self._counts = {
            rule: new_array(here / f"counts-{rule}.npy", (N_THETAS, n_members * d_sae), kind) for rule in rules
        }
        self._cosines = {
            rule: new_array(here / f"cosines-{rule}.npy", (members, tiles, n, layout.TILE), np.float32)
            for rule in rules
        }
        self._masks: dict[str, np.ndarray] = {}
        if "argmax" in rules:  # a rule that turns out to leave argmax's cosines or NO_MATCH keeps a bit for each
            self._masks = {
                rule: new_array(here / f"mask-{rule}.npy", (members, tiles, n, layout.TILE // 8), np.uint8)
                for rule in rules
                if rule != "argmax"
            }
        self._cells = CellWriter(here, rules)

    def add(self, member: int, rows: pa.Table) -> None:
        """The cosines of a member's features."""
        n, d = self._n_comparisons, self._d_sae
        cosines = {rule: matrix(rows[RULE_COLUMN[rule]], n) for rule in self._rules}
        cells = {rule: thetas_reached(of_rule) for rule, of_rule in cosines.items()}
        if cosines:
            self._cells.add(cosines, cells)
        argmax: np.ndarray | None = None
        for rule in self._rules:
            self._counts[rule][:, member * d : (member + 1) * d] = counts_on_grid(cells[rule])
            tiled = _tiled(cosines[rule])
            argmax = tiled if rule == "argmax" else argmax
            if rule in self._masks and argmax is not None:
                taken = tiled == argmax
                if (taken | (tiled == np.float32(NO_MATCH)) | np.isnan(tiled)).all():
                    self._masks[rule][member] = np.packbits(taken, axis=-1, bitorder="little")
                else:
                    del self._masks[rule]
            self._cosines[rule][member] = tiled

    def arrays(self) -> list[np.ndarray]:
        """All that are written."""
        return [*self._counts.values(), *self._cosines.values(), *self._masks.values()]

    def close(self) -> None:
        """Keep one form of each rule's cosines."""
        self._cells.close()
        for rule in self._rules:
            mask = self._here / f"mask-{rule}.npy"
            if rule in self._masks:
                (self._here / f"cosines-{rule}.npy").unlink()
            else:
                mask.unlink(missing_ok=True)


def _tiled(cosines: np.ndarray) -> np.ndarray:
    """(tiles, comparisons, TILE) of (features, comparisons), filled up with NaN."""
    d, n = cosines.shape
    full = np.full((layout.n_tiles(d) * layout.TILE, n), np.nan, np.float32)
    full[:d] = cosines
    return full.reshape(-1, layout.TILE, n).transpose(0, 2, 1)


def matrix(column: pa.ChunkedArray, n: int) -> np.ndarray:
    """(rows, n) of a list column; NaN, which reaches no theta, where a row has no list."""
    lists = column.combine_chunks()
    flat: np.ndarray = lists.flatten().to_numpy()
    if len(flat) == len(lists) * n:
        return flat.reshape(len(lists), n)
    matrix = np.full((len(lists), n), np.nan, np.float32)
    lengths = np.diff(lists.offsets.to_numpy())
    matrix[lengths == n] = flat.reshape(-1, n)
    return matrix


def thetas_reached(cosines: np.ndarray) -> np.ndarray:
    """How many thetas of the grid each cosine reaches, uint8 of the same shape (rows, comparisons)."""
    cells = np.empty(cosines.shape, np.uint8)
    for begin in range(0, len(cosines), _AT_ONCE):
        cells[begin : begin + _AT_ONCE] = grid_cells(cosines[begin : begin + _AT_ONCE])
    return cells


def counts_on_grid(cells: np.ndarray) -> np.ndarray:
    """(N_THETAS, rows): how many of a row's cosines reach each theta of the grid; of how many thetas each reaches."""
    counts = np.empty((N_THETAS, len(cells)), np.uint8 if cells.shape[1] < 256 else np.uint16)
    for begin in range(0, len(cells), _AT_ONCE):
        some = cells[begin : begin + _AT_ONCE]
        keys = some + np.arange(len(some))[:, None] * (N_THETAS + 1)
        exactly = np.bincount(keys.ravel(), minlength=len(some) * (N_THETAS + 1)).reshape(len(some), N_THETAS + 1)
        counts[:, begin : begin + len(some)] = exactly[:, ::-1].cumsum(1)[:, ::-1][:, 1:].T
    return counts
