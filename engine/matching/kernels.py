"""Blockwise best cosines of two dictionaries: best, runner-up and partner in both directions from ONE product.

The full matrix never exists. Pass 1 multiplies block by block and keeps only the maximum of every group of GROUP columns
(for the rows) and of GROUP rows (for the columns), read while the block is still in the cache. Pass 2 multiplies every
row again with ONE group, the one that holds its partner: that gives the index and the second value inside the group, and
all other groups can only offer their maxima, which pass 1 has kept.

Cosines closer than TIE are equal: float32 rounds them differently from one block shape to another, so nothing finer can
be told apart, and without it exact copies in different blocks would not be ties.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned

BLOCK = 1536  # rows and columns; 9 MiB, which stay in the cache for the maxima. 1024 takes as long, 2048 4 % longer
GROUP = 128  # if smaller, more maxima to keep and search; if larger, more to multiply again. 64 takes as long
TIE = 5e-7  # float32 cosines of unit rows differ by up to 3e-7 between block shapes (d_in 64 to 2304)


class Best(NamedTuple):
    """For every row of one dictionary: its best partner in another."""

    cosine: Float[Tensor, " rows"]
    partner: Int[Tensor, " rows"]  # ties go to the lowest index
    runner_up: Float[Tensor, " rows"]  # -inf where the other side has one row


def best_cosines(
    a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"], *, block: int = BLOCK, group: int = GROUP
) -> tuple[Best, Best]:
    """Best partner, its cosine and the runner-up for every row of `a` in `b` and of `b` in `a`.

    Inputs are unit rows; cosines are signed. Memory above the inputs: one block squared and, twice, rows_a * rows_b /
    group numbers. Cost: 2 rows_a rows_b d_in FLOPs, and 2 group / rows of that again for the indices.
    """
    row_maxima = a.new_empty(len(a), -(-len(b) // group))
    column_maxima = a.new_empty(-(-len(a) // group), len(b))
    block = max(block // group, 1) * group
    for rows, columns, product in products(a, b, block):
        row_maxima[rows, columns.start // group : -(-columns.stop // group)] = group_maxima(product, group, 1)
        column_maxima[rows.start // group : -(-rows.stop // group), columns] = group_maxima(product, group, 0)
    return _search(a, b, row_maxima, group), _search(b, a, column_maxima.T, group)


def products(a: Tensor, b: Tensor, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """All blocks of a @ b.T, in one buffer, because new memory costs as much as the maxima: each is valid until the next."""
    buffer = a.new_empty(min(block, len(a)) * min(block, len(b)))
    for first_a in range(0, len(a), block):
        stop_if_abandoned()
        rows = slice(first_a, min(first_a + block, len(a)))
        for first_b in range(0, len(b), block):
            columns = slice(first_b, min(first_b + block, len(b)))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            product = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(a[rows], b[columns].T, out=product)
            yield rows, columns, product


def group_maxima(product: Tensor, group: int, dim: int) -> Tensor:
    """Maximum of every `group` neighbours along `dim`; the last group may be short.

    Along `dim` because the reduction of a transposed view takes a CPU fifteen times as long.
    """
    whole, rest = divmod(product.shape[dim], group)
    maxima = (
        [torch.unflatten(product.narrow(dim, 0, whole * group), dim, (whole, group)).amax(dim + 1)] if whole else []
    )
    if rest:
        maxima.append(product.narrow(dim, whole * group, rest).amax(dim, keepdim=True))
    return torch.cat(maxima, dim)


def _search(a: Tensor, b: Tensor, maxima: Tensor, group: int) -> Best:
    """Index, best and runner-up of every row of `a` from its group maxima (rows, groups), which it overwrites."""
    enough = maxima.amax(1, keepdim=True) - TIE
    chosen = first_true(maxima >= enough)
    elsewhere = maxima.scatter_(1, chosen, -torch.inf).amax(1)
    product = chosen_products(a, b, chosen[:, 0], group)
    value = product.amax(1)
    inside = first_true(
        product >= torch.minimum(enough, value[:, None])
    )  # this product may be rounded below the maximum
    second = product.scatter_(1, inside, -torch.inf).amax(1)
    # `elsewhere` exceeds `value` only by less than TIE.
    return Best(torch.maximum(value, elsewhere), (chosen * group + inside)[:, 0], torch.maximum(second, elsewhere))


def first_true(true: Tensor) -> Tensor:
    """Index of the first true entry of every row, (rows, 1)."""
    return true.to(torch.uint8).argmax(1, keepdim=True)


def chosen_products(a: Tensor, b: Tensor, chosen: Tensor, group: int) -> Tensor:
    """Every row of `a` times its own chosen group of `b`, (rows, group); -inf where the last group is short.

    The rows of one group are multiplied together, at most BLOCK at a time: all rows may have chosen the same.
    """
    result = a.new_full((len(a), group), -torch.inf)
    sizes = chosen.bincount(minlength=-(-len(b) // group)).tolist()
    for members, partners in zip(torch.split(chosen.argsort(), sizes), torch.split(b, group), strict=True):
        for rows in torch.split(members, BLOCK):
            result[rows, : len(partners)] = a[rows] @ partners.T
    return result
