"""Time of the best cosines of two dictionaries, against the bare product and against other ways to compute them."""

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.matching.cuda import choice, finish, launch, prepare
from seedscope.engine.matching.kernels import best_cosines

BARE_BLOCKS = (1024, 2048)
FULL, RUNNING = "full matrix and max both ways (torch)", "running max and index over 1,024-blocks, no runner-up (torch)"
FAISS = "two faiss IndexFlatIP searches"


def lines(*, n: int = 16_384, d_in: int = 768) -> Iterator[BenchLine]:
    """`best_cosines` of n rows with n rows on the processor, and on the device where there is one."""
    yield _line("cpu", n, d_in, f"{torch.get_num_threads()} threads", _host_memory(n, d_in))
    if torch.cuda.is_available():
        yield _line("cuda", n, d_in, torch.cuda.get_device_name(), _device_memory(n, d_in))
    yield _all_pairs(n, d_in)


N_PAIRS = 12  # measured one behind the other; all pairs of 96 members are 4,560 of them


def _all_pairs(n: int, d_in: int) -> BenchLine:
    """The fused kernel on pair after pair against the float16 product alone."""
    work = f"fused kernel, one of all pairs of 96 x {n:,} x {d_in:,}"
    goal = "70 % of the measured half-precision product rate, the float32 partners"
    device = torch.device("cuda")
    name, reason = choice(device) if torch.cuda.is_available() else ("plain", "no CUDA device")
    if name != "fused":
        return BenchLine(work, None, goal=goal, remark=f"not measured: {reason}")
    a, b = (prepare(rows) for rows in dictionaries(n, d_in, "cuda"))

    def pairs() -> None:
        pending = launch(a, b)
        for _ in range(N_PAIRS - 1):
            following = launch(a, b)
            finish(pending)
            pending = following
        finish(pending)

    def products() -> None:
        for _ in range(N_PAIRS):
            torch.mm(a.half, b.half.T)

    taken = interleaved({"ours": partial(_finished, pairs), "limit": partial(_finished, products)}, rounds=3)
    certificate = finish(launch(a, b))[2]
    per_pair = taken["ours"] / N_PAIRS
    return BenchLine(
        work=work,
        ours_s=per_pair,
        limit="torch.mm of the same product in float16",
        limit_s=taken["limit"] / N_PAIRS,
        goal=goal,
        remark=f"{certificate.share:.2%} of rows certified; all 4,560 pairs at this rate: {4560 * per_pair:.1f} s",
    )


def _line(device: str, n: int, d_in: int, where: str, memory: str) -> BenchLine:
    a, b = dictionaries(n, d_in, device)
    bare = {f"bare torch.mm of the same product in blocks of {block:,}": block for block in BARE_BLOCKS}
    runs: dict[str, Callable] = {name: partial(bare_product, a, b, block) for name, block in bare.items()}
    runs |= {"ours": partial(best_cosines, a, b), FULL: partial(_full, a, b), RUNNING: partial(_running, a, b)}
    faiss_runs = device == "cpu" and importlib.util.find_spec("faiss") is not None
    if faiss_runs:
        runs[FAISS] = partial(_faiss, a.numpy(), b.numpy())
    if device == "cuda":
        runs = {name: partial(_finished, run) for name, run in runs.items()}
    taken = interleaved(runs, rounds=3)
    limit = min(bare, key=taken.__getitem__)
    peers: dict[str, float | str] = {name: taken[name] for name in (FULL, RUNNING)}
    if device == "cpu":
        peers[FAISS] = taken[FAISS] if faiss_runs else "not installed"
    return BenchLine(
        work=f"best partner, cosine and runner-up both ways, {n:,} x {n:,} rows of {d_in:,}, float32, {where}",
        ours_s=taken["ours"],
        limit=limit,
        limit_s=taken[limit],
        peers_s=peers,
        goal="at most 1.2 x the bare product, 300 MB",
        remark=memory,
    )


def dictionaries(n: int, d_in: int, device: str) -> tuple[Tensor, Tensor]:
    """Random unit rows; half of the second are noisy copies of the first, cosine about 0.77, in another order."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, d_in, generator=generator), dim=1) for _ in range(2))
    b[::2] = torch.nn.functional.normalize(a.flip(0)[::2] + 0.83 * b[::2], dim=1)
    return a.to(device), b.to(device)


def bare_product(a: Tensor, b: Tensor, block: int = 1024) -> None:
    """All cosines of two dictionaries, block by block into one buffer: the limit that other sections measure against, too."""
    buffer = a.new_empty(block * block)
    for rows in a.split(block):
        for columns in b.split(block):
            torch.mm(rows, columns.T, out=buffer[: len(rows) * len(columns)].view(len(rows), len(columns)))


def _full(a: Tensor, b: Tensor) -> tuple:
    product = a @ b.T
    return product.max(1), product.max(0)


def _running(a: Tensor, b: Tensor, block: int = 1024) -> list[tuple[Tensor, Tensor]]:
    """Best and partner only, both ways: what a loop of `max` over blocks costs."""
    best_of = [
        (a.new_full((n,), -torch.inf), torch.zeros(n, dtype=torch.long, device=a.device)) for n in map(len, (a, b))
    ]
    buffer = a.new_empty(block * block)
    for first_a in range(0, len(a), block):
        for first_b in range(0, len(b), block):
            rows, columns = a[first_a : first_a + block], b[first_b : first_b + block]
            product = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=product)
            for (best, partner), dim, mine, theirs in zip(
                best_of, (1, 0), (first_a, first_b), (first_b, first_a), strict=True
            ):
                value, index = product.max(dim)
                here = slice(mine, mine + len(value))
                partner[here] = torch.where(value > best[here], index + theirs, partner[here])
                best[here] = torch.maximum(value, best[here])
    return best_of


def _faiss(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    import faiss

    nearest = []
    for queries, stored in ((a, b), (b, a)):
        index = faiss.IndexFlatIP(stored.shape[1])
        index.add(stored)
        nearest.append(index.search(queries, 2))
    return nearest


def _finished(run: Callable) -> None:
    run()
    torch.cuda.synchronize()


def _host_memory(n: int, d_in: int) -> str:
    """Peak above the inputs, in a fresh process: in this one, pages freed by the peers would be used again unseen."""
    if not Path("/proc/self/clear_refs").exists():
        return "peak memory not measured: needs Linux"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return f"peak {fresh.submit(_peak_above_inputs, n, d_in).result() / 1e6:,.0f} MB above the inputs (resident)"


def _peak_above_inputs(n: int, d_in: int) -> int:
    """Bytes. The peak is reset once the inputs are there; ru_maxrss cannot be, and starts at the parent's."""
    a, b = dictionaries(n, d_in, "cpu")
    best_cosines(a[:64], b[:64])
    ctypes.CDLL(None).malloc_trim(0)  # pages left by making the inputs would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_resident()
    best_cosines(a, b)
    return peak_resident() - before


def peak_resident() -> int:
    """Bytes that this process held at most, mapped files included, by /proc. Not ru_maxrss: it starts at what the parent held."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _device_memory(n: int, d_in: int) -> str:
    a, b = dictionaries(n, d_in, "cuda")
    best_cosines(a[:64], b[:64])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    best_cosines(a, b)
    return f"peak {(torch.cuda.max_memory_allocated() - before) / 1e6:,.0f} MB above the inputs (allocated)"
