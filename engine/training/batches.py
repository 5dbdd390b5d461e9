"""Batches of activation rows in training order, checked to be finite."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.activations.shards import Shards
from seedscope.engine.contract.recipe import TrainConfig

Rows = np.ndarray | Shards


def batches(activations: Rows, config: TrainConfig, *, dtype: torch.dtype, first_step: int = 0) -> Iterator[Tensor]:
    """Yield (batch, d_in) rows, or (batch, members, d_in) where members may see different ones; epochs as needed.

    They may where each shuffles for itself, and where rows are dealt into samples: then each batch holds every member's own
    rows even if all are the same, so that a member is the same, bit for bit, whether the others see its rows or not.
    From `first_step` on, as if the batches before it had been drawn. Raises ValueError for too few rows, and naming the
    first row that is not finite.
    """
    shared = config.data_order == "shared"
    generators = [torch.Generator().manual_seed(s) for s in ((0,) if shared else config.seeds)]
    n_rows, n_batches = len(activations) // config.data_samples, config.n_tokens // config.batch
    together = shared and config.data_samples == 1
    own = [seed % config.data_samples if config.data_sample == "independent" else 0 for seed in config.seeds]
    begins = n_rows * torch.tensor([0] if together else own)
    per_epoch = n_rows // config.batch
    if not per_epoch:
        among = f" in each of {config.data_samples} samples" if config.data_samples > 1 else ""
        raise ValueError(f"found {n_rows} activations{among}, expected at least one batch ({config.batch}); add tokens")
    for step in range(n_batches):
        if step % per_epoch == 0:
            orders = torch.stack([torch.randperm(n_rows, generator=g) for g in generators], 1) + begins
        if step < first_step:
            continue
        start = step % per_epoch * config.batch
        rows = orders[start : start + config.batch].numpy()
        batch = torch.from_numpy(activations[rows]).to(dtype)
        require_finite(activations, rows, batch)
        yield batch[:, 0] if together else batch


def require_finite(activations: Rows, rows: np.ndarray, values: Tensor) -> None:
    """Raise ValueError where one of these rows is not finite, naming the first such row and the file it stands in."""
    if values.isfinite().all():
        return
    first = int(rows[~values.isfinite().all(-1).numpy()].min())
    # What is infinite only in the dtype of the training stands in the file as a number.
    row = activations[np.array([first])][0]
    worst = row[~np.isfinite(row)][0] if not np.isfinite(row).all() else row[np.abs(row).argmax()]
    raise ValueError(
        f"activation row {first:,} ({_location(activations, first)}) holds {worst}, expected finite numbers within the range of "
        f"{values.dtype}; harvest the activations again, from a model in a wider dtype if it is the model that overflows"
    )


def _location(activations: Rows, row: int) -> str:
    """Where a row stands on disk, as far as the array knows."""
    part, position = activations.place(row) if isinstance(activations, Shards) else (activations, row)
    file = getattr(part, "filename", None)
    return f"{file}, position {position:,}" if file else f"position {position:,} of an array in memory"
