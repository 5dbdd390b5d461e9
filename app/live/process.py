"""The process of the live engine: started on first need, started again when it dies, one per root. All calls may block."""

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from seedscope.engine.contract import sockets
from seedscope.engine.contract.queries import LiveQuery

MAX_FAILURES = 3  # to start, one after the other
RETRY_S = 60.0  # after that many
START_LIMIT_S = 120.0  # torch from a cold disk takes half a minute
STOP_S = 2.0  # an engine has to end when asked to
CLOSE_S = 1.0  # and when this process ends
LONGEST_LOG = 2**20
NICENESS = 3  # pages come first, jobs last
LONGEST_HEADER = 2**24  # bytes of JSON in front of an answer's arrays


class EngineStartingError(Exception):
    """The engine process is not up yet; ask again in a second. `restarting`: it was up before."""

    def __init__(self, restarting: bool, says: str | None = None) -> None:
        super().__init__(says or ("the engine is restarting" if restarting else "the engine is starting"))
        self.restarting = restarting


class EngineBrokenError(Exception):
    """The engine cannot be started; the text says why and names its log file."""


class EngineProcess:
    """One process per root, however many web workers; safe to use from several threads. Starts nothing yet."""

    def __init__(self, root: Path, device: str = "auto") -> None:
        self._root, self._device = root.resolve(), device
        self.address = sockets.address(self._root)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._failed = 0.0
        self._failures = 0
        self._accepted = False  # by the process that was started here last
        self._was_up = self._closed = False
        self.n_started = 0  # processes, from here

    @property
    def log(self) -> Path:
        """What the engine said on its standard error."""
        return self.address.with_suffix(".log")

    def make_folder(self) -> None:
        """Make the folder of the socket; raises EngineBrokenError where that fails or others could open it."""
        try:
            sockets.make_folder(self.address.parent)
        except OSError as error:
            raise EngineBrokenError(f"the engine needs the folder {self.address.parent}: {error.strerror}") from None

    async def exchange(self, query: LiveQuery, line: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a query's line; the answer is to be read from the stream. Raises OSError where no engine is there."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.connect(str(self.address))  # at once or not at all; BlockingIOError: too many wait there
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST_HEADER)
        except BaseException:
            connection.close()
            raise
        self._accepted = self._was_up = True
        try:
            writer.write(line)
            await writer.drain()
        except BaseException:
            writer.close()
            raise
        return reader, writer

    def note_answered(self) -> None:
        """It answered, so earlier failures to start count no more."""
        self._failures = 0

    def start(self) -> NoReturn:
        """Start the process unless one is there or on its way. Raises EngineStartingError, or EngineBrokenError."""
        with self._lock:
            if self._closed:
                raise EngineBrokenError("the engine was closed")
            if self._process is not None:
                code = self._process.poll()
                well = (self._accepted and self.address.exists()) or time.monotonic() - self._began < START_LIMIT_S
                if code is None and well:
                    raise EngineStartingError(self._was_up)
                self._end(self._process)
                if code != 0 and not self._accepted:  # 0: another worker's engine was there first
                    self._failures += 1
                    self._failed = time.monotonic()
            if self._failures >= MAX_FAILURES and time.monotonic() - self._failed < RETRY_S:
                raise EngineBrokenError(f"the engine failed to start {self._failures} times; its log is {self.log}")
            if not _held(self.address.with_suffix(".lock")):
                self._spawn()
        raise EngineStartingError(self._was_up)

    def close(self) -> None:
        """End the process if it was started here, within a moment; later starts raise EngineBrokenError."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._end(self._process, CLOSE_S)

    def _command(self) -> list[str]:
        arguments = [str(self._root), str(self.address), self._device]
        return [sys.executable, "-W", "ignore", "-m", "seedscope.engine.live", *arguments]

    def _spawn(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LONGEST_LOG:
            self.log.unlink()
        with open(os.open(self.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
            )
        with suppress(OSError):  # before it has other threads, which take it over
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        self._began, self._accepted = time.monotonic(), False
        self.n_started += 1

    def _end(self, process: subprocess.Popen[bytes], within_s: float | None = None) -> None:
        """Close the pipe, on which the process exits; kill it if it does not."""
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(STOP_S if within_s is None else within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None


def _held(lock: Path) -> bool:
    """Whether an engine, another worker's, holds the lock."""
    with open(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
