"""Firings of every feature on the evaluation tokens, collected batch by batch and read back feature by feature.

A firing is an activation above 0 of a feature whose decoder row has a direction. Activations are a_i * ||d_i||, or a_i where
decoding divides by the norm; what a normalising SAE multiplies into its reconstruction per token is left out and kept beside.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
from torch import Tensor

from seedscope.engine.saes.sae import SAE, Codes

# Of all members together, in memory before they are written out: 160 MiB, twice that while written.
HELD_FIRINGS = 2**24


class Firings(NamedTuple):
    """Firings of one member: equally long arrays."""

    feature: np.ndarray  # int16 while d_sae allows, to be sorted by radix and kept in 10 bytes a firing
    position: np.ndarray  # flat index into the token set
    value: np.ndarray

    def sorted(self) -> "Firings":
        """By feature, in the order of arrival within each."""
        order = np.argsort(self.feature, kind="stable")
        return Firings(*(array[order] for array in self))


class FiringSpool:
    """Collects the firings of all members, positions ascending, and gives back any range of a member's features.

    Memory: HELD_FIRINGS, and 8 bytes per feature of all members. Further firings wait in nameless files in `folder` (the system's
    temporary one by default), sorted by feature, 10 bytes each (12 where d_sae >= 2^15); they vanish with the spool. Nothing is
    approximated.
    """

    def __init__(self, sae: SAE, *, folder: Path | None = None, held_firings: int = HELD_FIRINGS) -> None:
        self._norms = sae.unit_norms()
        self.n_members, self.d_sae = sae.n_members, sae.d_sae
        self._kind = np.int16 if sae.d_sae < 2**15 else np.int32
        self._folder, self._limit = folder, held_firings
        self.n_active = np.zeros((sae.n_members, sae.d_sae), np.int64)  # positions that each feature is active on
        self.n_tokens = 0  # that batches had
        self.last_position = -1
        self._held: list[list[Firings]] = [[] for _ in range(sae.n_members)]
        self._n_held = 0
        self._runs: list[list[Firings]] = [[] for _ in range(sae.n_members)]  # sorted by feature; memory maps
        self._scales: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, codes: Codes, positions: np.ndarray) -> None:
        """Record one batch; `positions` (tokens,) are flat indices into the token set."""
        for member, norms in enumerate(self._norms):
            indices = codes.indices[:, member]
            values: Tensor = codes.values[:, member] * norms[indices]
            token, slot = ((values > 0) & values.isfinite()).nonzero(as_tuple=True)  # rows without a direction: never
            feature = indices[token, slot].numpy()
            self.n_active[member] += np.bincount(feature, minlength=len(norms))
            self._held[member].append(
                Firings(
                    feature.astype(self._kind),
                    positions[token.numpy()].astype(np.int32),
                    values[token, slot].float().numpy(),
                )
            )
            self._n_held += len(feature)
        self.n_tokens += len(positions)
        self.last_position = max(self.last_position, int(positions[-1]) if len(positions) else -1)
        if codes.scale is not None:
            self._scales.append((positions, codes.scale[:, 0].numpy()))
        if self._n_held > self._limit:
            self.set_aside()

    def runs(self, member: int) -> list[Firings]:
        """A member's firings in runs, each sorted by feature, then position; positions of a later run are higher."""
        if self._held[member]:
            run = _concatenated(self._held[member], self._kind).sorted()
            self._runs[member].append(run)
            self._held[member] = []
            self._n_held -= len(run.feature)
        return self._runs[member]

    def merged(self, member: int) -> Firings:
        """A member's firings as one run, sorted by feature, then position; several are merged into a file, once."""
        runs = self.runs(member)
        if len(runs) > 1:
            ranges = feature_ranges(self.n_active[member], self._limit // 4)
            parts = (self._given_back(member, self.of_features(runs, features)) for features in ranges)
            self._runs[member] = [self._written(parts, int(self.n_active[member].sum()))]
        return self._runs[member][0] if self._runs[member] else _concatenated([], self._kind)

    def _given_back(self, member: int, part: Firings) -> Firings:
        self.give_back(member)
        return part

    def give_back(self, *members: int) -> None:
        """Give the pages that members' files take in memory back to the system, which reads them again."""
        for run in (run for member in members for run in self._runs[member]):
            mapped = run.feature.base
            while isinstance(mapped, np.ndarray):
                mapped = mapped.base
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def forget(self, member: int) -> None:
        """Give up a member's firings."""
        self.runs(member)
        self._runs[member] = []

    def of_features(self, runs: list[Firings], features: slice) -> Firings:
        """The firings of a range of features from a member's `runs`, sorted by feature, then position."""
        # Of another type all features would be converted. Features that the type cannot name are above all there are.
        borders = np.array([features.start, min(features.stop, self.d_sae) - 1], self._kind)
        cuts = [
            (np.searchsorted(run.feature, borders[0]), np.searchsorted(run.feature, borders[1], side="right"))
            for run in runs
        ]
        some = [Firings(*(array[low:high] for array in run)) for run, (low, high) in zip(runs, cuts, strict=True)]
        return _concatenated(some, self._kind) if len(runs) == 1 else _concatenated(some, self._kind).sorted()

    def scales(self) -> np.ndarray | None:
        """What each token's reconstruction is multiplied by, (last position + 1,) float64; None where nothing is."""
        if not self._scales:
            return None
        scales = np.zeros(self.last_position + 1)
        for positions, values in self._scales:
            scales[positions] = values
        return scales

    def set_aside(self) -> None:
        """Move the held firings to one file, member after member, each sorted by feature."""
        sizes = [sum(len(part.feature) for part in parts) for parts in self._held]
        with TemporaryFile(dir=self._folder) as file:
            for parts in self._held:
                for array in _concatenated(parts, self._kind).sorted():
                    array.tofile(file)
                parts.clear()
            file.flush()
            written = np.asarray(np.memmap(file, np.uint8, "r"))  # outlives the file's name
        start = 0
        for member, size in enumerate(sizes):
            arrays = []
            for kind in (self._kind, np.int32, np.float32):
                stop = start + size * np.dtype(kind).itemsize
                arrays.append(written[start:stop].view(kind))
                start = stop
            self._runs[member].append(Firings(*arrays))
        self._n_held = 0

    def _written(self, parts: Iterator[Firings], n: int) -> Firings:
        """Parts of one run of n firings, one after the other, in a nameless file; a file of nothing cannot be mapped."""
        if not n:
            return _concatenated([], self._kind)
        kinds = [np.dtype(kind) for kind in (np.float32, np.int32, self._kind)]  # at multiples of their sizes
        starts = np.concatenate([[0], np.cumsum([n * kind.itemsize for kind in kinds])]).tolist()
        with TemporaryFile(dir=self._folder) as file:
            done = 0
            for part in parts:
                for array, start, kind in zip((part.value, part.position, part.feature), starts, kinds, strict=False):
                    file.seek(start + done * kind.itemsize)
                    array.tofile(file)
                done += len(part.feature)
            file.flush()
            mapped = np.memmap(file, np.uint8, "r")  # outlives the file's name
        value, position, feature = (
            np.asarray(mapped[start : start + n * kind.itemsize]).view(kind)
            for start, kind in zip(starts, kinds, strict=False)
        )
        return Firings(feature, position, value)


def _concatenated(parts: list[Firings], kind: type) -> Firings:
    """Firings one after the other; none where there is no part."""
    empty = Firings(np.empty(0, kind), np.empty(0, np.int32), np.empty(0, np.float32))
    return parts[0] if len(parts) == 1 else Firings(*map(np.concatenate, zip(*parts, strict=True))) if parts else empty


def feature_ranges(n_active: np.ndarray, at_once: int) -> list[slice]:
    """Cut the features into ranges of at most `at_once` firings, or of one feature that has more."""
    ends = np.cumsum(n_active)
    ranges, start, before = [], 0, 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, before + at_once, side="right")), start + 1)
        ranges.append(slice(start, stop))
        start, before = stop, int(ends[stop - 1])
    return ranges
