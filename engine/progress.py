"""Progress of long work on the terminal: bars with rate and time left, plain lines where nobody watches."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

Report = Callable[[int, int], None]


class Progress:
    """`with progress.stage(name, unit) as report: report(done, total)`; each stage leaves one line behind."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[Report]:
        """Show one stage; yields the function that takes (done, total)."""
        began, last = time.perf_counter(), [0]
        if self._live:
            bars = Bars(
                TextColumn("{task.description:<28}"), BarColumn(32), TaskProgressColumn(), TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            with bars:
                task = bars.add_task(name, rate="", total=None)

                def report(done: int, total: int) -> None:
                    rate = done / max(time.perf_counter() - began, 1e-9)
                    bars.update(task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")

                yield report
                task_state = bars.tasks[0]
                if task_state.total is None:
                    bars.update(task, completed=1, total=1, rate="already done")
            return

        def remember(done: int, total: int) -> None:
            last[0] = done

        yield remember
        if not self._quiet:
            taken = time.perf_counter() - began
            detail = f"{last[0]:,} {unit}" if last[0] else "already done"
            print(f"{name}: {detail}, {taken:.1f} s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line about what was chosen, and why."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)
