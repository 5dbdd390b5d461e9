"""A web process: the application with one thread of linear algebra and bounded memory, and the server that runs it."""

import ctypes
import gc
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from seedscope.app.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from seedscope.app.jobs.queue import Jobs

# Read by the libraries when they are loaded: OpenMP, OpenBLAS, MKL, Apple's Accelerate.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# Of glibc's malloc: arrays above this many bytes go back to the system when they are freed, and few arenas keep the others.
_MMAP_THRESHOLD, _LARGE, _TRIM_THRESHOLD, _KEPT, _ARENA_MAX, _ARENAS = -3, 8 << 20, -1, 64 << 20, -8, 2
WAITING_CONNECTIONS = 512
SWITCH_S = 0.001  # that a thread computes on while another, such as the event loop's, has something to do; Python's own is 0.005
GRACE_S = 2  # that open requests have to end in when the server stops; then jobs and the live engine have two
END_S = 4.5  # and the process


def create_small_app(settings: Settings, jobs: "Jobs | None" = None) -> "FastAPI":
    """The application for a process that serves many people at once. To be called once, before a store is opened."""
    with _one_thread():
        from seedscope.app.logs import configure_logs
        from seedscope.app.main import create_app
    from seedscope.engine.contract.duckdb_settings import keep_small

    configure_logs(settings.log_format)
    keep_small(settings.root)
    _return_memory()
    app = create_app(settings, jobs)
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # what was loaded stays: no later collection stops all requests to look through it
    return app


def web_server(app: "FastAPI", proxies: tuple[str, ...] = (), *, ends_process: bool = True) -> "uvicorn.Server":
    """The server, to be run on a bound socket that other processes may listen on too.

    Of `proxies` it takes who asked, and whether by https, from their headers; everybody else's headers say nothing. With
    `ends_process` the process ends soon after it, whatever hangs.
    """
    import uvicorn

    from seedscope.app.cli.connections import BoundedProtocol, most_connections

    class FairServer(uvicorn.Server):
        """Accepts one connection at a time: asyncio takes all that wait at once, and other processes would get none."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if ends_process:
                end_for_sure(END_S)
            await super().shutdown(sockets)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listener in sockets or ():
                listener.listen(WAITING_CONNECTIONS)  # in the system; asyncio takes both numbers from `backlog`

    BoundedProtocol.most = most_connections()
    return FairServer(
        uvicorn.Config(
            app, http=BoundedProtocol, lifespan="on", backlog=1, timeout_graceful_shutdown=GRACE_S,
            proxy_headers=bool(proxies), forwarded_allow_ips=[*proxies],
            log_config=None, log_level="warning", access_log=False,
        )
    )  # fmt: skip


def end_for_sure(within_s: float) -> None:
    """End this process within so many seconds, whatever hangs: a thread that a disk holds cannot be stopped, only left."""
    timer = threading.Timer(within_s, os._exit, [0])
    timer.daemon = True
    timer.start()


def _return_memory() -> None:
    """Make malloc give memory back; its own thresholds grow with the largest array that was ever freed. Of glibc alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _KEPT), (_ARENA_MAX, _ARENAS)):
            mallopt(parameter, value)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries that are loaded within compute in one thread; jobs and the live engine, started later, do not inherit it.

    Requests are answered side by side: a page that computes in all threads at once waits for every other one.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
