"""Time of one-to-one matching, against the bare product and against scipy on the dense matrix."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from seedscope.engine.bench.products import bare_product, peak_resident
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.matching.assignment import hungarian

LIMIT = "bare torch.mm of the same product in blocks of 1,024"
DENSE = "dense scipy linear_sum_assignment (with its matrix)"


def lines(*, full: bool = False, n: int = 16_384, n_full: int = 131_072, d_in: int = 256) -> Iterator[BenchLine]:
    """`hungarian` on the processor, n rows with n rows; with `full` also the largest size, in a process of its own."""
    yield _small(n, d_in)
    goal = "under 8 GB and 60 minutes on 2 cores, gap proven"
    if not full:
        yield BenchLine(_work(n_full, d_in), None, goal=goal, remark="not measured in this run: add --full")
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        ours, bare, gap, peak = fresh.submit(_large, n_full, d_in).result()
    yield BenchLine(
        work=_work(n_full, d_in),
        ours_s=ours,
        limit=LIMIT,
        limit_s=bare,
        peers_s={DENSE: f"not run: its matrix takes {12 * n_full**2 / 1e9:,.0f} GB in float32 and float64"},
        goal=goal,
        remark=f"proven gap {gap:.1e}, peak memory of the process {peak}; once",
    )


def _small(n: int, d_in: int) -> BenchLine:
    a, b = _dictionaries(n, d_in)
    gaps = []
    runs = {"ours": lambda: gaps.append(hungarian(a, b).gap), LIMIT: lambda: bare_product(a, b)}
    taken = interleaved(runs, rounds=3)
    began = time.perf_counter()
    linear_sum_assignment((a @ b.T).numpy(), maximize=True)
    dense = time.perf_counter() - began
    return BenchLine(
        work=_work(n, d_in),
        ours_s=taken["ours"],
        limit=LIMIT,
        limit_s=taken[LIMIT],
        peers_s={DENSE: dense},
        goal="at least 20 x faster than dense scipy, proven gap <= 1e-5",
        remark=f"{dense / taken['ours']:.1f} x faster than dense scipy (once), proven gap {max(gaps):.1e}",
    )


def _work(n: int, d_in: int) -> str:
    return (
        f"one-to-one matching, {n:,} x {n:,} rows of {d_in:,}, half of them shared, {torch.get_num_threads()} threads"
    )


def _large(n: int, d_in: int) -> tuple[float, float, float, str]:
    """Seconds, seconds of the bare product, gap, and the peak of the whole process, its inputs and torch included."""
    a, b = _dictionaries(n, d_in)
    began = time.perf_counter()
    gap = hungarian(a, b).gap
    ours, peak = time.perf_counter() - began, _peak()
    began = time.perf_counter()
    bare_product(a, b)
    return ours, time.perf_counter() - began, gap, peak


def _peak() -> str:
    return f"{peak_resident() / 1e9:.1f} GB" if Path("/proc/self/status").is_file() else "not measured: needs Linux"


def _dictionaries(n: int, d_in: int) -> tuple[Tensor, Tensor]:
    """Random unit rows; half of the second are noisy copies of the first, cosine about 0.89, in another order."""
    generator = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(n, d_in, generator=generator), dim=1) for _ in range(2))
    shared = n // 2
    b[:shared] = normalize(a[:shared] + 0.5 * torch.randn(shared, d_in, generator=generator) / d_in**0.5, dim=1)
    return a, b[torch.randperm(n, generator=generator)]
