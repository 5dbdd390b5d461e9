"""What the stages of a study's runs took, as a file in the study's folder. Standard library only.

A run is one command over the study: one that was stopped and the one that went on behind it are two. Times are written after
every stage, so that a killed run has left those of the stages that it finished.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seedscope.engine.contract.cores import processor_name, usable_cores
from seedscope.engine.contract.files import write_whole

FILE = "stage-times.json"  # in the study's folder
FORMAT, FORMAT_VERSION = "seedscope.stage-times", 1
MOST_RUNS = 20  # that a file keeps: the newest
_KIB = 1 if sys.platform == "darwin" else 1024  # the unit in which the system counts peak memory


@dataclass(frozen=True)
class StageTime:
    """One stage that ended. Time of stages inside it is theirs alone."""

    stage: str  # as progress names it, such as "topk-512: matching"
    unit: str  # of `done`
    done: int
    wall_s: float
    cpu_s: float  # user and system time of all threads, and of child processes that ended


@dataclass
class RunTimes:
    """One run of a command over a study."""

    begun: float  # Unix seconds
    processor: str
    n_cores: int  # that the process might use
    wall_s: float = 0.0  # of the whole run so far, what lies between stages included
    cpu_s: float = 0.0
    peak_bytes: int = 0  # most resident memory of the process so far
    has_ended: bool = False  # without an error
    stages: list[StageTime] = field(default_factory=list)


class StageClock:
    """Collects the stages of one run and keeps them in a file."""

    def __init__(self, file: Path) -> None:
        self._file, self._before = file, read_runs(file)
        self._wall, self._cpu = time.perf_counter(), _cpu_s()
        self._run = RunTimes(time.time(), processor_name(), usable_cores())
        self._inside: list[list[float]] = []  # per open stage: wall and CPU seconds of the stages inside it

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[list[int]]:
        """Time one stage; yields a list whose entry is to be set to how much was done."""
        done, wall, cpu = [0], time.perf_counter(), _cpu_s()
        self._inside.append([0.0, 0.0])
        try:
            yield done
        finally:
            took = time.perf_counter() - wall, _cpu_s() - cpu
            inner = self._inside.pop()
            if self._inside:
                self._inside[-1] = [a + b for a, b in zip(self._inside[-1], took, strict=True)]
            own = [round(max(a - b, 0.0), 4) for a, b in zip(took, inner, strict=True)]
            self._run.stages.append(StageTime(name, unit, done[0], *own))
            self.write()

    def write(self, *, has_ended: bool = False) -> None:
        """Keep the run as it stands; work goes on where it cannot be kept, or where there is no folder yet."""
        self._run.wall_s = round(time.perf_counter() - self._wall, 3)
        self._run.cpu_s = round(_cpu_s() - self._cpu, 3)
        self._run.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
        self._run.has_ended = has_ended
        if not self._run.stages:
            return
        runs = [asdict(each) for each in [*self._before, self._run][-MOST_RUNS:]]
        content = {"format": FORMAT, "version": FORMAT_VERSION, "runs": runs}
        with suppress(OSError):
            write_whole(self._file, json.dumps(content, indent=1), durable=False)


def read_runs(file: Path) -> list[RunTimes]:
    """The runs that a file holds, the oldest first; none where there is no file that can be read."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        if (content["format"], content["version"]) != (FORMAT, FORMAT_VERSION):
            return []
        return [
            RunTimes(**{**run, "stages": [StageTime(**stage) for stage in run["stages"]]}) for run in content["runs"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def until_published(runs: list[RunTimes]) -> list[RunTimes]:
    """The runs that it took to publish a study for the first time: those up to the first that ended without an error."""
    for at, run in enumerate(runs):
        if run.has_ended:
            return runs[: at + 1]
    return []


def _cpu_s() -> float:
    return sum(os.times()[:4])
