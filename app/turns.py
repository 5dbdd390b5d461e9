"""Who computes when: so many requests at once, a line of bounded length and time for the others, and a refusal beyond that.

Pages of a large study take tens of megabytes and a core each. Run side by side without end they take longer than one after the
other, and memory ends. Static files, `/healthz`, `/metrics` and jobs take no turn.
"""

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from anyio import CancelScope, Event, fail_after
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from seedscope.engine.contract.cores import usable_cores

PAGES_PER_CORE = 2
LONGEST_LINE = 64  # requests that wait, in each process
LONGEST_WAIT_S = 10.0
LIVE_AT_ONCE = 16  # they wait for the live engine, which has a line of its own, and take a thread meanwhile
_END = object()


class BusyError(Exception):
    """The line is too long, or was not short enough in time; `retry_s`: when to ask again."""

    def __init__(self, n_waiting: int, retry_s: int) -> None:
        super().__init__(f"{n_waiting} requests wait")
        self.n_waiting, self.retry_s = n_waiting, retry_s


class Turns:
    """Turns of one kind of work in one process, in the order of asking. Used in the event loop alone."""

    def __init__(self, at_once: int, longest_line: int = LONGEST_LINE, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self.at_once, self._longest_line, self._longest_wait_s = at_once, longest_line, longest_wait_s
        self._running = 0
        self._line: deque[Event] = deque()
        self._usual_s = 0.1  # that a turn takes, of late

    @property
    def n_waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @asynccontextmanager
    async def one(self, *, patient: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Raises BusyError; with `patient` never: of work that has begun already."""
        await self._begin(patient)
        begun = time.monotonic()
        try:
            yield
        finally:
            self._usual_s += 0.1 * (time.monotonic() - begun - self._usual_s)
            self._pass_on()

    async def _begin(self, patient: bool) -> None:
        if self._running < self.at_once:
            self._running += 1
            return
        if not patient and len(self._line) >= self._longest_line:
            raise self._busy()
        mine = Event()
        self._line.append(mine)
        try:
            if patient:
                await mine.wait()
            else:
                with fail_after(self._longest_wait_s):
                    await mine.wait()
        except BaseException as error:
            if mine.is_set():  # the turn came in the same moment
                self._pass_on()
            else:
                self._line.remove(mine)
            if isinstance(error, TimeoutError):
                raise self._busy() from None
            raise

    def _pass_on(self) -> None:
        if self._line:
            self._line.popleft().set()
        else:
            self._running -= 1

    def _busy(self) -> BusyError:
        n = len(self._line)
        return BusyError(n, max(1, min(60, math.ceil(n * self._usual_s / self.at_once))))


class AllTurns:
    """The turns of one application: of pages, and of questions to the live engine."""

    def __init__(self, workers: int) -> None:
        self.pages = Turns(max(2, math.ceil(PAGES_PER_CORE * usable_cores() / workers)))
        self.live = Turns(LIVE_AT_ONCE)


async def take_turn(request: Request) -> AsyncIterator[None]:
    """Dependency of every route that computes: its function waits for a turn, and passes it on before the answer is sent."""
    turns: AllTurns = request.app.state.turns
    async with turns.pages.one():
        yield


async def take_live_turn(request: Request) -> AsyncIterator[None]:
    """The same for routes that ask the live engine."""
    turns: AllTurns = request.app.state.turns
    async with turns.live.one():
        yield


async def in_turns(request: Request, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A download part by part, each in a turn of its own: however long it takes, pages go between. It is not refused midway."""
    turns: AllTurns = request.app.state.turns
    try:
        while True:
            async with turns.pages.one(patient=True):
                part = await run_in_threadpool(next, parts, _END)
            if not isinstance(part, bytes):
                return
            yield part
    finally:
        with CancelScope(shield=True):
            await run_in_threadpool(getattr(parts, "close", lambda: None))
