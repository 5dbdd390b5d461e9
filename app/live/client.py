"""Client of the live engine in the event loop: identical questions are asked once, and one that nobody waits for is taken back."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from prometheus_client import CollectorRegistry

from seedscope.app.live.figures import ABSENT, ANSWERED, LEFT, LiveFigures
from seedscope.app.live.process import EngineBrokenError, EngineProcess
from seedscope.app.live.remote import RemoteEngine
from seedscope.engine.contract.queries import TIME_LIMIT_S, LiveAnswer, LiveQuery, as_fields

GRACE_S = 0.5  # beyond a time limit, in which the engine says itself that it is over
PART = 2**20  # bytes of an array that are read at once: other requests go between
STATUS_S = 0.5  # that a scraper waits for the engine
ALWAYS_ASKED = ("status",)  # never shared: the answer is another a moment later


class EngineRefusedError(Exception):
    """The engine's answer is an error; `cause` is one of engine.contract.queries.CAUSES."""

    def __init__(self, cause: str, error: str) -> None:
        super().__init__(error)
        self.cause = cause


@dataclass(eq=False)
class _Asked:
    """A question in flight, and how many wait for its answer."""

    task: asyncio.Task[LiveAnswer]
    n_waiting: int = 0


class LiveEngine:
    """Asks the engine of a root, a process here or on another machine; used in one event loop. Starts nothing yet."""

    def __init__(self, process: EngineProcess | RemoteEngine, figures: LiveFigures | None = None) -> None:
        self.process = process
        self.figures = figures or LiveFigures(CollectorRegistry())
        self._in_flight: dict[tuple[LiveQuery, float], _Asked] = {}
        self._starting: CapacityLimiter | None = None  # threads that start the process

    async def status(self) -> dict[str, Any]:
        """What the engine says of itself; empty where it is not up or silent. Starts nothing."""
        try:
            async with asyncio.timeout(STATUS_S):
                status = (await self._converse(LiveQuery("status"), STATUS_S)).status
        except (OSError, EOFError, ValueError, EngineBrokenError):
            return {}
        if isinstance(self.process, RemoteEngine):
            status.pop("pid", None)  # here it names another process, or none
        return status

    async def answer(self, query: LiveQuery, *, time_limit_s: float = TIME_LIMIT_S) -> LiveAnswer:
        """As `ask`, but an answer that is an error raises EngineRefusedError."""
        answer = await self.ask(query, time_limit_s=time_limit_s)
        if answer.error is not None:
            raise EngineRefusedError(answer.cause, answer.error)
        return answer

    async def ask(self, query: LiveQuery, *, time_limit_s: float = TIME_LIMIT_S) -> LiveAnswer:
        """Answer a query within the limit; identical queries in flight are asked once.

        Raises EngineStartingError at once while the process starts or restarts, EngineBrokenError where it cannot. Cancelled,
        it hangs up where nobody else waits for the same, and the engine stops computing.
        """
        key = (query, time_limit_s)
        asked = self._in_flight.get(key)
        if asked is None or query.kind in ALWAYS_ASKED:
            asked = self._in_flight[key] = _Asked(asyncio.create_task(self._ask(query, time_limit_s)))
        asked.n_waiting += 1
        begin, outcome = time.perf_counter(), ABSENT
        try:
            answer = await asyncio.shield(asked.task)
            outcome = answer.cause or ANSWERED
            return answer
        except asyncio.CancelledError:
            outcome = LEFT
            raise
        finally:
            self.figures.note_answer(query.kind, outcome, time.perf_counter() - begin)
            asked.n_waiting -= 1
            if not asked.n_waiting:
                asked.task.cancel()  # nothing where it is done
                if self._in_flight.get(key) is asked:
                    del self._in_flight[key]

    def close(self) -> None:
        """End the process if this client started it; later questions raise EngineBrokenError. Blocks for a moment."""
        self.process.close()

    async def _ask(self, query: LiveQuery, time_limit_s: float) -> LiveAnswer:
        self.process.make_folder()
        try:
            async with asyncio.timeout(time_limit_s + GRACE_S):
                answered = await self._converse(query, time_limit_s)
        except TimeoutError:
            return LiveAnswer(error=f"no answer within {time_limit_s:g} s; it may be ready later", cause="late")
        except BlockingIOError:
            return LiveAnswer(error="busy: too many queries wait; try again in a moment", cause="busy")
        except (OSError, EOFError):
            await self._start()
        self.process.note_answered()
        return answered

    async def _converse(self, query: LiveQuery, time_limit_s: float) -> LiveAnswer:
        """One question and its answer; raises OSError or EOFError where the engine is not there or hangs up."""
        line = json.dumps({"query": as_fields(query), "time_limit_s": time_limit_s}).encode() + b"\n"
        reader, writer = await self.process.exchange(query, line)
        try:
            return await _decoded(json.loads(await _line(reader)), reader)
        finally:
            writer.close()

    async def _start(self) -> NoReturn:
        """See to the process; raises what EngineProcess.start does."""
        self._starting = self._starting or CapacityLimiter(1)
        before = self.process.n_started
        try:
            await run_sync(self.process.start, limiter=self._starting)
        finally:
            self.figures.note_starts(self.process.n_started - before)
        raise AssertionError("start always raises")


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the engine hung up")
    return line


async def _decoded(header: dict[str, Any], reader: asyncio.StreamReader) -> LiveAnswer:
    """The answer whose header was read and whose arrays follow."""
    arrays = {}
    for named in header.pop("arrays"):
        dtype = np.dtype(named["dtype"])
        data = await _bytes(reader, int(np.prod(named["shape"], dtype=np.int64)) * dtype.itemsize)
        array = np.frombuffer(data, dtype).reshape(named["shape"])
        array.flags.writeable = False
        arrays[named["name"]] = array
    return LiveAnswer(arrays, **header)


async def _bytes(reader: asyncio.StreamReader, n: int) -> bytearray:
    data, at = bytearray(n), 0
    while at < n:
        part = await reader.read(min(PART, n - at))
        if not part:
            raise EOFError("the engine hung up")
        data[at : at + len(part)] = part
        at += len(part)
    return data
