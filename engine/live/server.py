"""The live engine: one process per root that keeps dictionaries on the device and answers queries in batches.

`python -m seedscope.engine.live ROOT SOCKET [DEVICE]` listens on a Unix socket that only its owner can open, and speaks as
engine.contract.queries says: one query per connection. It ends when its standard input does, that is with its parent,
and at once and quietly where another engine holds the lock beside the socket. Started by app.live; engine.live.residents computes.
"""

import asyncio
import faulthandler
import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from seedscope.engine.contract.abandon import AbandonedError, abandoned_when
from seedscope.engine.contract.parent import wait_for_end_of_parent
from seedscope.engine.contract.queries import KINDS, QUEUE_LIMIT, LiveAnswer, LiveQuery, live_query
from seedscope.engine.live.crashes import MAX_CRASHES, CrashRecord

BATCH_LIMIT = 64  # queries that share one product
KEPT_BYTES = 2**26  # of answers: clicks on the same thing, at once or one after the other, cost one computation
LINE_LIMIT = 2**23  # bytes of a query: three sets of 96 members of 131,072 features take 6 million
LONGEST_S = 3600.0
# Neighbours take a moment and pairs may take a minute: a lane each, so that the moment stays one.
LANES = tuple(kind for kind in KINDS if kind != "status")
FAULT = "the engine could not answer this query; its log says why"


@runtime_checkable
class Answerer(Protocol):
    """What computes: engine.live.residents.Residents."""

    def version(self, query: LiveQuery) -> str: ...  # of the data it is asked of; raises ValueError
    def answer(self, queries: list[LiveQuery]) -> list[LiveAnswer]: ...  # all of one shared_key, from any thread
    def status(self) -> dict[str, Any]: ...


@dataclass(eq=False)
class _Work:
    """A query that waits or runs, and who waits for it."""

    query: LiveQuery
    done: asyncio.Future[bytes]
    askers: set[asyncio.StreamWriter] = field(default_factory=set)
    runs: bool = False
    was_late: bool = False  # somebody waited to the end of the time: it is computed to its own, for who asks again


class Engine:
    """Queue, batches and answers; everything but the computing happens in one event loop.

    All queries that were being computed when an earlier process crashed are suspects. A suspect is computed with nothing
    beside it, so that a further crash is its own; after MAX_CRASHES it is refused.
    """

    def __init__(self, answerer: Answerer, crashes: CrashRecord) -> None:
        self._answerer, self._crashes = answerer, crashes
        self._work: dict[tuple, _Work] = {}  # by (query, version), the oldest first
        self._kept: OrderedDict[tuple, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._arrived = {kind: asyncio.Event() for kind in LANES}
        self._rooms = {kind: asyncio.Lock() for kind in LANES}  # held while a lane computes
        self._counts = {"asked": 0, "computed": 0, "batches": 0, "abandoned": 0}
        self._began = time.monotonic()

    async def serve(self, address: str) -> None:
        """Listen until cancelled; the socket appears at `address` when it accepts."""
        temporary = address + ".new"
        Path(temporary).unlink(missing_ok=True)
        old = os.umask(0o177)
        server = await asyncio.start_unix_server(self._connected, temporary, limit=LINE_LIMIT, backlog=4 * QUEUE_LIMIT)
        os.umask(old)
        os.replace(temporary, address)
        async with server:
            await self.compute()

    async def compute(self) -> None:
        """Compute what is asked by way of `reply`, until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            for kind in LANES:
                lanes.create_task(self._lane(kind))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):  # an asker that is gone need not be told
            try:
                line = await reader.readline()
            except ValueError as error:  # longer than LINE_LIMIT
                writer.write(_unreadable(error))
            else:
                writer.write(await self.reply(line, reader, writer))
            await writer.drain()

    async def reply(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """The answer to a query's line; it is given up where the asker, at the other end of the streams, hangs up."""
        try:
            message = json.loads(line)
            query, limit_s = live_query(message["query"]), float(message["time_limit_s"])
            if not 0 < limit_s <= LONGEST_S:
                raise ValueError(f"time_limit_s is {limit_s:g}, expected up to {LONGEST_S:g}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return _unreadable(error)
        if query.kind == "status":
            return _encoded(LiveAnswer(status=self._status()))
        self._counts["asked"] += 1
        try:
            key = (query, self._answerer.version(query))
        except ValueError as error:
            return _encoded(LiveAnswer(error=str(error), cause="query"))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self._crashes.count(key) >= MAX_CRASHES:
            refusal = f"the engine died of this query {MAX_CRASHES} times; it is not computed again before SeedScope is restarted"
            return _encoded(LiveAnswer(error=refusal, cause="deadly"))
        if self._asking() >= QUEUE_LIMIT:
            return _encoded(LiveAnswer(error=f"busy: {QUEUE_LIMIT} queries wait; try again in a moment", cause="busy"))
        if key not in self._work:
            self._work[key] = _Work(query, asyncio.get_running_loop().create_future())
            self._arrived[query.kind].set()
        return await self._wait(self._work[key], reader, writer, limit_s)

    async def _wait(
        self, work: _Work, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit_s: float
    ) -> bytes:
        """Until the work is done, the time is up or the asker hangs up; work that nobody waits for is not begun, or stopped."""
        work.askers.add(writer)
        gone = asyncio.create_task(_hung_up(reader))
        ends: set[asyncio.Future[Any]] = {work.done, gone}
        try:
            await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.askers.discard(writer)
        if work.done.done():
            return work.done.result()
        work.was_late = work.was_late or not gone.done()
        return _encoded(LiveAnswer(error=f"no answer within {limit_s:g} s; it may be ready later", cause="late"))

    async def _lane(self, kind: str) -> None:
        """Compute what waits of one kind, batch after batch, in a thread of its own."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, kind) as thread:
            while True:
                self._arrived[kind].clear()
                while batch := self._next_batch(kind):
                    suspect = any(self._crashes.count(key) for key in batch)
                    async with self._room(LANES if suspect else (kind,)):
                        for work in batch.values():
                            work.runs = True
                        try:
                            with self._crashes.computing(batch):
                                answers = await loop.run_in_executor(thread, self._compute, list(batch.values()))
                        except AbandonedError:
                            self._counts["abandoned"] += 1
                            for work in batch.values():  # forgotten, or begun again for who asked in the last moment
                                work.runs = False
                            continue
                    self._counts["computed"] += len(batch)
                    self._counts["batches"] += 1
                    for (key, work), answer in zip(batch.items(), answers, strict=True):
                        del self._work[key]
                        work.done.set_result(_encoded(answer))
                        if answer.error is None:
                            self._keep(key, work.done.result())
                await self._arrived[kind].wait()

    @asynccontextmanager
    async def _room(self, lanes: tuple[str, ...]) -> AsyncIterator[None]:
        """Hold some lanes, in the one order that cannot deadlock, first come first served."""
        async with AsyncExitStack() as stack:
            for kind in lanes:
                await stack.enter_async_context(self._rooms[kind])
            yield

    def _next_batch(self, kind: str) -> dict[tuple, _Work]:
        """The oldest waiting query and those that can share its product; forgets those that nobody waits for any more."""
        waiting = {key: work for key, work in self._work.items() if work.query.kind == kind and not work.runs}
        for key in [key for key, work in waiting.items() if not work.askers]:
            del waiting[key], self._work[key]
        suspects = {key for key in waiting if self._crashes.count(key)}
        batch: dict[tuple, _Work] = {}
        for key, work in waiting.items():
            first = next(iter(batch), key)
            together = not suspects & {first, key} and waiting[first].query.shared_key() == work.query.shared_key()
            if key == first or (together and len(batch) < BATCH_LIMIT):
                batch[key] = work
        return batch

    def _compute(self, works: list[_Work]) -> list[LiveAnswer]:
        """Their answers; raises AbandonedError once all who asked have hung up."""
        try:
            with abandoned_when(lambda: not any(work.askers or work.was_late for work in works)):
                return self._answerer.answer([work.query for work in works])
        except AbandonedError:
            raise
        except Exception:
            traceback.print_exc()
        if len(works) == 1:
            return [LiveAnswer(error=FAULT, cause="fault")]
        return [self._compute_alone(work) for work in works]  # one bad query does not spoil the others

    def _compute_alone(self, work: _Work) -> LiveAnswer:
        """The answer to one of several; nobody reads that of an abandoned one."""
        try:
            return self._compute([work])[0]
        except AbandonedError:
            return LiveAnswer(error=FAULT, cause="fault")

    def _keep(self, key: tuple, answer: bytes) -> None:
        self._kept[key] = answer
        self._kept_bytes += len(answer)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def _asking(self) -> int:
        return sum(len(work.askers) for work in self._work.values())

    def _status(self) -> dict[str, Any]:
        running = sum(work.runs for work in self._work.values())
        return {
            "pid": os.getpid(), "up_s": round(time.monotonic() - self._began, 1), "running": running,
            "waiting": len(self._work) - running, "askers": self._asking(), **self._counts, **self._answerer.status(),
        }  # fmt: skip


async def _hung_up(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        await reader.read(1)


def _unreadable(error: Exception) -> bytes:
    return _encoded(LiveAnswer(error=f"the query cannot be read: {error!r:.200}", cause="query"))


def _encoded(answer: LiveAnswer) -> bytes:
    named = [{"name": name, "dtype": a.dtype.str, "shape": a.shape} for name, a in answer.arrays.items()]
    header = {name: value for name, value in vars(answer).items() if name != "arrays"} | {"arrays": named}
    return b"".join([json.dumps(header).encode() + b"\n", *(a.tobytes() for a in answer.arrays.values())])


def _end_with_parent(address: str, crashes: CrashRecord) -> None:
    wait_for_end_of_parent()
    Path(address).unlink(missing_ok=True)
    crashes.forget()
    os._exit(0)


def main() -> None:
    """Serve until the parent goes away."""
    root, address, *device = sys.argv[1:]
    lock = os.open(Path(address).with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    faulthandler.enable()
    crashes = CrashRecord(Path(address).with_suffix(".deaths"))
    threading.Thread(target=_end_with_parent, args=(address, crashes), daemon=True).start()
    # Loads torch: after the lock, so that a second engine is gone at once.
    from seedscope.engine.live.residents import Residents

    asyncio.run(Engine(Residents(Path(root), *device), crashes).serve(address))
