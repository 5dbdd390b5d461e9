"""Units of work, what an executor is, and a run of units through one."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol, runtime_checkable

from seedscope.engine.contract.abandon import stop_if_abandoned

SEEN_WITHIN_S = 60.0  # shared file systems show a file that another node wrote some seconds later
Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a module-level function, and paths and plain values


class Unit(NamedTuple):
    """A piece of work that is done when a file or folder is there, which its function writes whole."""

    function: Callable[..., Any]  # of a module
    arguments: tuple[Any, ...]  # paths and plain values
    result: Path  # names all that it is made from
    size: int = 1  # of the whole work, in the unit of its progress


class LostUnitError(RuntimeError):
    """A unit ended with its process or its node; nobody says that the work itself is wrong."""


@runtime_checkable
class Executor(Protocol):
    """Runs calls elsewhere, shaped like `concurrent.futures.Executor`."""

    is_here: bool
    """Whether calls run in this process, one after another: then work need not be cut into units."""
    threads: int
    """That a unit computes with."""
    members: int | None
    """SAEs trained together in one unit; None: all that fit."""
    device: str | None
    """That units compute on; None: the one that the command names."""
    retries: int
    """How often `run_units` submits a unit again that was lost; 0 where the scheduler itself does."""

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Submit calls together: a scheduler that has arrays of jobs makes one. A lost call's future has a LostUnitError."""
        ...

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Submit one call."""
        ...

    def shutdown(self, *, cancel: bool = False) -> None:
        """End; with `cancel`, what runs and what waits ends as well."""
        ...


def run_units(
    executor: Executor,
    units: Sequence[Unit],
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run the units whose results are not there, and return when all are; `report` gets (sizes done, all sizes).

    A unit that raises ends the run with its error, once what runs beside it was cancelled. One that is lost is submitted again as
    often as the executor's `retries` say. Raises FileNotFoundError where a unit ends well and its result is not to be seen here.
    """
    lacking = [unit for unit in units if not unit.result.exists()]
    total = sum(unit.size for unit in units)
    done = total - sum(unit.size for unit in lacking)
    report(done, total)
    losses = [0] * len(lacking)
    waiting = dict(zip(_submitted(executor, lacking), range(len(lacking)), strict=True))
    try:
        while waiting:
            stop_if_abandoned()
            ended, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            lost: list[int] = []
            for future in ended:
                at = waiting.pop(future)
                try:
                    future.result()
                except LostUnitError as error:
                    losses[at] += 1
                    if losses[at] > executor.retries:
                        raise LostUnitError(f"a unit was lost {losses[at]} times: {error}") from None
                    say(f"a unit was lost and is begun again: {error}")
                    lost.append(at)
                    continue
                _require_result(lacking[at])
                done += lacking[at].size
                report(done, total)
            waiting |= dict(zip(_submitted(executor, [lacking[at] for at in lost]), lost, strict=True))
    finally:
        for future in waiting:
            future.cancel()


def _submitted(executor: Executor, units: Sequence[Unit]) -> list[Future[Any]]:
    return executor.submit_all([(unit.function, unit.arguments) for unit in units]) if units else []


def _require_result(unit: Unit) -> None:
    until = monotonic() + SEEN_WITHIN_S
    while not unit.result.exists():
        if monotonic() > until:
            raise FileNotFoundError(
                f"a unit ended well but {unit.result} is not to be seen here, expected a folder that all nodes share"
            )
        sleep(0.2)


def called(threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a function with so many threads in every library that computes: sums round by their number."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of what is imported from here on
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
    return function(*arguments)
