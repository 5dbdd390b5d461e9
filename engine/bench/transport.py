"""Time and memory of optimal transport between two dictionaries, against the bare product and against POT's dense Sinkhorn."""

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from seedscope.engine.bench.products import bare_product, peak_resident
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.matching.transport import EPSILON, TOLERANCE, transport

LIMIT = "bare torch.mm of the same product in blocks of 1,024, once for every pass"
POT = "POT ot.bregman.sinkhorn_log, dense, float64, same epsilon, until the same gap"
GOAL = "16,384 x 16,384 x 768 to a marginal gap of 1e-3 under 1 GB"
POT_UP_TO = 4_096  # rows; its matrices take 8 bytes * rows^2 each, and it holds about five
_NOISE = 1.5  # largest length of what is added to a shared unit row: cosines from 0.55 on


def lines(*, full: bool = False, n: int = 2_048, d_in: int = 768, n_full: int = 16_384) -> Iterator[BenchLine]:
    """`transport` of n rows with n rows; with `full` also of the largest size. Each in a fresh process, once."""
    yield _line(n, d_in)
    if full:
        yield _line(n_full, d_in)
    else:
        yield BenchLine(_work(n_full, d_in), None, goal=GOAL, remark="not measured in this run: add --full")


def _work(n: int, d_in: int) -> str:
    threads = torch.get_num_threads()
    return (
        f"optimal transport, {n:,} x {n:,} rows of {d_in:,}, half of them shared, epsilon {EPSILON}, {threads} threads"
    )


def _line(n: int, d_in: int) -> BenchLine:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        ours, bare, n_passes, gap, peak = fresh.submit(_measured, n, d_in).result()
    return BenchLine(
        work=_work(n, d_in),
        ours_s=ours,
        limit=LIMIT,
        limit_s=bare,
        peers_s={POT: _pot(n, d_in)},
        goal=GOAL,
        remark=f"{n_passes} passes to a gap of {gap:.1e}, one more for partners; peak of the process {peak / 1e6:,.0f} MB, torch "
        "and the rows included",
        numbers={"n_passes": float(n_passes), "marginal_gap": gap, "peak_bytes": float(peak)},
    )


def _measured(n: int, d_in: int) -> tuple[float, float, int, float, int]:
    """Seconds, seconds of the bare products of all passes, passes, gap, and the peak of the process in bytes."""
    a, b = dictionaries(n, d_in)
    began = time.perf_counter()
    found = transport(a, b)
    ours = time.perf_counter() - began
    peak = peak_resident() if Path("/proc/self/status").is_file() else 0
    began = time.perf_counter()
    bare_product(a, b)
    bare = time.perf_counter() - began
    return ours, bare * (found.n_passes + 1), found.n_passes, found.marginal_gap, peak


def dictionaries(n: int, d_in: int) -> tuple[Tensor, Tensor]:
    """Random unit rows; half of the second are copies of the first with noise of every length up to _NOISE, in another order."""
    generator = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(n, d_in, generator=generator), dim=1) for _ in range(2))
    shared = n // 2
    b[:shared] = normalize(a[:shared] + _NOISE * torch.rand(shared, 1, generator=generator) * b[:shared], dim=1)
    return a, b[torch.randperm(n, generator=generator)]


def _pot(n: int, d_in: int) -> float | str:
    """Seconds of POT with its matrix, or why there are none."""
    if find_spec("ot") is None:
        return "not installed"
    if n > POT_UP_TO:
        return f"not run: its matrices take {5 * 8 * n**2 / 1e9:.0f} GB"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the backends that it looks for
        import ot
    a, b = (rows.double().numpy() for rows in dictionaries(n, d_in))
    uniform = np.full(n, 1 / n)
    began = time.perf_counter()
    # Its threshold is on the L2 norm of the marginals' error, which for n equal ones is 1 / sqrt(n) of the L1 norm.
    ot.bregman.sinkhorn_log(uniform, uniform, 1 - a @ b.T, EPSILON, numItermax=5000, stopThr=TOLERANCE / n**0.5)
    return time.perf_counter() - began
