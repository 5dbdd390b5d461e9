"""Progress of long work: bars with rate and time left on a terminal, one plain line per stage elsewhere, on standard error.

Where the environment variable SEEDSCOPE_PROGRESS names a file, the running stage is written to it as JSON for the process that
started the command, and training curves to files beside it (engine.contract.progress_files).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

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

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.progress_files import PROGRESS_VARIABLE, Curves, StageProgress
from seedscope.engine.contract.stage_times import FILE, StageClock

Report = Callable[[int, int], None]  # report(done, total)
FILE_S = 0.25  # least seconds between two writings of the file


class Progress:
    """`with progress.stage(name, unit) as report: report(done, total)`; one line per stage remains on the terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        file = os.environ.get(PROGRESS_VARIABLE)
        self._file = Path(file) if file else None
        self._remark = ""  # of the running stage
        self._clock: StageClock | None = None

    @contextmanager
    def timed(self, study: Path) -> Iterator[None]:
        """Keep what the stages inside take in the study's folder (engine.contract.stage_times)."""
        self._clock = StageClock(study / FILE)
        try:
            yield
            self._clock.write(has_ended=True)
        finally:
            self._clock = None

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[Report]:
        """Show one stage; yields the function that reports (done, total), both in `unit`."""
        self._remark = ""
        with ExitStack() as stack:
            receivers = [stack.enter_context(self._shown(name, unit))]
            if self._file is not None:
                receivers.append(stack.enter_context(_kept(self._file, name, unit)))
            if self._clock is not None:
                counted = stack.enter_context(self._clock.stage(name, unit))
                receivers.append(lambda done, total: counted.__setitem__(0, int(done)))

            def report(done: int, total: int) -> None:
                for each in receivers:
                    each(done, total)

            yield report

    @contextmanager
    def _shown(self, name: str, unit: str) -> Iterator[Report]:
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
                    bars.update(task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s {self._remark}".rstrip())

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
            remark = f", {self._remark}" if self._remark else ""
            print(f"{name}: {detail}, {taken:.1f} s{remark}", file=sys.stderr, flush=True)

    def show(self, curves: Curves, remark: str) -> None:
        """Write training curves to their file, and show a remark, a few words, after the running stage."""
        self._remark = remark
        if self._file is not None:
            with suppress(OSError):
                write_whole(self._file.with_name(curves.file), json.dumps(asdict(curves)), durable=False)

    def say(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _kept(file: Path, name: str, unit: str) -> Iterator[Report]:
    """Write a stage to a file: when it begins, a few times per second, and when it ends."""
    began, written = time.perf_counter(), 0.0
    last: tuple[int, int | None] = (0, None)

    def write() -> None:
        nonlocal written
        done, total = last
        written = time.perf_counter()
        stage = StageProgress(name, unit, done, total, done / max(written - began, 1e-9))
        with suppress(OSError):  # work goes on where its progress cannot be written
            write_whole(file, json.dumps(asdict(stage)), durable=False)

    def keep(done: int, total: int) -> None:
        nonlocal last
        last = (int(done), int(total))
        if time.perf_counter() - written >= FILE_S:
            write()

    write()
    try:
        yield keep
    finally:
        write()
