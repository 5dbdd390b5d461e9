"""Time and memory of comparing two versions of an SAE, against the bare product of their decoders."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from seedscope.engine.bench.products import bare_product, peak_resident
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.matching.diff import diff
from seedscope.engine.matching.kernels import best_cosines

LIMIT = "bare torch.mm of all decoder rows in blocks of 1,024"
WHOLE = "best_cosines of the decoders, already in memory"
GOAL = "131,072 x 768 under 120 s on two cores, files read"
_LARGE = 131_072
_LOST = 20  # one row of so many is drawn anew
_NOISE = 0.6  # largest length of what is added to a unit row: cosines from 0.86 on, half of them above 0.95


def lines(*, full: bool = False, n: int = 16_384, d_in: int = 768) -> Iterator[BenchLine]:
    """`diff` of an SAE and a fine-tuned copy, read from files; with `full` also the largest size. Each in a fresh process, once."""
    yield _line(n, d_in)
    if full:
        yield _line(_LARGE, d_in)
    else:
        yield BenchLine(_work(_LARGE, d_in), None, goal=GOAL, remark="not measured in this run: add --full")


def _work(n: int, d_in: int) -> str:
    return f"an SAE against its fine-tuned copy, {n:,} x {d_in:,}, {torch.get_num_threads()} threads"


def _line(n: int, d_in: int) -> BenchLine:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_versions(Path(folder), n, d_in)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            ours, peak, says = fresh.submit(_compared, *paths).result()
        bare, whole = _products(*paths)
    return BenchLine(
        work=_work(n, d_in),
        ours_s=ours,
        limit=LIMIT,
        limit_s=bare,
        peers_s={WHOLE: whole},
        goal=GOAL,
        remark=f"peak of the process {peak / 1e9:.1f} GB; {says}; once",
        numbers={"peak_bytes": float(peak)},
    )


def write_versions(folder: Path, n: int, d_in: int) -> tuple[Path, Path]:
    """Write an SAE of random rows, and a copy: rows moved by noise of every length up to _NOISE, one of _LOST drawn anew."""
    generator = torch.Generator().manual_seed(0)
    old = normalize(torch.randn(n, d_in, generator=generator), dim=1)
    noise = normalize(torch.randn(n, d_in, generator=generator), dim=1)
    new = normalize(old + _NOISE * torch.rand(n, 1, generator=generator) * noise, dim=1)
    new[::_LOST] = noise[::_LOST]
    paths = folder / "old.safetensors", folder / "new.safetensors"
    for path, rows in zip(paths, (old, new), strict=True):
        tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(n), "b_dec": torch.zeros(d_in)}
        save_file(tensors, path, {"architecture": "relu", "subtract_b_dec": "true"})
    return paths


def _compared(old: Path, new: Path) -> tuple[float, int, str]:
    """Seconds, peak of the process in bytes, and what was found."""
    began = time.perf_counter()
    report = diff(old, new)
    taken = time.perf_counter() - began
    counts = ", ".join(f"{count:,} {fate}" for fate, count in report.counts.items())
    return taken, peak_resident() if Path("/proc/self/status").is_file() else 0, counts


def _products(old: Path, new: Path) -> tuple[float, float]:
    """Seconds of the bare product and of best_cosines."""
    a, b = load_file(old)["W_dec"], load_file(new)["W_dec"]
    began = time.perf_counter()
    bare_product(a, b)
    bare = time.perf_counter() - began
    best_cosines(a, b)
    return bare, time.perf_counter() - began - bare
