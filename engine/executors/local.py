"""Executors of this machine: this process, and processes beside it."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from time import sleep
from typing import Any

from seedscope.engine.executors.unit import Call, LostUnitError, called

PARENT_S = 1.0  # between two looks whether the parent is there


class ThisProcess:
    """Calls run here, at once, with the threads that this process has."""

    is_here, retries = True, 0
    device: str | None = None

    def __init__(self, threads: int = 1, members: int | None = None) -> None:
        self.threads, self.members = threads, members

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        return [self.submit(function, *arguments) for function, arguments in calls]

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, *, cancel: bool = False) -> None:
        """Nothing to end."""


HERE = ThisProcess()  # what is not told of an executor


class LocalProcesses:
    """Calls run in `workers` processes of this machine, begun at the first one, with `threads` threads each."""

    is_here = False
    device: str | None = None

    def __init__(self, workers: int, threads: int, *, members: int | None = None, retries: int = 2) -> None:
        self.workers, self.threads, self.members, self.retries = workers, threads, members, retries
        self._pool: ProcessPoolExecutor | None = None

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        return [self.submit(function, *arguments) for function, arguments in calls]

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        try:
            inner = self._open().submit(called, self.threads, function, arguments)
        except BrokenProcessPool:  # a worker was killed; the others went with it
            self.shutdown()
            inner = self._open().submit(called, self.threads, function, arguments)
        outer: Future[Any] = Future()
        inner.add_done_callback(lambda ended: _hand_on(ended, outer))
        return outer

    def shutdown(self, *, cancel: bool = False) -> None:
        if (pool := self._pool) is None:
            return
        self._pool = None
        workers = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=not cancel, cancel_futures=cancel)
        if cancel:  # a unit may take hours, and leaves nothing half-written
            for worker in workers:
                worker.terminate()

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _begin, (os.getpid(),))
        return self._pool


def _hand_on(ended: Future[Any], to: Future[Any]) -> None:
    """The outcome of one future as that of another."""
    if not to.set_running_or_notify_cancel():
        return
    if ended.cancelled():
        to.set_exception(LostUnitError("it was cancelled"))
    elif (error := ended.exception()) is None:
        to.set_result(ended.result())
    elif isinstance(error, BrokenProcessPool):
        to.set_exception(LostUnitError("a worker process was killed, for want of memory or by somebody"))
    else:
        to.set_exception(error)


def _begin(parent: int) -> None:
    """Prepare a worker process: Ctrl-C is left to its parent, and it ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        sleep(PARENT_S)
    os._exit(1)
