"""Client of the live engine: starts it on first need, restarts it when it dies, asks identical questions once."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from seedscope.engine.contract import sockets
from seedscope.engine.contract.queries import TIME_LIMIT_S, LiveAnswer, LiveQuery, as_fields

MAX_FAILURES = 3  # to start, one after the other
RETRY_S = 60.0  # after that many
START_LIMIT_S = 120.0  # torch from a cold disk takes half a minute
STOP_S = 2.0  # an engine has to end when asked to
LONGEST_LOG = 2**20


class EngineStartingError(Exception):
    """The engine process is not up yet; ask again in a second. `restarting`: it was up before."""

    def __init__(self, restarting: bool) -> None:
        super().__init__("the engine is restarting" if restarting else "the engine is starting")
        self.restarting = restarting


class EngineBrokenError(Exception):
    """The engine cannot be started; the text says why and names its log file."""


class EngineRefusedError(Exception):
    """The engine's answer is an error; `cause` is one of engine.contract.queries.CAUSES."""

    def __init__(self, cause: str, error: str) -> None:
        super().__init__(error)
        self.cause = cause


class LiveEngine:
    """One engine process per root, however many web workers; safe to use from several threads. Starts nothing yet."""

    def __init__(self, root: Path, device: str = "auto") -> None:
        self._root, self._device = root.resolve(), device
        self._address = sockets.address(self._root)
        self._lock = threading.Lock()
        self._in_flight: dict[tuple[LiveQuery, float], Future[LiveAnswer]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._failed = 0.0
        self._failures = 0
        self._accepted = False  # by the process that this client started last
        self._was_up = self._closed = False

    @property
    def log(self) -> Path:
        """What the engine said on its standard error."""
        return self._address.with_suffix(".log")

    def answer(self, query: LiveQuery, *, time_limit_s: float = TIME_LIMIT_S) -> LiveAnswer:
        """As `ask`, but an answer that is an error raises EngineRefusedError."""
        answer = self.ask(query, time_limit_s=time_limit_s)
        if answer.error is not None:
            raise EngineRefusedError(answer.cause, answer.error)
        return answer

    def ask(self, query: LiveQuery, *, time_limit_s: float = TIME_LIMIT_S) -> LiveAnswer:
        """Answer a query within the limit; identical queries in flight are asked once.

        Raises EngineStartingError at once while the process starts or restarts, EngineBrokenError where it cannot.
        """
        key = (query, time_limit_s)
        with self._lock:
            asked_before = self._in_flight.get(key)
            if asked_before is None:
                future = self._in_flight[key] = Future()
        if asked_before is not None:
            try:
                return asked_before.result(time_limit_s)
            except TimeoutError:
                return _late(time_limit_s)
        try:
            future.set_result(self._ask(query, time_limit_s))
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                del self._in_flight[key]
        return future.result()

    def close(self) -> None:
        """End the process if this client started it; later questions raise EngineBrokenError."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._end(self._process)

    def _ask(self, query: LiveQuery, time_limit_s: float) -> LiveAnswer:
        try:
            sockets.make_folder(self._address.parent)
        except OSError as error:
            raise EngineBrokenError(f"the engine needs the folder {self._address.parent}: {error.strerror}") from None
        request = {"query": as_fields(query), "time_limit_s": time_limit_s}
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.settimeout(time_limit_s)
                connection.connect(str(self._address))
                self._accepted = self._was_up = True
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as answer:
                    answered = _decoded(json.loads(_line(answer)), answer)
            except TimeoutError:
                return _late(time_limit_s)
            except BlockingIOError:
                return LiveAnswer(error="busy: too many queries wait; try again in a moment", cause="busy")
            except OSError:
                self._start()
        with self._lock:
            self._failures = 0
        return answered

    def _start(self) -> NoReturn:
        """Start the process unless one is there or on its way. Raises EngineStartingError, or EngineBrokenError."""
        with self._lock:
            if self._closed:
                raise EngineBrokenError("the engine was closed")
            if self._process is not None:
                code = self._process.poll()
                well = (self._accepted and self._address.exists()) or time.monotonic() - self._began < START_LIMIT_S
                if code is None and well:
                    raise EngineStartingError(self._was_up)
                self._end(self._process)
                if code != 0 and not self._accepted:  # 0: another worker's engine was there first
                    self._failures += 1
                    self._failed = time.monotonic()
            if self._failures >= MAX_FAILURES and time.monotonic() - self._failed < RETRY_S:
                raise EngineBrokenError(f"the engine failed to start {self._failures} times; its log is {self.log}")
            if not _held(self._address.with_suffix(".lock")):
                self._spawn()
        raise EngineStartingError(self._was_up)

    def _command(self) -> list[str]:
        arguments = [str(self._root), str(self._address), self._device]
        return [sys.executable, "-W", "ignore", "-m", "seedscope.engine.live", *arguments]

    def _spawn(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LONGEST_LOG:
            self.log.unlink()
        with open(os.open(self.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
            )
        self._began, self._accepted = time.monotonic(), False

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Close the pipe, on which the process exits; kill it if it does not."""
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(STOP_S)
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


def _line(answer: BinaryIO) -> bytes:
    line = answer.readline()
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the engine hung up")
    return line


def _decoded(header: dict[str, Any], answer: BinaryIO) -> LiveAnswer:
    """The answer whose header was read and whose arrays follow."""
    arrays = {}
    for named in header.pop("arrays"):
        dtype = np.dtype(named["dtype"])
        data = answer.read(int(np.prod(named["shape"], dtype=np.int64)) * dtype.itemsize)
        try:
            arrays[named["name"]] = np.frombuffer(data, dtype).reshape(named["shape"])
        except ValueError:
            raise ConnectionResetError("the engine hung up") from None
    return LiveAnswer(arrays, **header)


def _late(time_limit_s: float) -> LiveAnswer:
    return LiveAnswer(error=f"no answer within {time_limit_s:g} s; it may be ready later", cause="late")
