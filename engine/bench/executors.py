"""What executors cost: units of one second each on two workers, beside the ideal."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.files import write_whole
from seedscope.engine.executors.open_executor import opened
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import Unit, run_units

N_UNITS, N_WORKERS, UNIT_S = 100, 2, 1.0
GOAL = "within 15 % of the ideal"


def wait_and_write(seconds: float, path: str) -> str:
    """A unit that takes so long and writes a file."""
    time.sleep(seconds)
    write_whole(Path(path), "done", durable=False)
    return path


def waiting_units(folder: Path, n: int, seconds: float) -> list[Unit]:
    """Units whose results lie in a folder."""
    paths = [folder / f"unit-{index}" for index in range(n)]
    return [Unit(wait_and_write, (seconds, str(path)), path) for path in paths]


def lines(*, n: int = N_UNITS, seconds: float = UNIT_S) -> Iterator[BenchLine]:
    """Local processes with the time that they take to begin, and Ray, where it is installed, from a cluster that runs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ExecutorSettings(workers=N_WORKERS, cpus=1)
        yield _line("local processes", settings, Path(folder), n, seconds)
    try:
        import ray
    except ImportError:
        yield BenchLine(_work("Ray", n, seconds), None, goal=GOAL, remark="not installed: pip install 'seedscope[ray]'")
        return
    began = time.perf_counter()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=N_WORKERS, include_dashboard=False, logging_level=logging.ERROR)
    took = time.perf_counter() - began
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = ExecutorSettings("ray", cpus=1)
            yield _line(
                "Ray", settings, Path(folder), n, seconds, f"a cluster of this machine, up in {took:.1f} s before"
            )
    finally:
        ray.shutdown()


def _line(name: str, settings: ExecutorSettings, folder: Path, n: int, seconds: float, remark: str = "") -> BenchLine:
    began = time.perf_counter()
    with opened(settings, folder) as executor:
        run_units(executor, waiting_units(folder, n, seconds))
    took, ideal = time.perf_counter() - began, n * seconds / N_WORKERS
    return BenchLine(
        _work(name, n, seconds), took, limit="the units alone, one after another on each worker", limit_s=ideal, goal=GOAL,
        remark=remark, numbers={"overhead_percent": 100 * (took / ideal - 1)},
    )  # fmt: skip


def _work(name: str, n: int, seconds: float) -> str:
    return f"{name}: {n} units of {seconds:g} s on {N_WORKERS} workers"
