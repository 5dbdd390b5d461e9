"""Blockwise best cosines of two dictionaries, both directions from one product, never the whole matrix in memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1024


class Best(NamedTuple):
    """For every row of one dictionary: its best partner in another."""

    cosine: Float[Tensor, " rows"]
    partner: Int[Tensor, " rows"]  # ties go to the lowest index
    runner_up: Float[Tensor, " rows"]  # -inf where the other side has one row


def best_cosines(
    a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"], *, block: int = BLOCK
) -> tuple[Best, Best]:
    """Best partner, its cosine and the runner-up for every row of `a` in `b` and of `b` in `a`.

    Inputs are unit rows, float32; cosines are signed. Memory above the inputs: one block squared.
    """
    forward, backward = _empty(a), _empty(b)
    for first_a in range(0, len(a), block):
        rows = a[first_a : first_a + block]
        for first_b in range(0, len(b), block):
            product = rows @ b[first_b : first_b + block].T
            _merge(forward, slice(first_a, first_a + len(rows)), product, first_b)
            _merge(backward, slice(first_b, first_b + product.shape[1]), product.T, first_a)
    return forward, backward


def _empty(rows: Tensor) -> Best:
    worst = rows.new_full((len(rows),), -torch.inf)
    return Best(worst, torch.zeros(len(rows), dtype=torch.long, device=rows.device), worst.clone())


def _merge(best: Best, rows: slice, product: Tensor, first: int) -> None:
    """Fold a block's two largest entries per row into the running best; `>` keeps the earlier index on ties."""
    value, index = product.max(1)
    # max() may return any of several equal entries: the lowest is asked for.
    index = (product == value[:, None]).int().argmax(1)
    second = product.scatter(1, index[:, None], -torch.inf).amax(1)
    held, held_second = best.cosine[rows], best.runner_up[rows]
    better = value > held
    best.runner_up[rows] = torch.maximum(torch.minimum(value, held), torch.maximum(second, held_second))
    best.partner[rows] = torch.where(better, index + first, best.partner[rows])
    best.cosine[rows] = torch.where(better, value, held)
