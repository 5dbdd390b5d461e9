"""The few nearest decoder rows of every feature in another member, blockwise: the whole matrix never exists."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.matching.kernels import BLOCK, products

STEPS = 2**20  # cosines are equal where they round to the same multiple of 1 / STEPS: finer is rounding (kernels.TIE)


class NearestRows(NamedTuple):
    """For every row of one dictionary its nearest rows in another, the nearest first; fewer where there are not so many."""

    row: Int[np.ndarray, "rows k"]  # int32; -1: none
    cosine: Float[np.ndarray, "rows k"]  # float32; NO_MATCH where there is none


def nearest_rows(
    a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"], k: int, *, block: int = BLOCK
) -> tuple[NearestRows, NearestRows]:
    """The k nearest rows of `b` for every row of `a`, and of `a` for every row of `b`, by signed cosine; one product for both.

    Inputs are unit rows; rows of zeros, which have no direction, are nobody's neighbours and have none. Ties go to the lower
    index. Memory above the inputs: a few blocks squared, and 8 k bytes a row. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    directed_a, directed_b = a.any(-1), b.any(-1)
    best_a, best_b = (torch.full((len(rows), k), -1, dtype=torch.long, device=rows.device) for rows in (a, b))
    for rows, columns, product in products(a, b, block):
        steps = ((product.clamp(-1, 1) + 1) * STEPS).round().long() + 1  # 1 and above; 0 stands for no direction
        steps *= directed_a[rows, None] & directed_b[None, columns]
        best_a[rows] = _merged(best_a[rows], steps, columns.start)
        best_b[columns] = _merged(best_b[columns], steps.T, rows.start)
    return _as_nearest(best_a), _as_nearest(best_b)


_LOW = (
    2**31 - 1
)  # an index is kept as its distance from this, so that of two equal cosines the lower index is the larger key


def _merged(best: Tensor, steps: Tensor, first: int) -> Tensor:
    """The largest keys of each row, of those so far and of a block whose columns begin with index `first`."""
    index = torch.arange(first, first + steps.shape[1], device=steps.device)
    keys = torch.where(steps > 0, (steps << 31) | (_LOW - index), -1)
    together = torch.cat([best, keys.topk(min(best.shape[1], keys.shape[1]), dim=1).values], 1)
    return together.topk(best.shape[1], dim=1).values


def _as_nearest(keys: Tensor) -> NearestRows:
    """Keys as indices and cosines."""
    is_there = keys > 0
    index = torch.where(is_there, _LOW - (keys & _LOW), -1).int()
    cosine = torch.where(is_there, ((keys >> 31) - 1).double() / STEPS - 1, NO_MATCH).float()
    return NearestRows(index.cpu().numpy(), cosine.cpu().numpy())
