"""Connections of a web process: how long a request may take to arrive and an answer to leave, and how many there may be.

Whoever sends half a request, or reads no answer, holds a descriptor. There are never more connections than descriptors: a new one
then takes the place of the one that has waited longest for its request, and where all are being answered it is refused.
"""

import asyncio
import resource
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # from the first byte, or the connection, to the end of a request's header
BODY_S = 20.0  # of its body: forms of a few hundred bytes
LINGER_S, LINGERING = 1.0, 64  # so long, and so many at once, are read on that were refused
STALLED_S = 60.0  # in which not a byte of an answer is read
MOST = 4096
KEPT_DESCRIPTORS = 256  # for stores, indexes, the live engine, jobs
WANTED_DESCRIPTORS = MOST + KEPT_DESCRIPTORS

_REFUSAL = (
    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n"
    "{more}\r\n{says}"
)
BUSY = _REFUSAL.format(
    status="503 Service Unavailable", length=26, more="retry-after: 1\r\n", says="Too many open connections\n"
)
LATE = _REFUSAL.format(status="408 Request Timeout", length=28, more="", says="The request did not arrive.\n")


def most_connections() -> int:
    """So many that descriptors are left for everything else; raises this process's limit as far as it is let."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MOST
    return min(MOST, max(soft - KEPT_DESCRIPTORS, soft // 2))


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with those bounds."""

    most: ClassVar[int] = MOST  # connections of this process
    _waiting: ClassVar[dict["BoundedProtocol", None]] = {}  # for a whole request, the longest first

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None  # h11's state of the client that the timer is of
        self._stalled: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most and not self._make_room():
            self._refuse()
        else:
            self._see()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._timer, self._stalled)
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused and not self.transport.is_closing():
            super().data_received(data)
            self._see()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():  # idle: uvicorn closes it after a while, and a newcomer may have its place
            self._waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._stalled)
        self._stalled = None

    def _see(self) -> None:
        """Set the timer for what is waited for now."""
        state = self.conn.their_state
        limit_s = {h11.IDLE: HEAD_S, h11.SEND_BODY: BODY_S}.get(state)
        if limit_s is None:
            self._waiting.pop(self, None)
        if state is self._timed:
            return
        self._stop(self._timer)
        self._timer, self._timed = None, state
        if limit_s is not None:
            self._waiting.setdefault(self)
            self._timer = self.loop.call_later(limit_s, self._end_late)

    def _end_late(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self.transport.write(LATE.encode())
        self.transport.close()

    def _refuse(self) -> None:
        """Say that there is no room. A connection that is closed with its request unread is reset, and the answer is lost."""
        self._is_refused = True
        if len(self.connections) > self.most + LINGERING:
            self.transport.abort()
            return
        self.transport.write(BUSY.encode())
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its request; False where none does."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.transport.abort()
        return True

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
