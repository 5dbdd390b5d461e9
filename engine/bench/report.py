"""The result of a benchmark: the time of one piece of work, against the machine's limit and against peers, from one run."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchLine:
    """One piece of work, measured. Times are medians in seconds; None: not measured, and `remark` says why."""

    work: str  # what was computed, with its sizes
    ours_s: float | None
    limit: str = ""  # what the hardware's limit is taken to be, e.g. "bare blocked torch.mm of the same product"
    limit_s: float | None = None
    peers_s: dict[str, float | str] = field(default_factory=dict)  # seconds, or why there are none
    goal: str = ""
    remark: str = ""
    p99_s: float | None = None  # 99th percentile, where `ours_s` is the median of single requests
    figure: str = ""  # what was measured, where it is no time
    numbers: dict[str, float] = field(default_factory=dict)  # further figures by name, with their unit in the name
    failed: bool = False  # a result was wrong, or the work broke off with an error: `remark` says which

    @property
    def ratio(self) -> float | None:
        """Our time over the limit's; 1 is the hardware's limit."""
        return self.ours_s / self.limit_s if self.ours_s and self.limit_s else None


Section = Callable[[], Iterator[BenchLine]]


def interleaved(runs: dict[str, Callable[[], Any]], *, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each, measured in turns: a slow moment of the machine then hits all of them. One warm-up each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in taken.items()}
