"""Best partners and cosines of an ensemble's members, one member in memory at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.store.parts import Part


class BestMatches(NamedTuple):
    """What geometry reads of an ensemble's matches: argmax partners and their cosines, in the order of seeds."""

    other: np.ndarray  # (members, comparisons) members that each is compared with
    partner: Sequence[np.ndarray]  # per member (d_sae, comparisons), -1: none
    cosine: Sequence[np.ndarray]  # likewise


class _StoredArrays(Sequence[np.ndarray]):
    """An array of every member of a part, read anew each time."""

    def __init__(self, part: Part, seeds: tuple[int, ...], name: str) -> None:
        self._part, self._seeds, self._name = part, seeds, name

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, member: Any) -> Any:  # the members of a slice likewise
        if isinstance(member, slice):
            return _StoredArrays(self._part, self._seeds[member], self._name)
        return self._part.read(self._seeds[member], self._name)[self._name]


def stored_best_matches(match: Part, seeds: tuple[int, ...]) -> BestMatches:
    """Those of the part `match`."""
    other = np.stack([match.read(seed, "other")["other"] for seed in seeds])
    return BestMatches(other, _StoredArrays(match, seeds, "partner"), _StoredArrays(match, seeds, "cosine"))
