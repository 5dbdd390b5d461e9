"""A live engine on another machine (`seedscope engine`), asked by its address; it stands where an EngineProcess stands.

Nothing is started from here: an engine that is away is asked again by whoever waits, until it is back.
"""

import asyncio
import ssl
from functools import partial
from pathlib import Path
from typing import NoReturn

from anyio.to_thread import run_sync

from seedscope.app.live.process import LONGEST_HEADER, EngineBrokenError, EngineStartingError
from seedscope.engine.contract.engine_address import (
    LONGEST_HEAD,
    PATH,
    SPEAKS_HEADER,
    STORE_HEADER,
    EngineUrl,
    speaks,
)
from seedscope.engine.contract.published import published
from seedscope.engine.contract.queries import LiveQuery

CONNECT_S = 3.0  # that another machine may take to accept a connection
LONGEST_REFUSAL = 2000  # bytes of one that are read


class EngineAwayError(EngineStartingError):
    """The engine of another machine does not answer; ask again in a second."""

    def __init__(self, url: EngineUrl) -> None:
        super().__init__(True, f"the engine at {url} is away; it is asked again until it is back")


class RemoteEngine:
    """The engine at an address, over the same published studies as the root here."""

    n_started = 0  # processes, from here

    def __init__(self, root: Path, url: EngineUrl, token: str | None) -> None:
        self._root, self._url, self._token = root, url, token
        self._closed = False

    def make_folder(self) -> None:
        """Nothing is needed here."""

    def note_answered(self) -> None:
        """Nothing is counted here."""

    def start(self) -> NoReturn:
        """Raises EngineAwayError: whoever runs the engine starts it again."""
        if self._closed:
            raise EngineBrokenError("the engine was closed")
        raise EngineAwayError(self._url)

    def close(self) -> None:
        """Ask no more; the engine goes on for others."""
        self._closed = True

    async def exchange(self, query: LiveQuery, line: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a query's line; the answer is to be read from the stream.

        Raises OSError or EOFError where no engine is there, EngineBrokenError with its words where it refuses to be asked.
        """
        if self._closed:
            raise ConnectionError("closed")
        head = await self._head(query, len(line))
        tls = ssl.create_default_context() if self._url.is_tls else None
        connecting = asyncio.open_connection(self._url.host, self._url.port, limit=LONGEST_HEADER, ssl=tls)
        try:
            reader, writer = await asyncio.wait_for(connecting, CONNECT_S)
        except TimeoutError:
            raise ConnectionError(f"no connection within {CONNECT_S:g} s") from None
        except ssl.SSLError as error:
            raise EngineBrokenError(f"the engine at {self._url} cannot be trusted: {error.reason or error}") from None
        try:
            writer.write(head + line)
            await writer.drain()
            await self._read_head(reader)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _head(self, query: LiveQuery, length: int) -> bytes:
        shown = f"[{self._url.host}]" if ":" in self._url.host else self._url.host
        fields = {
            "Host": f"{shown}:{self._url.port}",
            "Content-Length": str(length),
            "Content-Type": "application/json",
            "Connection": "close",
            SPEAKS_HEADER: speaks(),
        }
        if self._token:
            fields["Authorization"] = f"Bearer {self._token}"
        if query.study:
            store = await run_sync(partial(published, self._root / query.study), abandon_on_cancel=True)
            fields[STORE_HEADER] = store.name if store else ""
        lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _read_head(self, reader: asyncio.StreamReader) -> None:
        """Read the answer's head; raises EngineBrokenError for a refusal, ConnectionError for what a proxy says in its place."""
        first = await _whole_line(reader)
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise EngineBrokenError(f"what answers at {self._url} is no live engine of SeedScope")
        n_bytes, is_engine = len(first), False
        while line := await _whole_line(reader):
            n_bytes += len(line)
            is_engine = is_engine or line.lower().startswith(f"{SPEAKS_HEADER}:")
            if n_bytes > LONGEST_HEAD:
                raise EngineBrokenError(f"what answers at {self._url} is no live engine of SeedScope")
        status = int(words[1])
        if status == 200 and is_engine:
            return
        if is_engine and status not in (408, 503):
            says = (await reader.read(LONGEST_REFUSAL)).decode(errors="replace").strip()
            if status == 401:
                says = "the token is not its own; give the engine's with --engine-token-file"
            raise EngineBrokenError(f"the engine at {self._url} refuses: {says}")
        if is_engine or status in (502, 503, 504):  # a proxy in front says that the engine is away
            raise ConnectionError(f"status {status}")
        raise EngineBrokenError(f"what answers at {self._url} is no live engine of SeedScope (status {status})")


async def _whole_line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the engine hung up")
    return line.decode("latin-1").rstrip("\r\n")
