"""The live engine for other machines: what it answers over its Unix socket, over HTTP, to whoever has the token.

One request per connection, as engine.contract.engine_address says. Before a query is looked at, the Host header, the token, the
version and the study's published store have to be right: an asker that shows other results than the engine has is told so and
never answered.
"""

import asyncio
import faulthandler
import hmac
import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from seedscope.engine.contract.engine_address import (
    LONGEST_HEAD,
    LOOPBACK_NAMES,
    PATH,
    SPEAKS_HEADER,
    STORE_HEADER,
    host_name,
    is_served,
    speaks,
)
from seedscope.engine.contract.published import published
from seedscope.engine.live.crashes import CrashRecord
from seedscope.engine.live.server import LINE_LIMIT, Engine

REQUEST_S = 20.0  # in which a whole request has to come
ANSWER_S = 120.0  # in which a whole answer has to be taken
LEFT_S = 2.0  # in which whoever was refused has to take that
MOST_CONNECTIONS = 512  # at once; the next is told to come again


@dataclass(frozen=True)
class RemoteSettings:
    """Who may ask."""

    token: str | None  # None: anybody who reaches it, which is for loopback alone
    host: str  # that it is bound to
    allowed_hosts: tuple[str, ...] = ()
    beyond_loopback: bool = False


class _Request(NamedTuple):
    """The head of a request."""

    method: str
    path: str
    headers: Mapping[str, str]  # by names in lower case


class _RefusedError(Exception):
    """A request that is not answered; the text says why."""

    def __init__(self, status: HTTPStatus, says: str) -> None:
        super().__init__(says)
        self.status = status


class RemoteDoor:
    """Lets requests of other machines in to an Engine over the studies of a root."""

    def __init__(self, engine: Engine, root: Path, settings: RemoteSettings) -> None:
        self._engine, self._root, self._settings = engine, root, settings
        self._names = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.allowed_hosts)}
        self._n_open = 0

    async def serve(self, listener: socket.socket) -> None:
        """Answer on a bound socket until cancelled."""
        server = await asyncio.start_server(
            self._connected, sock=listener, limit=LONGEST_HEAD, backlog=MOST_CONNECTIONS
        )
        async with server, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._engine.compute())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._n_open += 1
        try:
            with closing(writer), suppress(ConnectionError, TimeoutError):
                status, body = await self._answer(reader, writer)
                kind = "application/octet-stream" if status is HTTPStatus.OK else "text/plain; charset=utf-8"
                head = (
                    f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    f"{SPEAKS_HEADER}: {speaks()}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                async with asyncio.timeout(ANSWER_S):
                    await writer.drain()
                if status is not HTTPStatus.OK:  # closed with bytes unread, the system would throw the refusal away
                    writer.write_eof()
                    async with asyncio.timeout(LEFT_S):
                        while await reader.read(2**16):
                            pass
        finally:
            self._n_open -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[HTTPStatus, bytes]:
        try:
            if self._n_open > MOST_CONNECTIONS:
                raise _RefusedError(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CONNECTIONS} connections are open; try again"
                )
            async with asyncio.timeout(REQUEST_S):
                request = await _head(reader)
                self._check(request)
                line = await _body(reader, request)
            self._check_store(line, request.headers.get(STORE_HEADER, ""))
        except _RefusedError as refused:
            return refused.status, f"{refused}\n".encode()
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT, f"expected a whole request within {REQUEST_S:g} s\n".encode()
        except asyncio.IncompleteReadError:
            return HTTPStatus.BAD_REQUEST, b"expected a whole HTTP request\n"
        except ValueError:  # a line that is longer than a whole head may be
            return (
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"a head of up to {LONGEST_HEAD} bytes is read\n".encode(),
            )
        return HTTPStatus.OK, await self._engine.reply(line, reader, writer)

    def _check(self, request: _Request) -> None:
        """Raise _RefusedError for whoever may not ask, before anything of the query is read."""
        host, settings = request.headers.get("host", ""), self._settings
        if not is_served(host_name(host), self._names, beyond_loopback=settings.beyond_loopback):
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                f"Host {host!r:.200} is not served here, expected one of {', '.join(sorted(self._names))}; start the engine with "
                "--allow-host NAME to add one",
            )
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if settings.token is not None and not hmac.compare_digest(bearer.encode(), settings.token.encode()):
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "the token is not this engine's")
        if (request.method, request.path) != ("POST", PATH):
            raise _RefusedError(HTTPStatus.NOT_FOUND, f"expected POST {PATH}: this is a live engine, no page")
        if (theirs := request.headers.get(SPEAKS_HEADER, "nothing")) != speaks():
            raise _RefusedError(
                HTTPStatus.CONFLICT,
                f"the engine is of SeedScope {speaks()}, this server of {theirs:.80}: install the same version on both",
            )

    def _check_store(self, line: bytes, theirs: str) -> None:
        """Raise _RefusedError where the asker shows another store of the study than lies here."""
        try:
            study = json.loads(line)["query"].get("study", "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # the engine says what is wrong with it
        if not study or not isinstance(study, str) or "/" in study or study.startswith("."):
            return  # a question about the engine, or a name that it refuses
        store = published(self._root / study)
        ours = store.name if store else "none"
        if ours != theirs:
            raise _RefusedError(
                HTTPStatus.CONFLICT,
                f"of study {study} the engine has the store {ours}, this server shows {theirs or 'none'}: expected the same "
                "published studies under both roots",
            )


async def _head(reader: asyncio.StreamReader) -> _Request:
    """The request line and the headers; raises _RefusedError for what is no HTTP/1.1."""
    lines: list[str] = []
    n_bytes = 0
    while True:
        raw = await reader.readline()
        n_bytes += len(raw)
        if n_bytes > LONGEST_HEAD:
            raise _RefusedError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head of up to {LONGEST_HEAD} bytes is read"
            )
        if not raw.endswith(b"\n"):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected a whole HTTP request")
        if not (line := raw.decode("latin-1").rstrip("\r\n")):
            break
        lines.append(line)
    words = lines[0].split(" ") if lines else []
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected every header once, with a colon")
        headers[name.lower()] = value.strip()
    return _Request(words[0], words[1], headers)


async def _body(reader: asyncio.StreamReader, request: _Request) -> bytes:
    """The query's line; raises _RefusedError for one of no, or of too great, length."""
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not length.isascii() or not length.isdecimal():
        raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
    if int(length) > LINE_LIMIT:
        raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a query of up to {LINE_LIMIT:,} bytes is read")
    return await reader.readexactly(int(length))


def serve_remotely(
    root: Path, listener: socket.socket, settings: RemoteSettings, device: str, crashes: Path
) -> NoReturn:
    """Answer on a bound socket until SIGTERM or SIGINT; `crashes` keeps which queries crashed a former process.

    Returns never: what is being computed then is left at once.
    """
    record = CrashRecord(crashes)

    def leave(number: int, frame: FrameType | None) -> None:
        record.forget()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    faulthandler.enable()
    from seedscope.engine.live.residents import Residents  # loads torch

    door = RemoteDoor(Engine(Residents(root, device), record), root, settings)
    asyncio.run(door.serve(listener))
    raise AssertionError("it serves until the process ends")
