"""Cosines by cell of theta's grid: what a theta between two hundredths is counted from.

The counts at the hundredths below and above such a theta are stored; what lies between them are the cosines of one cell, at most
a twentieth of all. So cosines are kept once more, member by member, in each by cell, and within a cell by row: reading a cell
replaces reading all of them, which takes 1.2 GB for 3.1 million features of 96 members.

Cell c holds the cosines that reach theta (c - 1) / 100 and not theta c / 100, for c = 1 .. 100. A rule other than argmax keeps only
cosines that differ from argmax's there, and for each of argmax's a bit that says whether it is this rule's too.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seedscope.engine.contract.schema import N_THETAS
from seedscope.engine.contract.stability import grid_cells

N_CELLS = N_THETAS - 1
BASE = "argmax"  # whose cosines the other rules refer to
Read = Callable[[str], np.ndarray]  # the array of a file's name: bytes of `.bin`, else as it was saved


class CellWriter:
    """Writes the cells of every rule, member by member in ascending order of seeds; argmax is one of them."""

    def __init__(self, here: Path, rules: Sequence[str]) -> None:
        self._here, self._rules = here, rules
        self._offsets: dict[str, list[np.ndarray]] = {rule: [] for rule in rules}
        self._files = ExitStack()
        self._cosines = {rule: self._file(f"cells-{rule}.bin") for rule in rules}
        self._same = {rule: self._file(f"cells-same-{rule}.bin") for rule in rules if rule != BASE}

    def _file(self, name: str) -> BinaryIO:
        return self._files.enter_context(open(self._here / name, "wb"))

    def add(self, cosines: dict[str, np.ndarray], cells: dict[str, np.ndarray]) -> None:
        """A member's cosines (features, comparisons) under every rule, and how many thetas of the grid each reaches."""
        base_order = _order(cells[BASE])
        for rule in self._rules:
            kept, order = cells[rule], base_order
            if rule != BASE:
                differs = cosines[rule] != cosines[BASE]
                np.packbits(~differs.ravel()[base_order], bitorder="little").tofile(self._same[rule])
                kept = np.where(differs, kept, np.uint8(0))
                order = _order(kept)
            cosines[rule].ravel()[order].astype(np.float32, copy=False).tofile(self._cosines[rule])
            n_by_cell = np.bincount(kept.ravel(), minlength=N_THETAS + 1)[1:N_THETAS]
            begin = self._offsets[rule][-1][-1] if self._offsets[rule] else 0
            self._offsets[rule].append(begin + np.concatenate([[0], n_by_cell.cumsum()]))

    def close(self) -> None:
        """Write the offsets and end the files."""
        for rule, offsets in self._offsets.items():
            np.save(self._here / f"cells-offsets-{rule}.npy", np.array(offsets, np.int64).reshape(-1, N_CELLS + 1))
        self._files.close()


def _order(cells: np.ndarray) -> np.ndarray:
    """Flat places of the cosines in cells 1 .. N_CELLS, cell by cell and within a cell as they stand."""
    of_each = cells.astype(np.uint8, copy=False).ravel()  # NumPy sorts bytes by counting them
    order = of_each.argsort(kind="stable")
    first, end = np.searchsorted(of_each[order], (1, N_CELLS + 1))
    return order[first:end]


def count_between(rule: str, theta: float, read: Read) -> np.ndarray | None:
    """(rows,) how many of a row's cosines reach theta; None for a theta below 0, which these files do not answer."""
    number = np.float32(theta)
    cell = int(grid_cells(np.array([number]))[0])
    if cell == 0:
        return None
    counts = read(f"counts-{rule}.npy")
    reached = np.array(counts[cell - 1])
    if cell > N_CELLS:
        return reached
    own, base = _Cell(rule, cell, read), _Cell(BASE, cell, read)
    base_counts = read(f"counts-{BASE}.npy")
    for member, of_member in enumerate(reached.reshape(own.n_members, -1)):
        rows = slice(member * len(of_member), (member + 1) * len(of_member))
        n_own = counts[cell - 1, rows] - counts[cell, rows]  # cosines of each row in the cell
        if rule != BASE:
            n_base = base_counts[cell - 1, rows] - base_counts[cell, rows]
            is_same = own.same_as(base, member)
            of_member -= _sums(is_same & (base.cosines(member) < number), n_base, of_member.dtype)
            n_own -= _sums(is_same, n_base, of_member.dtype)
        of_member -= _sums(own.cosines(member) < number, n_own, of_member.dtype)
    return reached


class _Cell:
    """One cell of a rule's cosines, member by member."""

    def __init__(self, rule: str, cell: int, read: Read) -> None:
        self._rule, self._cell, self._read = rule, cell, read
        self._offsets = read(f"cells-offsets-{rule}.npy")
        self.n_members = len(self._offsets)
        n_bytes = -((self._offsets[:, 0] - self._offsets[:, -1]) // 8)  # a bit per cosine of a member, rounded up
        self._first_bytes = n_bytes.cumsum() - n_bytes

    def cosines(self, member: int) -> np.ndarray:
        """Those of a member that the rule keeps, by row."""
        begin, end = self._offsets[member, self._cell - 1 : self._cell + 1]
        return self._read(f"cells-{self._rule}.bin")[4 * begin : 4 * end].view(np.float32)

    def same_as(self, base: "_Cell", member: int) -> np.ndarray:
        """Which of the base's cosines in the cell are this rule's too."""
        first_byte = base._first_bytes[member]
        begin, end = base._offsets[member, self._cell - 1 : self._cell + 1] - base._offsets[member, 0]
        packed = self._read(f"cells-same-{self._rule}.bin")[first_byte + begin // 8 : first_byte + -(-end // 8)]
        flags: np.ndarray = np.unpackbits(packed, bitorder="little")[begin % 8 :][: end - begin].view(bool)
        return flags


def _sums(flags: np.ndarray, lengths: np.ndarray, kind: np.dtype) -> np.ndarray:
    """How many flags are set in each of the stretches of these lengths."""
    counted = np.concatenate([[0], flags.cumsum(dtype=np.int32)])
    ends = lengths.cumsum(dtype=np.int64)
    sums: np.ndarray = (counted[ends] - counted[ends - lengths]).astype(kind)
    return sums
