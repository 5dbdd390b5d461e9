"""The jobs of a root as several web processes see them: one process runs them, the others ask it over a socket pair.

A question is a line of JSON, `{"do": "start" or "cancel", ..}`; so is its answer: `{"job": ..}`, `{"refused": ..}` or
`{"unknown": id}`. One question at a time is under way on a pair. The end of the stream says that the other process is gone.
"""

import json
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedscope.app.jobs.kinds import Job, JobRefusedError
from seedscope.app.jobs.queue import STOP_S, Jobs
from seedscope.app.jobs.records import JOB

ANSWER_S = 2 * STOP_S  # the owner may have to end what an earlier server left


def answer_jobs(channel: socket.socket, jobs: Jobs) -> None:
    """Answer the questions of one web process until it is gone; runs in a thread of the process that runs the jobs."""
    try:
        with channel.makefile("r", encoding="utf-8") as questions:
            for line in questions:
                channel.sendall(json.dumps(_answer(json.loads(line), jobs)).encode() + b"\n")
    except OSError:  # it died between question and answer
        return


def _answer(question: dict[str, Any], jobs: Jobs) -> dict[str, Any]:
    try:
        if question["do"] == "cancel":
            job = jobs.cancel(question["id"])
        else:
            job = jobs.start(question["kind"], question["study"], question["parameters"])
        return {"job": asdict(job)}
    except JobRefusedError as error:
        return {"refused": [error.name, error.found, error.expected, error.status]}
    except LookupError:
        return {"unknown": question["id"]}


class RemoteJobs(Jobs):
    """The jobs that another process runs: shown from the disk, started and cancelled by asking it.

    `when_gone` is called once, from a thread, when that process ended.
    """

    def __init__(self, root: Path, channel: socket.socket, when_gone: Callable[[], None]) -> None:
        super().__init__(root)
        self._channel = channel
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._is_silent = False
        self._when_gone = when_gone
        threading.Thread(target=self._listen, name="jobs", daemon=True).start()

    def resume(self) -> None:
        """Nothing: the other process does it."""

    def close(self) -> None:
        """Nothing: the other process does it."""

    def start(self, kind: str, study: str, given: dict[str, str]) -> Job:
        """As `Jobs.start`, in the process that runs the jobs."""
        return self._ask({"do": "start", "kind": kind, "study": study, "parameters": given})

    def cancel(self, id: str) -> Job:
        """As `Jobs.cancel`, in the process that runs the jobs."""
        return self._ask({"do": "cancel", "id": id})

    def _ask(self, question: dict[str, Any]) -> Job:
        silent = JobRefusedError("server", "one that does not answer", "one that runs jobs: look at /jobs", 503)
        with self._asking:
            if self._is_silent:  # an answer that comes late would be taken for that of the next question
                raise silent
            try:
                self._channel.sendall(json.dumps(question).encode() + b"\n")
                answer = json.loads(self._answers.get(timeout=ANSWER_S))
            except (OSError, ValueError, queue.Empty):
                self._is_silent = True
                raise silent from None
        if refused := answer.get("refused"):
            raise JobRefusedError(*refused)
        if "unknown" in answer:
            raise LookupError(answer["unknown"])
        return JOB.validate_python(answer["job"])

    def _listen(self) -> None:
        try:
            with self._channel.makefile("r", encoding="utf-8") as answers:
                for line in answers:
                    self._answers.put(line)
        except (OSError, ValueError):
            pass
        self._answers.put("")  # no question waits for an answer that cannot come
        self._when_gone()
