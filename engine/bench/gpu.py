"""`seedscope bench gpu`: every path that runs on a CUDA device, checked against float64 and timed, within a given time.

Steps follow one another; each gets its share of the time that is left, and one for which too little is left is skipped and
says so. A wrong result and an error are lines that failed; all other steps still run.
"""

import gc
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from seedscope.engine.bench.gpu_geometry import geometry, projection
from seedscope.engine.bench.gpu_harvest import harvest
from seedscope.engine.bench.gpu_matching import best, live, rates
from seedscope.engine.bench.gpu_sizes import GpuSizes
from seedscope.engine.bench.gpu_training import peers, train
from seedscope.engine.bench.gpu_work import ROUNDS, GpuSlot, Work, measure
from seedscope.engine.bench.report import BenchLine

MINUTES = 10.0  # that a run takes unless told otherwise
LEAST = 0.25  # of its share of all minutes that has to be left for a step to begin
NOTHING_LEFT = "skipped: "  # begins the remark of a line that time was too short for
STATE = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


@dataclass(frozen=True)
class GpuStep:
    """A group of work that shares its inputs on the device."""

    name: str
    share: float  # of the time
    run: Callable[[GpuSizes, GpuSlot], Iterator[Work | BenchLine]]


STEPS = (
    GpuStep("rates", 0.06, rates),
    GpuStep("best cosines", 0.24, best),
    GpuStep("live neighbours", 0.10, live),
    GpuStep("training", 0.24, train),
    GpuStep("peers of training", 0.12, peers),
    GpuStep("harvest", 0.10, harvest),
    GpuStep("geometry", 0.08, geometry),
    GpuStep("projection", 0.06, projection),
)


def cuda_device() -> torch.device:
    """The device that is measured. Raises ValueError, with what was looked for and what to do, where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    build = f"PyTorch {torch.__version__} is built for " + (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    )
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    driver = "an NVIDIA driver was found" if has_driver else "no NVIDIA driver was found"
    way_out = (
        "install PyTorch's build for that CUDA, pytorch.org/get-started names it"
        if has_driver and not torch.version.cuda
        else "run it on a machine with an NVIDIA GPU and PyTorch's CUDA build; seedscope doctor says what this one has"
    )
    raise ValueError(f"bench gpu looked for a CUDA device and found none: {build}, {driver}; {way_out}")


def lines(
    *,
    device: torch.device,
    minutes: float = MINUTES,
    sizes: GpuSizes | None = None,
    steps: tuple[GpuStep, ...] = STEPS,
    rounds: int = ROUNDS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[BenchLine]:
    """The device, then every step in order; each line as soon as it is measured. `report` gets (steps done, all steps)."""
    sizes = sizes or GpuSizes()
    yield describe(device)
    end = time.perf_counter() + 60 * minutes
    for at, step in enumerate(steps):
        left = end - time.perf_counter()
        planned = 60 * minutes * step.share / sum(each.share for each in steps)
        own = left * step.share / sum(each.share for each in steps[at:])  # what others did not use is used
        if left <= 0 or own < LEAST * planned:
            yield skipped(step.name, f"{max(own, 0):.0f} s are left for it, planned were {planned:.0f} s")
        else:
            yield from _attempted(step, sizes, GpuSlot(device, time.perf_counter() + own, rounds))
        report(at + 1, len(steps))
    if device.type == "cuda":
        yield replace(describe(device), work="device after the run")


def skipped(name: str, why: str) -> BenchLine:
    """What was not measured because time was short."""
    return BenchLine(name, None, remark=f"{NOTHING_LEFT}{why}; give --minutes a larger number")


def _attempted(step: GpuStep, sizes: GpuSizes, slot: GpuSlot) -> Iterator[BenchLine]:
    """All work of a step; an error ends the step, not the run."""
    at = ""
    try:
        for each in step.run(sizes, slot):
            at = "" if isinstance(each, BenchLine) else f"{each.name}: "
            if isinstance(each, BenchLine):
                yield each
            elif slot.left() <= 0:
                yield skipped(each.name, f"the time of the step {step.name!r} is over")
            else:
                yield measure(each, slot)
            del each
    # Whatever a driver, a compiler or a device may raise: it is a result, and the other steps have theirs.
    except Exception as error:
        first = " ".join(str(error).split())[:300]
        yield BenchLine(
            step.name,
            None,
            figure="ERROR",
            failed=True,
            remark=f"{at}broke off: {type(error).__name__}: {first or 'no more is said'}; the rest of the step was not run",
        )
    if slot.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def describe(device: torch.device) -> BenchLine:
    """Name, driver, versions, memory, and clock and power where nvidia-smi tells them: without them no figure says anything."""
    versions = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}), triton {_version('triton')}"
    if device.type != "cuda":
        return BenchLine(f"device: {device.type}, no CUDA device", None, figure="not measured", remark=versions)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    which = f"GPU-{properties.uuid}"  # CUDA numbers devices otherwise than nvidia-smi does
    state, driver = device_state(which), (_nvidia_smi("driver_version", which) or ["unknown"])[0]
    said = ", ".join(f"{name} {value:g}" for name, value in state.items()) or "clock and power unknown: no nvidia-smi"
    capability = f"{properties.major}.{properties.minor}"
    return BenchLine(
        work=f"device: {properties.name}, capability {capability}, {properties.multi_processor_count} multiprocessors",
        ours_s=None,
        figure=f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}",
        numbers={"free_bytes": float(free), "total_bytes": float(total)} | state,
        remark=f"driver {driver}, {versions}; before the run: {said}",
    )


def _nvidia_smi(query: str, which: str) -> list[str] | None:
    """The values of a query of one device; None where the program is missing or refuses."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, f"--query-gpu={query}", "--format=csv,noheader,nounits", f"--id={which}"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return [value.strip() for value in done.stdout.strip().split(",")]


def device_state(which: str) -> dict[str, float]:
    """Clocks (MHz), power (W) and temperature (degrees Celsius) by name; those that nvidia-smi does not know are left out."""
    state = {}
    for name, value in zip(STATE.split(","), _nvidia_smi(STATE, which) or [], strict=False):
        try:
            state[name] = float(value)
        except ValueError:
            continue
    return state


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
