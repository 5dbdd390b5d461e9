"""`seedscope bench`: the sections by name, the machine they ran on, and their lines as a table or JSON."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from seedscope.engine.bench import (
    assignment,
    executors,
    function,
    geometry,
    gpu,
    harvest,
    live,
    loss,
    match_memory,
    pages,
    planning,
    planted,
    planted_spans,
    products,
    serve,
    training,
    transport,
    versions,
)
from seedscope.engine.bench.generated_study import StudySize
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.cores import processor_name
from seedscope.engine.contract.files import write_whole
from seedscope.engine.matching.cuda import choice

FORMAT, FORMAT_VERSION = "seedscope.bench", 1
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Machine:
    """Where the figures were measured."""

    processor: str
    n_cores: int
    memory_gib: float
    system: str
    gpu: str
    torch: str
    n_threads: int
    kernel: str  # which best-cosine kernel runs here, and why


def machine() -> Machine:
    """This machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine(
        processor=processor_name(),
        n_cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none: GPU figures not measured",
        torch=torch.__version__,
        n_threads=torch.get_num_threads(),
        kernel=": ".join(choice(device)),
    )


def match_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Matching: products, one-to-one assignment, live queries, theta moved on the pages, and memory by members."""
    yield from products.lines()
    yield from assignment.lines(full=full)
    yield from live.lines()
    yield from pages.lines(report=report)
    if full:
        yield from match_memory.lines()


def diff_lines(*, full: bool, report: Report, n: int | None = None) -> Iterator[BenchLine]:
    """Two versions of an SAE compared."""
    yield from versions.lines(full=full) if n is None else versions.lines(full=full, n=n)


def transport_lines(*, full: bool, report: Report, n: int | None = None) -> Iterator[BenchLine]:
    """Optimal transport between two dictionaries."""
    yield from transport.lines(full=full) if n is None else transport.lines(full=full, n=n)


def planted_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Matching rules against known counterparts."""
    yield from planted.lines(full=full)


def spans_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Shared spans against planted ones."""
    yield from planted_spans.lines(full=full)


def harvest_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Activity: the pass over the tokens, and what others take for it; and the loss of masks."""
    yield from harvest.lines(report=report)
    yield from loss.lines()


def geometry_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Geometry: what spans of unstable features capture of one another."""
    yield from geometry.lines(full=full, report=report)


def train_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Training: members in lockstep, and what others take for the same seeds and reach with them."""
    yield from training.lines(full=full, report=report)


def function_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Function: co-firing and substitution of counterparts."""
    yield from function.lines(full=full, report=report)


def executor_lines(*, full: bool, report: Report) -> Iterator[BenchLine]:
    """Executors: what they add to units of one second."""
    yield from executors.lines()


def serve_lines(
    size: StudySize, *, root: Path | None, workers: int | None, peer: str | None, full: bool, report: Report
) -> Iterator[BenchLine]:
    """Serving: a dashboard over a large study, alone and under load. Asked for by name only: it writes gigabytes."""
    yield from serve.lines(size, root=root, workers=workers, peer=peer, report=report)


def plan_lines(*, full: bool, report: Report, constants: Path, root: Path | None = None) -> Iterator[BenchLine]:
    """The constants of `seedscope plan`, written to a file."""
    yield from planning.lines(constants=constants, root=root, report=report)


def gpu_lines(*, full: bool, report: Report, device: torch.device, minutes: float) -> Iterator[BenchLine]:
    """Every path of a CUDA device, within so many minutes. Asked for by name only: it takes the device for itself."""
    yield from gpu.lines(device=device, minutes=minutes, report=report)


# What `seedscope bench` measures when nothing is named.
SECTIONS: dict[str, Callable[..., Iterator[BenchLine]]] = {
    "match": match_lines,
    "diff": diff_lines,
    "transport": transport_lines,
    "planted": planted_lines,
    "spans": spans_lines,
    "harvest": harvest_lines,
    "geometry": geometry_lines,
    "function": function_lines,
    "train": train_lines,
    "executors": executor_lines,
}


def as_json(lines: list[BenchLine]) -> dict[str, Any]:
    """Machine and lines with the name and version of the format."""
    measured = [asdict(line) | {"ratio": line.ratio} for line in lines]
    head = {"format": FORMAT, "version": FORMAT_VERSION, "seedscope": version("seedscope")}
    return head | {"machine": asdict(machine()), "lines": measured}


def write_json(lines: list[BenchLine], path: Path) -> None:
    """Write the lines as JSON."""
    write_whole(path, json.dumps(as_json(lines), indent=1))


def show(lines: list[BenchLine], console: Console) -> None:
    """Print machine and lines; ratios are to the limit of the same run."""
    here = machine()
    console.print(f"{here.processor}, {here.n_cores} cores, {here.memory_gib} GiB; GPU {here.gpu}", highlight=False)
    console.print(f"{here.system}, torch {here.torch} with {here.n_threads} threads; {here.kernel}", highlight=False)
    table = Table(show_lines=True)
    for title in ("work", "ours", "limit", "ratio", "peers", "goal", "remark"):
        table.add_column(title, overflow="fold")
    for line in lines:
        peers = [f"{name}: {_time(value)}" for name, value in line.peers_s.items()]
        limit = f"{_time(line.limit_s)}: {line.limit}" if line.limit else ""
        ratio = f"{line.ratio:.2f} x" if line.ratio else ""
        table.add_row(line.work, _ours(line), limit, ratio, "\n".join(peers), line.goal, line.remark)
    console.print(table, highlight=False)


def summary(line: BenchLine) -> str:
    """A line on one line."""
    ratio = f", {line.ratio:.2f} x the limit" if line.ratio else ""
    return f"{line.work}: {_ours(line)}{ratio}"


def _ours(line: BenchLine) -> str:
    """The figure, or the time: the median alone, or p50 / p99."""
    if line.figure:
        return line.figure
    return _time(line.ours_s) + ("" if line.p99_s is None else f" / {_time(line.p99_s)}")


def _time(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
