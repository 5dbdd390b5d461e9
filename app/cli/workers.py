"""Several web processes on one listening socket: started, started again when one dies, and ended together.

This process binds the port, runs the jobs and answers no request. Each worker has one end of a socket pair: over it come the
settings, over it the worker asks for jobs, and its end tells the worker that this process is gone, however that happened.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from seedscope.app.cli.options import Stop
from seedscope.app.settings import Settings
from seedscope.engine.contract.cores import usable_cores
from seedscope.engine.contract.environment import INDEX_FOLDER, METRICS_FOLDER

MOST_BY_DEFAULT = 4  # each takes a few hundred MB
STOP_S = 4.0  # workers have to end when asked to
POLL_S = 0.1
SOON_S = 10.0  # a worker that ends within this did not start well
MAX_FAILURES = 3  # in a row


def default_workers() -> int:
    """As many as there are cores for this process, at most MOST_BY_DEFAULT."""
    return min(usable_cores(), MOST_BY_DEFAULT)


@dataclass
class _Worker:
    """One web process."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    begun: float  # monotonic


class Workers:
    """The web processes of `seedscope serve`."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        from seedscope.app.jobs.queue import Jobs

        self._settings, self._listener = settings, listener
        self.jobs = Jobs(settings.root, settings.device)
        self._temporary = Path(tempfile.mkdtemp(prefix="seedscope-"))  # what workers share
        for name in ("metrics", "indexes"):
            (self._temporary / name).mkdir()
        self._workers: list[_Worker] = []
        self._stopped = threading.Event()
        self._failures = 0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; raises Stop where workers do not start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        try:
            self._workers = [self._spawn() for _ in range(self._settings.workers)]
            self.jobs.resume()
            while not self._stopped.wait(POLL_S):
                self._replace_ended()
        finally:
            closing = threading.Thread(target=self.jobs.close, name="end of the jobs", daemon=True)
            closing.start()
            self._end()
            closing.join(STOP_S)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped.set()

    def _spawn(self) -> _Worker:
        from seedscope.app.jobs.remote import answer_jobs

        ours, theirs = socket.socketpair()
        fds = (self._listener.fileno(), theirs.fileno())
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "seedscope.app.cli.worker", *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=os.environ
            | {METRICS_FOLDER: str(self._temporary / "metrics"), INDEX_FOLDER: str(self._temporary / "indexes")},
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends them in order
        )
        theirs.close()
        ours.sendall(write_settings(self._settings))
        threading.Thread(target=answer_jobs, args=(ours, self.jobs), name="jobs of a worker", daemon=True).start()
        return _Worker(process, ours, time.monotonic())

    def _replace_ended(self) -> None:
        for i, worker in enumerate(self._workers):
            code = worker.process.poll()
            if code is None:
                continue
            _close(worker.channel)
            lasted = time.monotonic() - worker.begun
            self._failures = self._failures + 1 if lasted < SOON_S else 0
            if self._failures >= MAX_FAILURES:
                raise Stop(f"web processes end as soon as they start (the last with exit {code}); see above")
            print(f"a web process ended (exit {code}) and is started again", file=sys.stderr, flush=True)
            self._workers[i] = self._spawn()

    def _end(self) -> None:
        """Ask all to end, and kill those that do not."""
        until = time.monotonic() + STOP_S
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            _close(worker.channel)


def write_settings(settings: Settings) -> bytes:
    """Settings as the line that a worker reads first."""
    return json.dumps(asdict(settings) | {"root": str(settings.root)}).encode() + b"\n"


def read_settings(channel: socket.socket) -> Settings:
    """What `write_settings` wrote; raises EOFError where the other end is gone."""
    line = b""
    while not line.endswith(b"\n"):
        received = channel.recv(4096)
        if not received:
            raise EOFError
        line += received
    fields = json.loads(line)
    return replace(
        Settings(**fields),
        root=Path(fields["root"]),
        allowed_hosts=tuple(fields["allowed_hosts"]),
        proxies=tuple(fields["proxies"]),
        allowed_origins=tuple(fields["allowed_origins"]),
    )


def _close(channel: socket.socket) -> None:
    with suppress(OSError):  # the thread that reads it is woken
        channel.shutdown(socket.SHUT_RDWR)
    channel.close()
