"""Rows run through all members of an ensemble, batch by batch; and what the members make of them as a whole."""

import copy
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from seedscope.engine.saes.sae import SAE, Codes

BATCH_TOKENS = 2048  # of the measuring pass: small enough to stay near the caches
BATCH_NUMBERS = 2**26  # activations of a batch, all members together, before they are packed: 256 MiB


@runtime_checkable
class Rows(Protocol):
    """Activations (tokens, d_in) of which slices are read: an array, a memory map, or several files read as one array."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> np.ndarray: ...


def encoded(members: SAE, rows: Rows, device: torch.device) -> Iterator[tuple[int, torch.Tensor, Codes]]:
    """(first row, rows, codes) of consecutive batches, on the CPU; encoded on the device."""
    encoder = members if device.type == "cpu" else copy.deepcopy(members).to(device)
    n = max(min(BATCH_TOKENS, BATCH_NUMBERS // (members.n_members * members.d_sae)), 1)
    for first in range(0, len(rows), n):
        batch = torch.from_numpy(rows[first : first + n].astype(np.float32))
        with torch.no_grad():
            codes = encoder.encode(batch.to(device))
        yield first, batch, codes.cpu()


def count_active(n_active: Int[np.ndarray, "members d_sae"], codes: Codes) -> None:
    """Add the rows of a batch on which each feature is active."""
    for member, counts in enumerate(n_active):
        fired = codes.indices[:, member][codes.values[:, member] > 0]
        counts += torch.bincount(fired, minlength=len(counts)).numpy()


class HeldOutMeasures(NamedTuple):
    """What SAEs do on rows that no training saw; the first three (members,)."""

    ev: Float[np.ndarray, " members"]  # 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2
    l0: Float[np.ndarray, " members"]  # active features per row
    dead: Float[np.ndarray, " members"]  # share of features that are active on none of the rows
    n_active: Int[np.ndarray, "members d_sae"]  # rows on which each is active


@torch.no_grad()
def measure(sae: SAE, rows: np.ndarray, *, device: torch.device | str = "cpu") -> HeldOutMeasures:
    """Run rows (tokens, d_in) through all members."""
    left, codes_n = np.zeros(sae.n_members), np.zeros(sae.n_members)
    n_active = np.zeros((sae.n_members, sae.d_sae), np.int64)
    mean = rows.mean(0, dtype=np.float64)
    total = 0.0
    for _, part, codes in encoded(sae, rows, torch.device(device)):
        total += float((part.double() - torch.from_numpy(mean)).pow(2).sum())
        left += (part[:, None] - sae.decode(codes)).double().pow(2).sum((0, 2)).numpy()
        codes_n += (codes.values > 0).sum((0, 2)).numpy()
        count_active(n_active, codes)
    return HeldOutMeasures(1 - left / total, codes_n / len(rows), (n_active == 0).mean(1), n_active)
