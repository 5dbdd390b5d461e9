"""Codes of many rows, batch by batch, for all members of an ensemble; and EV, L0 and dead shares over all rows."""

import copy
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from seedscope.engine.saes.sae import SAE, Codes

BATCH_TOKENS = 2048  # rows per batch: few enough for the caches
BATCH_NUMBERS = 2**26  # most dense activations per batch, all members together: 256 MiB


@runtime_checkable
class Rows(Protocol):
    """Activations (tokens, d_in) of which slices are read: an array, a memory map, or several files read as one array."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> np.ndarray: ...


def encoded(
    members: SAE, rows: Rows, device: torch.device, *, n_members: int | None = None
) -> Iterator[tuple[int, torch.Tensor, Codes]]:
    """Yield (index of the first row, rows in float32, codes) of consecutive batches: encoded on the device, moved to the CPU.

    Where these are some members of an ensemble, `n_members` are all of it: batches are as large as if all were encoded together,
    so that no number depends on how many are.
    """
    encoder = members if device.type == "cpu" else copy.deepcopy(members).to(device)
    n = max(min(BATCH_TOKENS, BATCH_NUMBERS // ((n_members or members.n_members) * members.d_sae)), 1)
    for first in range(0, len(rows), n):
        batch = torch.from_numpy(rows[first : first + n].astype(np.float32))
        with torch.no_grad():
            codes = encoder.encode(batch.to(device))
        yield first, batch, codes.cpu()


def count_active(n_active: Int[np.ndarray, "members d_sae"], codes: Codes) -> None:
    """Add, in place, the number of rows of a batch on which each feature is active."""
    for member, counts in enumerate(n_active):
        fired = codes.indices[:, member][codes.values[:, member] > 0]
        counts += torch.bincount(fired, minlength=len(counts)).numpy()


class HeldOutMeasures(NamedTuple):
    """Quality of the members' codes and reconstructions on rows that they were not trained on."""

    ev: Float[np.ndarray, " members"]  # 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2; NaN where that is not defined
    l0: Float[np.ndarray, " members"]  # active features per row
    dead: Float[np.ndarray, " members"]  # share of features that are active on none of the rows, 0 to 1
    n_active: Int[np.ndarray, "members d_sae"]  # rows on which each feature is active


@torch.no_grad()
def measure(
    sae: SAE, rows: np.ndarray, *, targets: np.ndarray | None = None, device: torch.device | str = "cpu"
) -> HeldOutMeasures:
    """Measure all members on rows (tokens, d_in); sums are taken in float64.

    `targets` (tokens, d_out) are what transcoders should predict; without them their EV is NaN.
    """
    if targets is None and not sae.convention.transcoder:
        targets = rows
    squared_error, n_codes = np.zeros(sae.n_members), np.zeros(sae.n_members)
    n_active = np.zeros((sae.n_members, sae.d_sae), np.int64)
    mean = np.zeros(0) if targets is None else targets.mean(0, dtype=np.float64)
    total = 0.0 if targets is not None else np.nan
    for first, part, codes in encoded(sae, rows, torch.device(device)):
        if targets is not None:
            goal = torch.from_numpy(targets[first : first + len(part)].astype(np.float32))
            total += float((goal.double() - torch.from_numpy(mean)).pow(2).sum())
            squared_error += (goal[:, None] - sae.decode(codes)).double().pow(2).sum((0, 2)).numpy()
        n_codes += (codes.values > 0).sum((0, 2)).numpy()
        count_active(n_active, codes)
    return HeldOutMeasures(1 - squared_error / total, n_codes / len(rows), (n_active == 0).mean(1), n_active)
