"""The executor of a SLURM cluster: submitit writes the scripts, SLURM runs them as arrays of jobs.

A job that is preempted or whose time ends is queued again by SLURM and submitit; one that vanishes without a result is a lost unit.
The queue is read with `squeue`, which every cluster has, and not from accounting, which many lack.
"""

import getpass
import pickle
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor as Submission

from seedscope.engine.executors.probe import Expected, asking, called_on_node, problem
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import Call, LostUnitError

COMMAND_S, POLL_S = 20.0, 1.0
GONE_S = 10.0  # that a job may be out of the queue before its result is to be seen: shared file systems are late
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo")
LOGS = ".slurm-logs"  # in the root


class CallOutcome(NamedTuple):
    """What a call returned, or raised."""

    value: Any = None
    error: Exception | None = None


class OnNode:
    """A call on a node, as submitit pickles it; `checkpoint` queues it again where its time ends."""

    def __call__(
        self, expected: Expected, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> CallOutcome:
        try:
            return CallOutcome(called_on_node(expected, threads, function, arguments))
        except Exception as error:
            return CallOutcome(error=_picklable(error))

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        return DelayedSubmission(self, *arguments)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Waiting(NamedTuple):
    job: submitit.Job[Any]
    future: Future[Any]


class SlurmExecutor:
    """Calls as jobs of a cluster; raises ValueError, in one line, where this machine cannot submit them.

    One probe job says whether nodes have this version and share the root; every unit looks again before it begins.
    """

    is_here = False

    def __init__(self, settings: ExecutorSettings, threads: int, expected: Expected) -> None:
        self.threads, self.members, self.retries = threads, settings.members, settings.retries
        self.device: str | None = "cuda" if settings.gpus else "cpu"
        self._expected, self._array = expected, settings.array
        _require_cluster(settings.partition)
        self.logs = (settings.logs or Path(expected.token).parent / LOGS).absolute()
        self._submission = Submission(self.logs, max_num_timeout=max(settings.retries, 1))
        self._submission.update_parameters(**_parameters(settings, threads))
        self._waiting: dict[str, _Waiting] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        try:
            self._probe()
        except BaseException:
            self.shutdown(cancel=True)
            raise

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        return self._submitted(OnNode(), [(self._expected, self.threads, *call) for call in calls])

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        return self.submit_all([(function, arguments)])[0]

    def shutdown(self, *, cancel: bool = False) -> None:
        with self._lock:
            running = [each.job.job_id for each in self._waiting.values()] if cancel else []
            self._closed.set()
        if running:
            subprocess.run(["scancel", *running], check=False, capture_output=True, timeout=COMMAND_S)
        self._watch.join(COMMAND_S)

    def _submitted(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Future[Any]]:
        futures: list[Future[Any]] = []
        for first in range(0, len(arguments), self._array):
            some = arguments[first : first + self._array]
            try:
                with self._submission.batch():
                    jobs = [self._submission.submit(function, *each) for each in some]
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                raise ValueError(f"SLURM takes no job: {_line(str(error))}") from None
            with self._lock:
                for job in jobs:
                    futures.append(Future())
                    self._waiting[job.job_id] = _Waiting(job, futures[-1])
        return futures

    def _probe(self) -> None:
        (future,) = self._submitted(asking(), [(self._expected.token,)])
        try:
            found = future.result()
        except LostUnitError as error:
            raise ValueError(f"a probe on the SLURM cluster ended without an answer: {error}") from None
        if reason := problem(found, self._expected):
            raise ValueError(reason)

    def _look(self) -> None:
        """The thread: hand on results, and tell of jobs that left the queue without one."""
        missed: dict[str, float] = {}
        while not self._closed.wait(POLL_S):
            with self._lock:
                waiting = dict(self._waiting)
            if not waiting:
                continue
            queued = _queued()
            for name, (job, future) in waiting.items():
                outcome = _read(job)
                if outcome is None and (queued is None or name in queued):
                    missed.pop(name, None)
                    continue
                if outcome is None and time.monotonic() - missed.setdefault(name, time.monotonic()) < GONE_S:
                    continue
                with self._lock:
                    del self._waiting[name]
                if future.set_running_or_notify_cancel():
                    _settle(future, outcome, job)


def _settle(future: Future[Any], outcome: tuple[str, Any] | None, job: submitit.Job[Any]) -> None:
    if outcome is None:
        future.set_exception(LostUnitError(f"job {job.job_id} left the queue without a result{_last_words(job)}"))
        return
    kind, value = outcome
    if kind != "success":  # submitit's own trace: of what could not be read or written there
        future.set_exception(RuntimeError(f"job {job.job_id} failed: {_line(str(value))}"))
    elif isinstance(value, CallOutcome) and value.error is not None:
        future.set_exception(value.error)
    else:
        future.set_result(value.value if isinstance(value, CallOutcome) else value)


def _read(job: submitit.Job[Any]) -> tuple[str, Any] | None:
    """(success or error, value) that a job left; None where there is none, or where it is not whole yet."""
    path = job.paths.result_pickle
    try:
        list(path.parent.iterdir())  # makes a network file system look again
        outcome: tuple[str, Any] = pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return outcome


def _last_words(job: submitit.Job[Any]) -> str:
    """The end of what a job wrote, and where all of it stands."""
    try:
        lines = [line for line in job.paths.stderr.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return f" and wrote nothing to {job.paths.stderr}"
    return f"; {lines[-1][:200]} ({job.paths.stderr})" if lines else f" ({job.paths.stderr} is empty)"


def _queued() -> set[str] | None:
    """Names, JOB or JOB_TASK, of this user's jobs that wait or run; None where the queue cannot be asked now."""
    command = ["squeue", "-h", "-r", "-o", "%i", "-u", getpass.getuser()]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        return None
    return None if told.returncode else set(told.stdout.split())


def _parameters(settings: ExecutorSettings, threads: int) -> dict[str, Any]:
    """Of sbatch, in submitit's words."""
    given: dict[str, Any] = {
        "job_name": "seedscope", "time": settings.time, "cpus_per_task": threads, "array_parallelism": settings.array,
        "stderr_to_stdout": False, "additional_parameters": {"requeue": True},
    }  # fmt: skip
    if settings.partition:
        given["partition"] = settings.partition
    if settings.gpus:
        given["gpus_per_node"] = settings.gpus
    if settings.memory:
        given["mem"] = f"{int(settings.memory * 1000)}M"
    return given


def _require_cluster(partition: str | None) -> None:
    """Raise ValueError where this machine has no cluster to submit to, or that has no such partition."""
    if lacking := [name for name in COMMANDS if shutil.which(name) is None]:
        raise ValueError(
            f"found no {lacking[0]} on this machine, expected SLURM's commands; run seedscope on a machine of the cluster that "
            "jobs are submitted from"
        )
    try:
        asked = subprocess.run(
            ["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False, timeout=COMMAND_S
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the SLURM controller does not answer within {COMMAND_S:g} s; see `scontrol ping`") from None
    if asked.returncode:
        raise ValueError(f"the SLURM controller does not answer ({_line(asked.stderr)}); see `scontrol ping`")
    partitions = sorted(set(asked.stdout.split()))
    if partition and partition not in partitions:
        raise ValueError(
            f"partition is {partition!r}, expected one of the cluster's: {', '.join(partitions) or 'it has none'}"
        )


def _line(text: str) -> str:
    """The last line of a text, which says most of a traceback."""
    return ([" ".join(line.split()) for line in text.splitlines() if line.strip()] or ["no more is said"])[-1][:300]
