"""The two Triton kernels of `engine.matching.cuda`, which explains the algorithm and its error bound. Needs triton.

`screen` multiplies two dictionaries in float16 and writes the maxima of groups of rows and columns. `rerank` computes, for
every row, the float32 cosines that can still be its best or its runner-up.
"""

import os
from functools import cache
from typing import Any, NamedTuple, no_type_check

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Kernels(NamedTuple):
    """Both kernels; `kernel[grid](...)` queues one on the device. Triton's own types say no more than Any."""

    screen: Any
    rerank: Any


def tiles(half: Tensor, shape: list[int]) -> Any:
    """A float16 matrix as `screen` reads it, a TensorDescriptor: in tiles, copied by the tensor memory accelerator."""
    return TensorDescriptor.from_tensor(half, shape)


@no_type_check
def _screen(a, b, by_row, by_row_t, by_column, by_column_t, rows_a, rows_b, size, D: tl.constexpr, K: tl.constexpr,
            GROUP: tl.constexpr, BAND: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):  # fmt: skip
    """Multiply tiles of `a` and `b`; write the group maxima along both axes, each also transposed: both are read by rows.

    `size` is there for the autotuner. Flattened: the next tile is copied while the maxima of this one are taken.
    """
    down, across = rows_a // BLOCK_A, rows_b // BLOCK_B
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        first = tile // (BAND * across) * BAND
        height = min(down - first, BAND)
        at_a = first + tile % (BAND * across) % height
        at_b = tile % (BAND * across) // height
        product = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
        for k in range(0, D, K):
            product = tl.dot(a.load([at_a * BLOCK_A, k]), b.load([at_b * BLOCK_B, k]).T, product)
        row_maxima = tl.max(tl.reshape(product, (BLOCK_A, BLOCK_B // GROUP, GROUP)), 2)
        column_maxima = tl.max(tl.reshape(product, (BLOCK_A // GROUP, GROUP, BLOCK_B)), 1)
        row = (at_a * BLOCK_A + tl.arange(0, BLOCK_A)).to(tl.int64)[:, None]
        column = (at_b * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)[None, :]
        row_group = (at_a * (BLOCK_A // GROUP) + tl.arange(0, BLOCK_A // GROUP)).to(tl.int64)[:, None]
        column_group = (at_b * (BLOCK_B // GROUP) + tl.arange(0, BLOCK_B // GROUP)).to(tl.int64)[None, :]
        tl.store(by_row + row * (rows_b // GROUP) + column_group, row_maxima)
        tl.store(by_row_t + column_group * rows_a + row, row_maxima)
        tl.store(by_column + column * (rows_a // GROUP) + row_group, column_maxima)
        tl.store(by_column_t + row_group * rows_b + column, column_maxima)


@no_type_check
def _rerank(a, b, residual, length, worst, maxima, others, cosine, partner, runner_up, computed, columns, groups,
            maxima_stride, others_stride, slack, tie, D: tl.constexpr, GROUP: tl.constexpr, LIMIT: tl.constexpr,
            D_WIDTH: tl.constexpr, GROUPS_WIDTH: tl.constexpr):  # fmt: skip
    """Best, partner and runner-up of one row, by branch and bound over groups and over the columns in a group."""
    nothing = float("-inf")
    i = tl.program_id(0).to(tl.int64)
    depth, group, inside = tl.arange(0, D_WIDTH), tl.arange(0, GROUPS_WIDTH), tl.arange(0, GROUP)
    row = tl.load(a + i * D + depth, mask=depth < D, other=0.0)
    bounds = tl.load(maxima + i * maxima_stride + group, mask=group < groups, other=nothing)
    size = tl.load(length + i)
    error = tl.load(residual + i) * tl.load(worst + 1) + size * (tl.load(worst) + slack * tl.load(worst + 1))
    error = error * 1.01 + tie  # norms are float32 sums themselves; ties look a little below the runner-up
    bound, at = tl.max(bounds, 0, return_indices=True)
    # Two groups, two cosines: the runner-up is no smaller than the second maximum up to the error.
    least = tl.max(tl.where(group == at, nothing, bounds), 0) - error
    needed = least
    first = tl.full((), nothing, tl.float32)
    second = tl.full((), nothing, tl.float32)
    slot = tl.arange(0, LIMIT)
    values = tl.full((LIMIT,), nothing, tl.float32)
    indices = tl.full((LIMIT,), 2**31 - 1, tl.int32)
    n = tl.full((), 0, tl.int32)
    # Both bounds hold for any cosine of the group, so the first that cannot reach `needed` ends its loop.
    while (bound > nothing) & (bound + error >= needed) & (n < LIMIT):
        j = at * GROUP + inside
        ceilings = tl.load(others + i // GROUP * others_stride + j, mask=j < columns, other=nothing)
        ceiling, lane = tl.max(ceilings, 0, return_indices=True)
        while (ceiling > nothing) & (ceiling + error >= needed) & (n < LIMIT):
            index = at * GROUP + lane
            value = tl.sum(row * tl.load(b + index.to(tl.int64) * D + depth, mask=depth < D, other=0.0), 0)
            values = tl.where(slot == n, value, values)
            indices = tl.where(slot == n, index, indices)
            second = max(second, min(first, value))
            first = max(first, value)
            needed = max(least, second)
            n += 1
            ceilings = tl.where(inside == lane, nothing, ceilings)
            ceiling, lane = tl.max(ceilings, 0, return_indices=True)
        bounds = tl.where(group == at, nothing, bounds)
        bound, at = tl.max(bounds, 0, return_indices=True)
    lowest = tl.min(tl.where(values >= first - tie, indices, 2**31 - 1), 0)
    tl.store(cosine + i, first)
    tl.store(partner + i, lowest.to(tl.int64))
    tl.store(runner_up + i, tl.max(tl.where(indices == lowest, nothing, values), 0))
    # Nothing left out reaches `needed`. That `second` reached `least` shows the error bound at work on this very row.
    tl.store(computed + i, tl.where((n < LIMIT) & (second >= least), n, -1))


def _block_shapes(arguments: dict[str, Any]) -> None:
    """Give the copied tiles the sizes that the autotuner tries."""
    arguments["a"].block_shape = [arguments["BLOCK_A"], arguments["K"]]
    arguments["b"].block_shape = [arguments["BLOCK_B"], arguments["K"]]


@cache
@no_type_check
def compiled() -> Kernels:
    """Both kernels, compiled at their first use. The 227 KB of a Hopper multiprocessor hold one large or two small tiles."""
    shapes = [(128, 256, 8, 3), (128, 256, 8, 4), (256, 128, 8, 3), (128, 128, 8, 3), (128, 128, 4, 3)]
    if os.environ.get("TRITON_INTERPRET") == "1":
        shapes = [(64, 128, 4, 2)]  # nothing to time; several tiles at a size that takes seconds
    configs = [
        triton.Config({"BLOCK_A": a, "BLOCK_B": b}, num_warps=warps, num_stages=stages, pre_hook=_block_shapes)
        for a, b, warps, stages in shapes
    ]
    screen = triton.autotune(configs, key=["D", "size"])(triton.jit(do_not_specialize=["size"])(_screen))
    return Kernels(screen=screen, rerank=triton.jit(do_not_specialize=["columns", "groups"])(_rerank))
