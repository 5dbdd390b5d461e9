"""Matches of an ensemble in tiles of pairs: a unit of work for each, and a member's matches put together from their files.

A tile is a block of anchors against a block of comparisons. Its file holds both directions of its pairs, so that a member's matches
lie in the tiles of its block, and no more than one member's are in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seedscope.engine.matching.match import FIELD_TYPES, Matches, PairMatches, matched_pairs, others, unmatched
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store.parts import write_arrays

BLOCKS = 8  # of members: 36 tiles, each of which reads a quarter of the members


class MatchTask(NamedTuple):
    """What is matched, in plain values that another process can read."""

    members: str
    """Folder of the members' files."""
    seeds: tuple[int, ...]
    live: str | None
    """A .npy file (members, d_sae) of the features that fired; None where that is not known."""
    assign: bool
    """Whether pairs are matched one to one as well."""
    device: str


class Tile(NamedTuple):
    """Blocks of members, the same one or the second behind the first."""

    anchors: tuple[int, int]
    comparisons: tuple[int, int]

    @property
    def n_pairs(self) -> int:
        """Pairs of members in it."""
        n, m = self.anchors[1] - self.anchors[0], self.comparisons[1] - self.comparisons[0]
        return n * (n - 1) // 2 if self.anchors == self.comparisons else n * m

    def path(self, folder: Path) -> Path:
        """Its file in a folder of tiles."""
        return folder / f"tile-{self.anchors[0]}-{self.comparisons[0]}.npz"


def tiles(n_members: int, n_blocks: int = BLOCKS) -> list[Tile]:
    """Tiles that hold every pair once, the same whoever works on them."""
    size = -(-n_members // n_blocks)
    blocks = [(first, min(first + size, n_members)) for first in range(0, n_members, size)]
    every = [Tile(a, b) for at, a in enumerate(blocks) for b in blocks[at:]]
    return [tile for tile in every if tile.n_pairs]


def match_tile(task: MatchTask, tile: Tile, path: str) -> str:
    """Match the pairs of a tile and write them to a file; returns its path. Memory: its matches beside what matching holds."""
    members = StoredMembers(Path(task.members), task.seeds)
    live = None if task.live is None else np.load(task.live)
    arrays: dict[str, np.ndarray] = {}
    blocks = range(*tile.anchors), range(*tile.comparisons)
    for pair in matched_pairs(members, live, assign=task.assign, device=task.device, tile=blocks):
        for anchor, slot, matches in pair.directions():
            arrays[f"{anchor}-{slot}-gap"] = np.array(pair.gap, np.float64)
            for name, values in matches._asdict().items():
                if values is not None:
                    arrays[f"{anchor}-{slot}-{name}"] = np.asarray(values, FIELD_TYPES[name])
    write_arrays(Path(path), arrays)
    return path


class TiledMatches:
    """The matches of `n_members` members in a folder of tiles; `computed` are the fields of PairMatches that pairs have."""

    def __init__(self, folder: Path, n_members: int, d_sae: int, computed: list[str]) -> None:
        self._folder, self._n_members, self._d_sae, self._computed = folder, n_members, d_sae, computed

    def take(self, member: int) -> Matches:
        """One member's slices of the ensemble's Matches, (d_sae, comparisons) each."""
        n = self._n_members - 1
        arrays = {
            name: unmatched(name, self._d_sae, n if name in self._computed else 0) for name in PairMatches._fields
        }
        gap = np.zeros(n)
        for slot, name, values in self._columns(member):
            if name == "gap":
                gap[slot] = values
            else:
                arrays[name][:, slot] = values
        return Matches(others(self._n_members)[member], gap, **arrays)

    def _columns(self, member: int) -> Iterator[tuple[int, str, np.ndarray]]:
        for tile in tiles(self._n_members):
            if member in range(*tile.anchors) or member in range(*tile.comparisons):
                with np.load(tile.path(self._folder), allow_pickle=False) as columns:
                    for key in columns.files:
                        anchor, slot, name = key.split("-")
                        if int(anchor) == member:
                            yield int(slot), name, columns[key]
