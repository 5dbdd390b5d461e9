"""Matches of an ensemble on disk while its pairs are matched: each pair's columns are written to files, one per member.

A file holds one record per comparison: the columns of the fields that are computed, one after the other. So a pair adds to two
files, and a member's arrays are put together from one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from seedscope.engine.matching.match import FIELD_TYPES, MatchedPair, Matches, PairMatches, others, unmatched


class Spool:
    """The matches of `n_members` members so far; `computed` are the fields of PairMatches that pairs have."""

    def __init__(self, folder: Path, n_members: int, d_sae: int, computed: list[str]) -> None:
        # The narrow field last: the others' numbers then lie at multiples of their size.
        self._fields = sorted(computed, key=lambda name: -FIELD_TYPES[name].itemsize)
        self._folder, self._n_members, self._d_sae = folder, n_members, d_sae
        self._record = sum(d_sae * FIELD_TYPES[name].itemsize for name in self._fields)
        self._gap = np.zeros((n_members, n_members - 1))
        folder.mkdir(parents=True)
        for member in range(n_members):
            self._path(member).touch()

    def add(self, pair: MatchedPair) -> None:
        """Write both directions of a pair."""
        for anchor, slot, matches in pair.directions():
            self._gap[anchor, slot] = pair.gap
            columns = matches._asdict()
            with open(self._path(anchor), "r+b") as file:
                file.seek(slot * self._record)
                for name in self._fields:
                    values = unmatched(name, self._d_sae) if columns[name] is None else columns[name]
                    file.write(np.ascontiguousarray(values, FIELD_TYPES[name]).data)

    def take(self, member: int) -> Matches:
        """One member's slices of the ensemble's Matches, (d_sae, comparisons) each; its file is removed."""
        n_comparisons = self._n_members - 1
        records = np.memmap(self._path(member), np.uint8, "r", shape=(n_comparisons, self._record))
        arrays = {name: unmatched(name, self._d_sae, 0) for name in PairMatches._fields}
        first = 0
        for name in self._fields:
            stop = first + self._d_sae * FIELD_TYPES[name].itemsize
            arrays[name] = np.ascontiguousarray(records[:, first:stop].view(FIELD_TYPES[name]).T)
            first = stop
        del records
        self._path(member).unlink()
        return Matches(others(self._n_members)[member], self._gap[member], **arrays)

    def _path(self, member: int) -> Path:
        return self._folder / f"member-{member}"


@contextmanager
def spooled(folder: Path, n_members: int, d_sae: int, computed: list[str]) -> Iterator[Spool]:
    """A Spool in a folder that is removed afterwards; what an interrupted run left there is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield Spool(folder, n_members, d_sae, computed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
