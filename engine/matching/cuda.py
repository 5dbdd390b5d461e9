"""Best cosines on a CUDA device: one float16 product on the tensor cores, then float32 for the few cosines that matter.

Screening multiplies in float16 with float32 sums, tile by tile, and keeps the maximum of every GROUP columns (for each
row) and of every GROUP rows (for each column); no product is ever written. Reranking walks the groups of a row in falling
order of their maximum and computes, in float32, the cosines that can still be its best or its runner-up: those whose two
maxima, of their row's group and of their column's group, both reach the runner-up found so far up to the error bound. That
is two or three cosines for almost every row, so the answer is the float32 one at the price of the float16 product.

Error bound of one screened cosine, with a = half(a) + da: |a.b - screened| <= |da||b| + |a||db| + 1.5 d 2^-23 |a||b|. The
first two are Cauchy-Schwarz on the residuals that rounding really left. The last is the sum: tensor cores truncate, so each
addition loses at most one unit (2^-23) of a partial sum no larger than |a||b|, and d products in steps of 4 or more take at
most 1.5 d additions. Float32 itself may be d 2^-24 |a||b| off. A row is certified if no cosine left out reaches, with this
bound, the runner-up found; rows that would take more than LIMIT cosines are left to `engine.matching.kernels`.
"""

import os
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from seedscope.engine.matching.kernels import TIE, Best, best_cosines

try:  # wheels exist for Linux alone
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    triton, tl = None, SimpleNamespace(constexpr=None)  # enough to define the kernels

LIMIT = 64  # cosines per row; a row that needs more has that many near-copies, and is cheaper as part of a product
TILE = 256  # rows are padded to whole tiles: the largest side below
DEPTH = 64  # 128 bytes of float16, the width of the swizzle that the tensor cores read
BAND = 8  # tiles of neighbouring programs share rows and columns while these are in the L2 cache
CAPABILITY = (9, 0)  # Hopper: tiles are copied by the tensor memory accelerator


class Prepared(NamedTuple):
    """A dictionary as both kernels read it; made once, used in every pair."""

    full: Float[Tensor, "rows d_in"]
    half: Float16[Tensor, "padded depth"]  # rows rounded; below them copies of the last row, beside them zeros
    residual: Float[Tensor, " rows"]  # norm of what rounding left
    length: Float[Tensor, " rows"]  # norm, the larger of the row's and its rounded copy's
    worst: Float[Tensor, "2"]  # the largest residual and the largest length


class Reranked(NamedTuple):
    """What reranking wrote for one direction."""

    best: Best
    computed: Int[Tensor, " rows"]  # float32 cosines; -1 where the row is not certified


class Pending(NamedTuple):
    """A pair whose kernels are queued on the device."""

    a: Prepared
    b: Prepared
    forward: Reranked
    backward: Reranked


class Certificate(NamedTuple):
    """How the answer for one pair was proven."""

    rows: int  # of both dictionaries
    computed: int  # float32 cosines of the certified rows
    recomputed: int  # rows that were not certified and went through the plain product

    @property
    def share(self) -> float:
        """Rows proven without the plain product."""
        return 1 - self.recomputed / self.rows


def best(a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"]) -> tuple[Best, Best]:
    """`best_cosines` by the fastest kernel for the device that holds `a` and `b`."""
    return (fused_best_cosines if choice(a.device)[0] == "fused" else best_cosines)(a, b)


@cache
def choice(device: torch.device) -> tuple[str, str]:
    """Name of the kernel for a device, "plain" or "fused", and the reason in words."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "plain", "plain torch: no CUDA device"
    if triton is None:
        return "plain", "plain torch: triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    name = "{}.{}".format(*capability)
    if capability < CAPABILITY:
        return "plain", f"plain torch: CUDA capability {name}, the fused kernel needs {CAPABILITY[0]}.{CAPABILITY[1]}"
    try:
        agrees = _agrees(device)
    except (
        Exception
    ) as error:  # whatever a driver, a compiler or a device may raise: the plain kernel needs none of them
        return "plain", f"plain torch: the fused kernel does not run here ({type(error).__name__}: {str(error)[:120]})"
    if not agrees:
        return "plain", "plain torch: the fused kernel differs from it on this device"
    return "fused", f"fused Triton: CUDA capability {name}, checked against plain torch on this device"


def _agrees(device: torch.device) -> bool:
    """Whether both kernels give the same answer for two small dictionaries with near copies."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 192, generator=generator), dim=1) for n in (700, 520))
    b[::3] = torch.nn.functional.normalize(a[: len(b[::3])] + 0.01 * b[::3], dim=1)
    pairs = zip(fused_best_cosines(a.to(device), b.to(device)), best_cosines(a, b), strict=True)
    return all(
        torch.equal(found.partner.cpu(), plain.partner)
        and torch.allclose(found.cosine.cpu(), plain.cosine, rtol=0, atol=1e-6)
        and torch.allclose(found.runner_up.cpu(), plain.runner_up, rtol=0, atol=1e-6)
        for found, plain in pairs
    )


def fused_best_cosines(
    a: Float[Tensor, "rows_a d_in"],
    b: Float[Tensor, "rows_b d_in"],
    *,
    report: Callable[[Certificate], None] | None = None,
) -> tuple[Best, Best]:
    """As `best_cosines`: the same partners, cosines within 1e-6. Waits for the device.

    For many pairs, `prepare` every dictionary once and `launch` the next pair before you `finish` this one.
    """
    forward, backward, certificate = finish(launch(prepare(a), prepare(b)))
    if report:
        report(certificate)
    return forward, backward


def prepare(rows: Float[Tensor, "rows d_in"]) -> Prepared:
    """Round unit rows to float16 and measure what that loses. Memory: 2 bytes per number above the rows."""
    full = rows.float().contiguous()
    n, d_in = full.shape
    half = torch.nn.functional.pad(full.half(), (0, -d_in % DEPTH))
    rounded = half[:, :d_in].float()
    residual = (full - rounded).norm(dim=1)  # the differences are exact in float32
    length = torch.maximum(full.norm(dim=1), rounded.norm(dim=1))
    copies = half[-1:].expand(-n % TILE, -1)  # of the last row: they change no maximum, so no tile needs a mask
    worst = torch.stack([residual.max(), length.max()])
    return Prepared(full, torch.cat([half, copies]), residual, length, worst)


def launch(a: Prepared, b: Prepared) -> Pending:
    """Queue all kernels of one pair without waiting. Memory: 4 rows_a rows_b / `_group` float32 numbers while they run."""
    (rows_a, depth), rows_b = a.half.shape, len(b.half)
    group = _group(rows_a, rows_b)
    by_row, by_column = a.full.new_empty(rows_a, rows_b // group), a.full.new_empty(rows_b, rows_a // group)
    by_row_t, by_column_t = by_row.new_empty(by_row.shape[::-1]), by_column.new_empty(by_column.shape[::-1])

    def grid(tile: dict) -> tuple[int]:
        """As many programs as stay on the device together, each taking one tile after the other."""
        area = tile["BLOCK_A"] * tile["BLOCK_B"]
        return (min(_multiprocessors(a.full.device) * max(TILE * 128 // area, 1), rows_a * rows_b // area),)

    with torch.cuda.device_of(a.full):
        _kernels().screen[grid](
            TensorDescriptor.from_tensor(a.half, [TILE, DEPTH]),
            TensorDescriptor.from_tensor(b.half, [TILE, DEPTH]),
            *(by_row, by_row_t, by_column, by_column_t),
            *(rows_a, rows_b, (rows_a * rows_b).bit_length()),
            **{"D": depth, "K": DEPTH, "GROUP": group, "BAND": BAND},
        )
        return Pending(a, b, _search(a, b, by_row, by_column_t, group), _search(b, a, by_column, by_row_t, group))


def _group(rows_a: int, rows_b: int) -> int:
    """Rows or columns per maximum, about sqrt(rows) / 4: 32 at 16,384 rows.

    Smaller groups are more maxima to write and read. In larger ones more cosines reach the maxima of both their groups by
    chance and are computed in vain: about 4 group^2 / rows for every row, that is, a quarter.
    """
    return 2 ** min(max((rows_a * rows_b).bit_length() // 4 - 2, 4), 7)


def finish(pending: Pending) -> tuple[Best, Best, Certificate]:
    """Wait for a pair, and send the rows that are not certified through the plain product."""
    a, b, forward, backward = pending
    counts = [n for found in (forward, backward) for n in ((found.computed < 0).sum(), found.computed.sum())]
    failed_a, computed_a, failed_b, computed_b = torch.stack(counts).tolist()  # the only wait
    for rows, others, found, failed in ((a, b, forward, failed_a), (b, a, backward, failed_b)):
        if failed:
            again = (found.computed < 0).nonzero()[:, 0]
            for kept, right in zip(found.best, _plain(rows.full[again], others.full), strict=True):
                kept[again] = right
    failed = failed_a + failed_b  # each counted -1 in the sums
    certificate = Certificate(len(a.full) + len(b.full), computed_a + computed_b + failed, failed)
    return forward.best, backward.best, certificate


def _plain(a: Tensor, b: Tensor) -> Best:
    """The rows of `a` in float32 whatever precision the process allows its products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return best_cosines(a, b)[0]
    finally:
        torch.set_float32_matmul_precision(precision)


@cache
def _multiprocessors(device: torch.device) -> int:
    """The interpreter has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _search(a: Prepared, b: Prepared, maxima: Tensor, others: Tensor, group: int) -> Reranked:
    """Rerank the rows of `a`: `maxima` (rows of a, groups of b) over columns, `others` (groups of a, rows of b) over rows."""
    (n, d_in), columns = a.full.shape, len(b.full)
    groups = -(-columns // group)
    found = Best(a.full.new_empty(n), a.full.new_empty(n, dtype=torch.long), a.full.new_empty(n))
    computed = a.full.new_empty(n, dtype=torch.int32)
    slack = d_in * 2.0**-22  # of the sums: 1.5 d 2^-23 screened and d 2^-24 in float32
    widths = {"D_WIDTH": triton.next_power_of_2(d_in), "GROUPS_WIDTH": triton.next_power_of_2(groups)}
    _kernels().rerank[(n,)](
        *(a.full, b.full, a.residual, a.length, b.worst, maxima, others, *found, computed),
        *(columns, groups, *(m.stride(0) for m in (maxima, others)), slack, TIE),
        **{"D": d_in, "GROUP": group, "LIMIT": LIMIT, **widths},
        num_warps=min(max(max(widths.values()) // 1024, 1), 8),
    )
    return Reranked(found, computed)


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


def _block_shapes(arguments):
    """The copied tiles have the sizes that the autotuner tries."""
    arguments["a"].block_shape = [arguments["BLOCK_A"], arguments["K"]]
    arguments["b"].block_shape = [arguments["BLOCK_B"], arguments["K"]]


@cache
def _kernels() -> SimpleNamespace:
    """Both kernels, compiled at their first use. The 227 KB of a Hopper multiprocessor hold one large or two small tiles."""
    shapes = [(128, 256, 8, 3), (128, 256, 8, 4), (256, 128, 8, 3), (128, 128, 8, 3), (128, 128, 4, 3)]
    if os.environ.get("TRITON_INTERPRET") == "1":
        shapes = [(64, 128, 4, 2)]  # nothing to time; several tiles at a size that takes seconds
    configs = [
        triton.Config({"BLOCK_A": a, "BLOCK_B": b}, num_warps=warps, num_stages=stages, pre_hook=_block_shapes)
        for a, b, warps, stages in shapes
    ]
    screen = triton.autotune(configs, key=["D", "size"])(triton.jit(do_not_specialize=["size"])(_screen))
    return SimpleNamespace(screen=screen, rerank=triton.jit(do_not_specialize=["columns", "groups"])(_rerank))
