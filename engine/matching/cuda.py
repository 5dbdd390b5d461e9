"""Best cosines on a CUDA device: one float16 product on the tensor cores, then float32 for the cosines that can be best.

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

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from seedscope.engine.matching.kernels import TIE, Best, best_cosines

# Triton's wheels exist for Linux alone, so its kernels are imported at their first use.
HAS_TRITON = find_spec("triton") is not None
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
    """Results of reranking for one direction, on the device."""

    best: Best
    computed: Int[Tensor, " rows"]  # float32 cosines; -1 where the row is not certified


class Pending(NamedTuple):
    """A pair whose kernels are queued on the device."""

    a: Prepared
    b: Prepared
    forward: Reranked
    backward: Reranked


class Certificate(NamedTuple):
    """How many rows of one pair were certified, and at what cost."""

    rows: int  # of both dictionaries
    computed: int  # float32 cosines of the certified rows
    recomputed: int  # rows that were not certified and went through the plain product

    @property
    def share(self) -> float:
        """Share of the rows that were certified without the plain product, 0 to 1."""
        return 1 - self.recomputed / self.rows


def best(a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"]) -> tuple[Best, Best]:
    """`best_cosines` by the fastest kernel for the device that holds `a` and `b`."""
    return (fused_best_cosines if choice(a.device)[0] == "fused" else best_cosines)(a, b)


@cache
def choice(device: torch.device) -> tuple[str, str]:
    """Name of the kernel for a device, "plain" or "fused", and the reason in words."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "plain", "plain torch: no CUDA device"
    if not HAS_TRITON:
        return "plain", "plain torch: triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    name = "{}.{}".format(*capability)
    if capability < CAPABILITY:
        return "plain", f"plain torch: CUDA capability {name}, the fused kernel needs {CAPABILITY[0]}.{CAPABILITY[1]}"
    try:
        agrees = _agrees(device)
    # Whatever a driver, a compiler or a device may raise: the plain kernel needs none of them.
    except Exception as error:
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
        torch.equal(fused.partner.cpu(), plain.partner)
        and torch.allclose(fused.cosine.cpu(), plain.cosine, rtol=0, atol=1e-6)
        and torch.allclose(fused.runner_up.cpu(), plain.runner_up, rtol=0, atol=1e-6)
        for fused, plain in pairs
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
    from seedscope.engine.matching import triton_kernels

    (rows_a, depth), rows_b = a.half.shape, len(b.half)
    group = _group(rows_a, rows_b)
    by_row, by_column = a.full.new_empty(rows_a, rows_b // group), a.full.new_empty(rows_b, rows_a // group)
    by_row_t, by_column_t = by_row.new_empty(by_row.shape[::-1]), by_column.new_empty(by_column.shape[::-1])

    def grid(tile: dict[str, Any]) -> tuple[int]:
        """As many programs as stay on the device together, each taking one tile after the other."""
        area = tile["BLOCK_A"] * tile["BLOCK_B"]
        return (min(_multiprocessors(a.full.device) * max(TILE * 128 // area, 1), rows_a * rows_b // area),)

    with torch.cuda.device(a.full.get_device()):  # -1, which changes nothing, where triton interprets kernels on a CPU
        triton_kernels.compiled().screen[grid](
            triton_kernels.tiles(a.half, [TILE, DEPTH]),
            triton_kernels.tiles(b.half, [TILE, DEPTH]),
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
    return 1 << min(max((rows_a * rows_b).bit_length() // 4 - 2, 4), 7)


def finish(pending: Pending) -> tuple[Best, Best, Certificate]:
    """Wait for a pair, and send the rows that are not certified through the plain product."""
    a, b, forward, backward = pending
    counts = [n for side in (forward, backward) for n in ((side.computed < 0).sum(), side.computed.sum())]
    failed_a, computed_a, failed_b, computed_b = torch.stack(counts).tolist()  # the only wait
    for rows, others, reranked, failed in ((a, b, forward, failed_a), (b, a, backward, failed_b)):
        if failed:
            again = (reranked.computed < 0).nonzero()[:, 0]
            for values, exact in zip(reranked.best, _plain(rows.full[again], others.full), strict=True):
                values[again] = exact
    failed = failed_a + failed_b  # each of these rows has added -1 to the sums
    certificate = Certificate(len(a.full) + len(b.full), computed_a + computed_b + failed, failed)
    return forward.best, backward.best, certificate


def _plain(a: Tensor, b: Tensor) -> Best:
    """Best cosines of the rows of `a` in full float32, whatever precision the process allows for products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return best_cosines(a, b)[0]
    finally:
        torch.set_float32_matmul_precision(precision)


@cache
def _multiprocessors(device: torch.device) -> int:
    """How many the device has; triton's interpreter, on a CPU, counts as one."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _search(a: Prepared, b: Prepared, maxima: Tensor, others: Tensor, group: int) -> Reranked:
    """Rerank the rows of `a`: `maxima` (rows of a, groups of b) over columns, `others` (groups of a, rows of b) over rows."""
    from seedscope.engine.matching import triton_kernels

    (n, d_in), columns = a.full.shape, len(b.full)
    groups = -(-columns // group)
    best = Best(a.full.new_empty(n), a.full.new_empty(n, dtype=torch.long), a.full.new_empty(n))
    computed = a.full.new_empty(n, dtype=torch.int32)
    slack = d_in * 2.0**-22  # of the sums: 1.5 d 2^-23 screened and d 2^-24 in float32
    widths = {"D_WIDTH": _power_of_two(d_in), "GROUPS_WIDTH": _power_of_two(groups)}
    triton_kernels.compiled().rerank[(n,)](
        *(a.full, b.full, a.residual, a.length, b.worst, maxima, others, *best, computed),
        *(columns, groups, *(m.stride(0) for m in (maxima, others)), slack, TIE),
        **{"D": d_in, "GROUP": group, "LIMIT": LIMIT, **widths},
        num_warps=min(max(max(widths.values()) // 1024, 1), 8),
    )
    return Reranked(best, computed)
