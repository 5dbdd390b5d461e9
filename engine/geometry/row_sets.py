"""Sets of decoder rows, one per member, that are read when they are asked for: what all members hold need not fit into memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.machine import WORKING_SHARE, available_memory
from seedscope.engine.saes.sae import directed

Rows = Tensor | np.ndarray
Device = torch.device | str


class MaskedRows(Sequence[Tensor]):
    """Of every member the rows that a mask keeps, gathered anew each time; decoders may be mapped from files."""

    def __init__(self, decoders: Sequence[Rows], masks: Sequence[np.ndarray]) -> None:
        """`decoders` (d_sae, d) and `masks` (d_sae,) of every member."""
        self._decoders, self._masks = decoders, masks
        self.counts = [int(mask.sum()) for mask in masks]

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, member: Any) -> Any:  # the members of a slice likewise
        if isinstance(member, slice):
            return self.of(range(len(self))[member])
        decoder = torch.as_tensor(self._decoders[member]).detach()
        return decoder[torch.from_numpy(self._masks[member]).to(decoder.device)]

    def of(self, members: Sequence[int]) -> "MaskedRows":
        """Some members' rows."""
        return MaskedRows([self._decoders[m] for m in members], [self._masks[m] for m in members])


class UnitSets:
    """Sets as unit rows on a device, float32 where they were not wider: the first ones stay in memory, up to WORKING_SHARE of what
    is free, and the others are read again each time. No number depends on which.
    """

    def __init__(self, sets: Sequence[Rows], device: Device) -> None:
        """Reads every set once. Raises ValueError for rows without a direction and for different widths."""
        self._sets, self._device, self._held = sets, device, list[Tensor]()
        self.counts: list[int] = []
        widths: set[int] = set()
        room = WORKING_SHARE * available_memory()
        for member in range(len(sets)):
            rows = torch.as_tensor(sets[member]).detach()
            widths.add(rows.shape[1])
            self.counts.append(len(rows))
            if bare := int((~directed(rows)).sum()):
                raise ValueError(f"set {member} has {bare} rows without a direction, expected none: leave them out")
            room -= 4 * rows.numel()
            if room >= 0 and member == len(self._held):
                self._held.append(self._unit(rows))
        if len(widths) > 1:
            raise ValueError(
                f"sets have rows of {sorted(widths)} entries, expected one width: the members read different activations"
            )
        [self.d] = widths or {0}

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, member: int) -> Tensor:
        if member < len(self._held):
            return self._held[member]
        return self._unit(torch.as_tensor(self._sets[member]).detach())

    def __iter__(self) -> Iterator[Tensor]:
        return (self[member] for member in range(len(self)))

    def _unit(self, rows: Tensor) -> Tensor:
        wide = rows if rows.dtype == torch.float64 else rows.float()
        return torch.nn.functional.normalize(wide.to(self._device), dim=1)


def unit_sets(sets: Sequence[Rows], device: Device = "cpu", *, n_members: int = 1, n_rows: int = 1) -> UnitSets:
    """The sets as unit rows.

    Raises ValueError for fewer than `n_members` sets, for a set of fewer than `n_rows` rows, for rows without a direction
    and for different widths.
    """
    if len(sets) < n_members:
        raise ValueError(f"found {len(sets)} member, expected at least {n_members}: spans are compared across members")
    units = UnitSets(sets, device)
    require_rows(units.counts, n_rows)
    return units


def require_rows(counts: Sequence[int], n_rows: int) -> None:
    """Raise ValueError for a set of fewer than `n_rows` rows."""
    for member, n in enumerate(counts):
        if n < n_rows:
            raise ValueError(
                f"set {member} has {n} rows, expected at least {n_rows}: leave that member out, or move theta or epsilon"
            )
