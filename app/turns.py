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
LIVE_AT_ONCE = 64  # requests that wait for the live engine, which computes in batches; four processes fill its queue
LIVE_STEPS_AT_ONCE = 2
LONGEST_LIVE_LINE = 256
_END = object()


class BusyError(Exception):
    """The line is too long, or was not short enough in time; `retry_s`: when to ask again."""

    def __init__(self, n_waiting: int, retry_s: int) -> None:
        super().__init__(f"{n_waiting} requests wait")
        self.n_waiting, self.retry_s = n_waiting, retry_s


class Turn:
    """What a request holds while it computes; given back and taken again around a wait for somebody else."""

    def __init__(self, turns: "Turns") -> None:
        self._turns = turns
        self._begun: float | None = None  # monotonic; None while it is not held

    async def begin(self, *, patient: bool = False) -> None:
        """Wait for it. Raises BusyError; with `patient` never."""
        await self._turns._begin(patient)
        self._begun = time.monotonic()

    def end(self) -> None:
        """Pass it on; nothing where it is not held."""
        if self._begun is not None:
            self._turns._end(time.monotonic() - self._begun)
            self._begun = None

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Without the turn within the block; then it is waited for again, and never refused."""
        self.end()
        yield
        await self.begin(patient=True)


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

    @property
    def n_running(self) -> int:
        """Turns that are held."""
        return self._running

    @asynccontextmanager
    async def one(self, *, patient: bool = False) -> AsyncIterator[Turn]:
        """Wait for a turn, and hold it. Raises BusyError; with `patient` never: of work that has begun already."""
        turn = Turn(self)
        await turn.begin(patient=patient)
        try:
            yield turn
        finally:
            turn.end()

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

    def _end(self, took_s: float) -> None:
        self._usual_s += 0.1 * (took_s - self._usual_s)
        self._pass_on()

    def _pass_on(self) -> None:
        if self._line:
            self._line.popleft().set()
        else:
            self._running -= 1

    def _busy(self) -> BusyError:
        n = len(self._line)
        return BusyError(n, max(1, min(60, math.ceil(n * self._usual_s / self.at_once))))


class AllTurns:
    """The turns of one application.

    Of pages; of whole requests that ask the live engine, most of which wait for it; and of what these compute themselves, so
    that a crowd of them does not stand in the line of the pages.
    """

    def __init__(self, workers: int) -> None:
        self.pages = Turns(max(2, math.ceil(PAGES_PER_CORE * usable_cores() / workers)))
        self.live_steps = Turns(LIVE_STEPS_AT_ONCE)
        self.live = Turns(LIVE_AT_ONCE, LONGEST_LIVE_LINE)


async def take_turn(request: Request) -> AsyncIterator[None]:
    """Dependency of every route that computes: its function waits for a turn, and passes it on before the answer is sent."""
    turns: AllTurns = request.app.state.turns
    async with turns.pages.one():
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
