"""One piece of work on a device: its result is checked against float64 first, and only a right one gets a time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.bench.report import BenchLine

ROUNDS = 15
SAMPLE_S = (
    5e-3  # work that is shorter is repeated inside one measurement, so that the clock and one launch do not count
)
Result = dict[str, Tensor | np.ndarray]


class WrongResultError(ValueError):
    """A result that differs from float64's by more than float32 can explain; the message names the numbers."""


class Limit(NamedTuple):
    """What this very device takes for work that ours cannot do without, measured in the same rounds."""

    run: Callable[[], object]
    times: float = 1.0  # how often the work contains it


@dataclass(frozen=True)
class Work:
    """What a step measures. Functions queue work on the device; who measures waits for it."""

    name: str  # what is computed, with its sizes
    ours: Callable[[], Any]
    check: Callable[[Result], float]  # the worst error as a share of what is allowed; raises WrongResultError
    checked: Callable[[], Result] | None = None  # what `check` is given; None: what `ours` returns
    limit: str = ""
    limits: dict[str, Limit] = field(default_factory=dict)  # measured; the line's limit is the one called `limit`
    beside: dict[str, Limit] = field(default_factory=dict)  # measured as well, shown as others' times
    flops: float = 0.0  # of the work; 0: no rate is shown
    n_bytes: float = 0.0  # that the work has to read at least; 0: no rate is shown
    goal: str = ""
    remark: str = ""


@dataclass(frozen=True)
class GpuSlot:
    """Where steps run, and until when."""

    device: torch.device
    until: float  # by time.perf_counter
    rounds: int = ROUNDS  # of measurements at most

    def left(self) -> float:
        """Seconds."""
        return self.until - time.perf_counter()

    def wait(self) -> None:
        """Until the device has done what is queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(work: Work, slot: GpuSlot) -> BenchLine:
    """Run once and check; then, if the result is right, peak memory and medians of rounds in turns while time is left.

    The first run, which compiles and tunes kernels, is timed apart (`first_s`).
    """
    began = time.perf_counter()
    result = (work.checked or work.ours)()
    slot.wait()
    first_s = time.perf_counter() - began
    try:
        worst = work.check(result)
    except WrongResultError as error:
        return BenchLine(work.name, None, figure="WRONG", goal=work.goal, remark=f"refused: {error}", failed=True)
    del result
    numbers = {"first_s": first_s, "error_of_allowed": worst}
    peak = _peak_bytes(work.ours, slot)
    if peak is not None:
        numbers["peak_bytes"] = float(peak)
    runs = {"ours": Limit(work.ours), **work.limits, **work.beside}
    taken = timed({name: each.run for name, each in runs.items()}, slot)
    remark = f"right: {worst:.0%} of the error that is allowed; first run {first_s:.2f} s"
    remark += "" if peak is None else f"; peak {peak / 1e6:,.0f} MB above the inputs"
    remark += f"; {work.remark}" if work.remark else ""
    if taken is None:
        return BenchLine(
            work.name,
            None,
            figure="right, not timed",
            goal=work.goal,
            numbers=numbers,
            remark=f"{remark}; no time was left",
        )
    seconds = {name: taken[name] * each.times for name, each in runs.items()}
    remark += "".join(f"; {each}" for each in _rates(work, seconds, numbers))
    return BenchLine(
        work=work.name,
        ours_s=seconds["ours"],
        limit=work.limit,
        limit_s=seconds.get(work.limit),
        peers_s={name: seconds[name] for name in (*work.limits, *work.beside) if name != work.limit},
        goal=work.goal,
        remark=remark,
        numbers=numbers,
    )


def _rates(work: Work, seconds: dict[str, float], numbers: dict[str, float]) -> Iterator[str]:
    """In words; and, by name, among the numbers."""
    limit_s = seconds.get(work.limit)
    for amount, unit, name, key in (
        (work.flops, 1e12, "TFLOP/s", "tflops"), (work.n_bytes, 1e9, "GB/s", "gb_per_s"),
    ):  # fmt: skip
        if amount:
            numbers[key] = amount / seconds["ours"] / unit
            yield f"{numbers[key]:,.1f} {name}" + (f" of {amount / limit_s / unit:,.1f}" if limit_s else "")


def timed(runs: dict[str, Callable[[], object]], slot: GpuSlot) -> dict[str, float] | None:
    """Median seconds of each, in turns after one warm-up; fewer rounds where time is short, None where not even one fits."""
    if slot.left() <= 0:
        return None
    repeats: dict[str, int] = {}
    round_s = 0.0
    for name, run in runs.items():  # the first call warms up, the second says how often to repeat
        run()
        slot.wait()
        seconds = _seconds(run, 1, slot)
        repeats[name] = max(min(int(SAMPLE_S / max(seconds, 1e-7)), 1000), 1)
        round_s += seconds * repeats[name]
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(slot.rounds):
        if slot.left() < round_s * (1 if turn else 0.5):
            break
        for name, run in runs.items():
            taken[name].append(_seconds(run, repeats[name], slot))
    return {name: median(times) for name, times in taken.items()} if taken["ours"] else None


def _seconds(run: Callable[[], object], repeats: int, slot: GpuSlot) -> float:
    """Seconds of one call, the device waited for before and after."""
    slot.wait()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    slot.wait()
    return (time.perf_counter() - began) / repeats


def _peak_bytes(run: Callable[[], object], slot: GpuSlot) -> int | None:
    """What a call allocates at most above what is allocated; None on a CPU, where torch does not count."""
    if slot.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(slot.device)
    before = torch.cuda.memory_allocated(slot.device)
    run()
    slot.wait()
    return torch.cuda.max_memory_allocated(slot.device) - before


# -- checks ----------------------------------------------------------------------------------------------------------


def double(values: Tensor | np.ndarray) -> np.ndarray:
    """In float64, in main memory; bf16 as well, which NumPy does not know."""
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)


def within(name: str, found: Tensor | np.ndarray, right: Tensor | np.ndarray, allowed: float) -> float:
    """The largest difference as a share of `allowed`. Raises WrongResultError beyond it, for other shapes and other NaN."""
    here, there = double(found), double(right)
    if here.shape != there.shape:
        raise WrongResultError(f"{name} has the shape {here.shape}, float64 gives {there.shape}")
    if not np.array_equal(np.isnan(here), np.isnan(there)):
        raise WrongResultError(f"{name} is NaN in other places than float64's")
    off = np.abs(here - there)[~np.isnan(there)]
    if not off.size:
        raise WrongResultError(f"{name} holds no number that could be compared")
    worst = float(off.max())
    if not worst <= allowed:
        raise WrongResultError(f"{name} is off by {worst:.3g} from float64's, allowed are {allowed:.3g}")
    return worst / allowed


def within_norm(name: str, found: Tensor | np.ndarray, right: Tensor | np.ndarray, allowed: float) -> float:
    """As `within`, for the norm of the difference over the norm of float64's."""
    here, there = double(found), double(right)
    if here.shape != there.shape:
        raise WrongResultError(f"{name} has the shape {here.shape}, float64 gives {there.shape}")
    off = float(np.linalg.norm(here - there) / max(np.linalg.norm(there), np.finfo(np.float64).tiny))
    if not off <= allowed:
        raise WrongResultError(f"{name} is off by {off:.3g} of its norm from float64's, allowed are {allowed:.3g}")
    return off / allowed


def same(name: str, found: Tensor | np.ndarray, right: Tensor | np.ndarray) -> float:
    """0.0. Raises WrongResultError where whole numbers differ."""
    here, there = (x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (found, right))
    if here.shape != there.shape or not np.array_equal(here, there):
        n = int((here != there).sum()) if here.shape == there.shape else max(here.size, there.size)
        raise WrongResultError(f"{name}: {n:,} of {there.size:,} entries are not those that they have to be")
    return 0.0
