"""Long work that the dashboard starts: `seedscope` commands as processes of their own, in the order they were asked for.

What is known of a job lies under the root and outlives the server: `jobs/ID/job.json`, written whole by the one server that
runs the jobs of a root, `log`, what the process says, and what the process replaces while it works: `progress.json`, and a file
per ensemble that it trains. The log is locked for as long as any process of the job lives: the lock belongs to the open file,
which its processes inherit.
"""

import atexit
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from seedscope.app.jobs.kinds import KINDS, Job, JobRefusedError, checked, require_ready, words
from seedscope.app.jobs.records import JOB, Records
from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.holders import forget_holder, note_holder, who_holds
from seedscope.engine.contract.progress_files import PATTERN, PROGRESS_VARIABLE, Curves, StageProgress
from seedscope.engine.contract.published import PublishedStore, published

FOLDER = "jobs"  # no study can be called that
AT_ONCE = 1  # a job takes all cores
MAX_WAITING = 20
KEPT = 50
POLL_S = 0.1
RETRY_S = 1.0  # between attempts while the disk takes nothing
STOP_S = 5.0  # a job has to end when asked to
CLOSE_S = 2.0  # and all of them when the server stops
NICENESS = 5  # pages come first
LOG_LINES, LOG_BYTES = 200, 2**17  # that are shown, from the end
STOPPED = "the server stopped"


@dataclass
class _Run:
    """A process of this server's."""

    process: subprocess.Popen
    published: PublishedStore | None  # the study's store before
    kill_at: float | None = None  # monotonic, once it was asked to end


class Jobs:
    """The jobs of a root; safe to use from several threads. Touches nothing before `resume` or the first `start`.

    One server runs them at a time; others on the same root show them.
    """

    def __init__(self, root: Path, device: str = "auto") -> None:
        self._root, self._device = root.resolve(), device
        self._folder = self._root / FOLDER
        self._records = Records(self._folder)
        self._changed = threading.Condition()
        self._lock: IO[str] | None = None  # held by the server that runs the jobs
        self._thread: threading.Thread | None = None
        self._jobs: dict[str, Job] = {}
        self._runs: dict[str, _Run] = {}
        self._unwritten: set[str] = set()  # ids of jobs whose last change is not on the disk yet
        self._closed = False

    def resume(self) -> None:
        """Go on with what an earlier server left, if any: what still ran has failed, what was queued is run."""
        with self._changed, suppress(JobRefusedError):
            if self._folder.is_dir():
                self._take_over()

    def start(self, kind: str, study: str, given: dict[str, str]) -> Job:
        """Queue a job, or return the one that waits or runs for the same request.

        Raises JobRefusedError for a parameter the kind does not take, what this server cannot do, a full queue, a
        root that cannot be written to, and where another server runs the jobs. Whether there is such a
        study is the caller's to check.
        """
        parameters = checked(kind, study, given)
        require_ready(kind, parameters)
        with self._changed:
            self._take_over()
            if held := self.find({"kind": kind, "study": study} | parameters):
                return held
            n_waiting = sum(job.state == "queued" for job in self._jobs.values())
            if n_waiting >= MAX_WAITING:
                raise JobRefusedError("queue", f"{n_waiting} jobs waiting", "room; cancel one or wait", 429)
            job = Job(secrets.token_hex(8), kind, study, parameters, time.time())
            try:
                (self._folder / job.id).mkdir()
                self._write(job)  # what was not written is not queued
            except OSError as error:
                shutil.rmtree(self._folder / job.id, ignore_errors=True)
                raise JobRefusedError(
                    "jobs", error.strerror or str(error), "a root that can be written to", 503
                ) from None
            self._jobs[job.id] = job
            self._prune()
            self._changed.notify_all()
            return job

    def cancel(self, id: str) -> Job:
        """Ask a job to end: one that waits is not run, one that runs gets SIGTERM, after STOP_S SIGKILL.

        One that has ended stays as it is. Raises LookupError for an unknown id, JobRefusedError as `start` does.
        """
        with self._changed:
            if id not in self._known():
                raise LookupError(id)
            self._take_over()
            job = self._jobs[id]
            if job.state == "queued":
                self._keep(replace(job, state="cancelled", end=time.time()))
            elif job.state == "running" and not job.cancelling:
                self._keep(replace(job, cancelling=True))
                self._ask_to_end(self._runs[id])
            self._changed.notify_all()
            return self._jobs[id]

    def all(self) -> list[Job]:
        """Every job that is kept, newest first."""
        with self._changed:
            known = self._known()
        return sorted(map(self._seen, known.values()), key=lambda job: (job.asked, job.id), reverse=True)

    def get(self, id: str) -> Job | None:
        """A job by its id."""
        with self._changed:
            job = self._known().get(id)
        return job and self._seen(job)

    def find(self, fields: dict[str, str]) -> Job | None:
        """The job that waits or runs for this request."""
        with self._changed:
            job = next((job for job in self._known().values() if job.is_active and job.fields == fields), None)
        return job and self._seen(job)

    @property
    def n_active(self) -> int:
        """Jobs that wait or run."""
        with self._changed:
            return sum(job.is_active for job in self._known().values())

    def log(self, id: str) -> list[str]:
        """The last lines that a job's process said, without terminal codes."""
        try:
            with open(self._folder / id / "log", "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - LOG_BYTES, 0))
                said = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = [line.rsplit("\r", 1)[-1] for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).rstrip().split("\n")]
        return [line for line in lines[-LOG_LINES:] if line]

    def trained(self, id: str) -> list[Curves]:
        """How the trainings of a job went or go, in the order they began in; a training that was resumed counts once."""
        curves = []
        for path in (self._folder / id).glob(PATTERN):
            with suppress(OSError, ValidationError):
                curves.append(_CURVES.validate_json(path.read_bytes()))
        return sorted(curves, key=lambda each: each.begun)

    def close(self) -> None:
        """End what runs, as failed, within about CLOSE_S; what waits is run by the next server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_S
        for run in list(self._runs.values()):
            self._ask_to_end(run, CLOSE_S / 2)
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        while self._runs and time.monotonic() < until:
            self._collect()
            time.sleep(POLL_S / 5)
        for run in list(self._runs.values()):  # a process that the disk holds ends later, and the next server says so
            _signal(run.process.pid, signal.SIGKILL)
        if self._lock is not None:
            forget_holder(self._folder / ".lock")
            self._lock.close()
            self._lock = None
        atexit.unregister(self.close)

    # -- all below is called with the condition held, or after the thread has ended

    def _take_over(self) -> None:
        """Become the server that runs the jobs; raises JobRefusedError where that cannot be."""
        if self._closed:
            raise JobRefusedError("server", "one that stops", "a running one", 503)
        if self._lock is not None:
            return
        try:
            self._folder.mkdir(exist_ok=True)
            lock = open(self._folder / ".lock", "w")  # noqa: SIM115  held until `close`
        except OSError as error:
            raise JobRefusedError("jobs", error.strerror or str(error), "a root that can be written to", 503) from None
        if _is_locked(lock):
            lock.close()
            found = f"another server that runs those of this root: {who_holds(self._folder / '.lock')}"
            raise JobRefusedError("jobs", found, "its pages for this, or its end", 409)
        self._lock = lock
        note_holder(self._folder / ".lock")
        self._jobs = self._records.read()
        for job in [job for job in self._jobs.values() if job.state == "running"]:
            self._end_orphan(job)
            self._keep(replace(self._seen(job), state="failed", end=time.time(), reason=STOPPED))
        atexit.register(self.close)
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def _known(self) -> dict[str, Job]:
        return self._jobs if self._lock is not None else self._records.read()

    def _seen(self, job: Job) -> Job:
        """With how far it is."""
        if job.state == "running":
            with suppress(OSError, ValidationError):
                stage = _STAGE.validate_json((self._folder / job.id / "progress.json").read_bytes())
                return replace(job, stage=stage)
        return job

    def _keep(self, job: Job) -> None:
        """Remember a change, and write it down as soon as that is possible: what ran has ended whether the disk is full or not."""
        self._jobs[job.id] = job
        self._unwritten.add(job.id)
        self._write_down()

    def _write_down(self) -> None:
        """Write what could not be written before; what cannot be written now either waits for the next time."""
        for id in sorted(self._unwritten):
            job = self._jobs.get(id)
            with suppress(OSError):
                if job is not None and (self._folder / id).is_dir():  # else somebody removed its folder
                    self._write(job)
                self._unwritten.discard(id)

    def _write(self, job: Job) -> None:
        write_whole(self._folder / job.id / "job.json", JOB.dump_json(job, indent=1).decode())

    def _prune(self) -> None:
        """Forget the oldest that have ended."""
        ended = [job for job in sorted(self._jobs.values(), key=lambda job: job.asked) if not job.is_active]
        for job in ended[: max(len(self._jobs) - KEPT, 0)]:
            shutil.rmtree(self._folder / job.id, ignore_errors=True)
            del self._jobs[job.id]

    def _work(self) -> None:
        """The thread: start what waits, end what has ended."""
        with self._changed:
            while not self._closed:
                try:
                    self._write_down()
                    self._collect()
                    self._launch()
                except OSError as error:  # a full disk, an unreachable one: jobs go on when it is over
                    _LOG.warning("jobs: %s; trying again", error)
                    self._changed.wait(RETRY_S)
                    continue
                self._changed.wait(POLL_S if self._runs else RETRY_S if self._unwritten else None)

    def _launch(self) -> None:
        waiting = [job for job in self._jobs.values() if job.state == "queued"]
        for job in sorted(waiting, key=lambda job: (job.asked, job.id)):
            busy = {self._jobs[id].study for id in self._runs}
            if len(self._runs) < AT_ONCE and job.study not in busy:
                self._run(job)

    def _run(self, job: Job) -> None:
        folder = self._folder / job.id
        command = [sys.executable, "-W", "ignore", "-m", "seedscope.app.cli", *words(job)]
        command += ["--root", str(self._root)]
        if not KINDS[job.kind].words:
            command += ["--device", self._device]
        environment = os.environ | {PROGRESS_VARIABLE: str(folder / "progress.json"), "PYTHONUNBUFFERED": "1"}
        try:
            with open(folder / "log", "ab") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # it waits until there is room
                raise
            now = time.time()
            self._keep(replace(job, state="failed", begin=now, end=now, reason=f"not started: {error.strerror}"))
            return
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        self._runs[job.id] = _Run(process, self._published(job))
        self._keep(replace(job, state="running", begin=time.time(), pid=process.pid))

    def _collect(self) -> None:
        """Take note of the processes that have ended, and kill those that do not end when asked to."""
        for id, run in list(self._runs.items()):
            code = run.process.poll()
            if code is None:
                if run.kill_at is not None and time.monotonic() > run.kill_at:
                    _signal(run.process.pid, signal.SIGKILL)
                continue
            self._end_orphan(self._jobs[id])
            del self._runs[id]
            job = replace(self._seen(self._jobs[id]), end=time.time(), exit_code=code, cancelling=False)
            if code == 0:
                self._keep(replace(job, state="done", republished=self._published(job) != run.published))
            elif self._jobs[id].cancelling:
                self._keep(replace(job, state="cancelled"))
            else:
                reason = f"ended by signal {-code}" if code < 0 else f"exit {code}"
                self._keep(replace(job, state="failed", reason=STOPPED if self._closed else reason))
            with suppress(OSError):
                (self._folder / id / "progress.json").unlink(missing_ok=True)

    def _ask_to_end(self, run: _Run, within_s: float = STOP_S) -> None:
        run.kill_at = time.monotonic() + within_s
        if run.process.poll() is None:
            _signal(run.process.pid, signal.SIGTERM)

    def _end_orphan(self, job: Job) -> None:
        """Kill what is left of a job whose server or first process is gone; while the log is locked, its group is its own."""
        until = time.monotonic() + STOP_S
        while job.pid is not None and time.monotonic() < until:
            try:
                with open(self._folder / job.id / "log", "ab") as log:
                    if not _is_locked(log):
                        return
            except OSError:
                return
            _signal(job.pid, signal.SIGKILL)
            time.sleep(POLL_S / 5)

    def _published(self, job: Job) -> PublishedStore | None:
        return published(self._root / job.study)


_LOG = logging.getLogger("seedscope")
_STAGE, _CURVES = TypeAdapter(StageProgress), TypeAdapter(Curves)


def _is_locked(file: IO) -> bool:
    """Whether somebody else holds the file's lock; if not, this open file does from now on."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
