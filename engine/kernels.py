"""Blockwise best cosines of two dictionaries: best, runner-up and partner in both directions from ONE product.

The full matrix never exists. Pass 1 multiplies block by block and keeps only the maximum of every group of GROUP columns
(for the rows) and of GROUP rows (for the columns): one read of a block that is still in the cache. Pass 2 finds indices:
it multiplies a row again with the few groups that can hold its best or its runner-up, two for almost every row. The
runner-up lies in a group whose maximum reaches the second-largest group maximum up to rounding; all groups within
TOLERANCE of it are searched, so the answer does not depend on how a block was rounded.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2048
GROUP = 256
TOLERANCE = 1e-5  # float32 cosines of unit rows differ by about 1e-7 between block shapes; two orders above that


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
    group numbers. Cost: 2 rows_a rows_b d_in FLOPs, and 4 group / rows of that again for the indices.
    """
    row_maxima = a.new_empty(len(a), -(-len(b) // group))
    column_maxima = a.new_empty(-(-len(a) // group), len(b))
    block = max(block // group, 1) * group
    for rows, columns, product in _products(a, b, block):
        row_maxima[rows, columns.start // group : -(-columns.stop // group)] = _group_maxima(product, group)
        column_maxima[rows.start // group : -(-rows.stop // group), columns] = _group_maxima(product.T, group).T
    return _search(a, b, row_maxima, group), _search(b, a, column_maxima.T, group)


def _products(a: Tensor, b: Tensor, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """All blocks of a @ b.T, each valid until the next; one buffer, because fresh pages cost as much as the maxima."""
    buffer = a.new_empty(min(block, len(a)) * min(block, len(b)))
    for first_a in range(0, len(a), block):
        rows = slice(first_a, min(first_a + block, len(a)))
        for first_b in range(0, len(b), block):
            columns = slice(first_b, min(first_b + block, len(b)))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            product = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(a[rows], b[columns].T, out=product)
            yield rows, columns, product


def _group_maxima(product: Tensor, group: int) -> Tensor:
    """Maximum of every `group` neighbouring columns, (rows, groups); the last group may be short."""
    whole = product.shape[1] // group * group
    maxima = product[:, :whole].unflatten(1, (-1, group)).amax(2) if whole else product[:, :0]
    return torch.cat([maxima, product[:, whole:].amax(1, keepdim=True)], 1) if whole < product.shape[1] else maxima


def _search(a: Tensor, b: Tensor, maxima: Tensor, group: int) -> Best:
    """Multiply every row of `a` again with those groups of `b` that can hold its best or its runner-up."""
    second = maxima.topk(min(2, maxima.shape[1]), dim=1).values[:, -1:]
    candidates = (maxima >= second - TOLERANCE).T.contiguous()
    best = Best(
        a.new_full((len(a),), -torch.inf),
        torch.zeros_like(a[:, 0], dtype=torch.long),
        a.new_full((len(a),), -torch.inf),
    )
    for index, wanted in enumerate(candidates):
        rows = wanted.nonzero()[:, 0]
        if len(rows):
            _merge(best, rows, a[rows] @ b[index * group : (index + 1) * group].T, index * group)
    return best


def _merge(best: Best, rows: Tensor, product: Tensor, first: int) -> None:
    """Fold the two largest entries of every row of a block into the running best; `>` keeps the earlier index on ties."""
    value = product.amax(1)
    index = (product == value[:, None]).int().argmax(1)  # the first of equal entries
    second = product.scatter(1, index[:, None], -torch.inf).amax(1)
    held, held_second = best.cosine[rows], best.runner_up[rows]
    better = value > held
    best.runner_up[rows] = torch.maximum(torch.minimum(value, held), torch.maximum(second, held_second))
    best.partner[rows] = torch.where(better, index + first, best.partner[rows])
    best.cosine[rows] = torch.where(better, value, held)


TOPK_GROUP = 8


def topk(pre: Float[Tensor, "*batch d_sae"], k: int) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """The k largest entries of every row, unsorted, with their indices; as `torch.topk`, in about half its time on a CPU.

    The k largest lie in the k groups with the largest maxima: two searches among few replace one among many.
    """
    n = pre.shape[-1]
    if pre.is_cuda or n % TOPK_GROUP or n < 4 * k * TOPK_GROUP / 3:
        return tuple(pre.topk(k, dim=-1, sorted=False))
    groups = pre.unflatten(-1, (-1, TOPK_GROUP))
    chosen = groups.detach().amax(-1).topk(k, dim=-1, sorted=False).indices
    inside = (chosen[..., None] * TOPK_GROUP + torch.arange(TOPK_GROUP)).flatten(-2)
    values, at = pre.gather(-1, inside).topk(k, dim=-1, sorted=False)
    return values, inside.gather(-1, at)
