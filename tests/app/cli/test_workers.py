"""`serve --workers`: several processes on one port, one queue of jobs, and an end without orphans."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from seedscope.app.cli.workers import default_workers, read_settings, write_settings
from seedscope.app.settings import Settings
from support.commands import run
from support.serving import serving
from support.studies import ENSEMBLE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
N = 2


def children(pid: int) -> set[int]:
    """The processes that a process started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.add(int(stat.parent.name))
    return found


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object], limit_s: float = 30.0) -> object:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return value


def ask(address: str, method: str = "GET", **options: object) -> httpx2.Response:
    """On a connection of its own: any process may take it."""
    with httpx2.Client(trust_env=False) as client:
        return client.request(method, address, timeout=60, **options)


def answering(address: str) -> set[float]:
    """The processes that answer, of several requests at once: a single one may always meet the same."""
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(f"{address}metrics").text, range(24)))
    lines = [line for answer in answers for line in answer.splitlines()]
    return {float(line.split()[1]) for line in lines if line.startswith("seedscope_process_id ")}


@pytest.fixture
def own_root(study_root, tmp_path) -> Path:
    """A copy of the study's store, where every job fails within a second or two."""
    folder = tmp_path / "small"
    folder.mkdir()
    for path in study_root.glob("small/*"):
        if path.is_file() and path.name != "study.json":
            shutil.copy(path, folder)
    return tmp_path


@pytest.fixture
def served(own_root) -> Iterator[tuple]:
    """The process that was started, its workers, and the address."""
    with serving("--root", own_root, "--port", 0, "--workers", N) as (process, _, address):
        workers = until(lambda: len(pids := children(process.pid)) == N and pids)
        until(lambda: len(answering(address)) == N)
        try:
            yield process, workers, address
        finally:
            process.terminate()
            process.wait(20)


def test_workers_share_jobs_etags_and_counts_and_end_together(served):
    process, workers, address = served
    origin = {"Origin": address.rstrip("/"), "Accept": "application/json"}
    ids = set()
    for tokens in range(1, 7):
        form = {"kind": "analyze", "study": "small", "loss_tokens": str(tokens)}
        answer = ask(f"{address}jobs", "POST", data=form, headers=origin)
        assert answer.status_code == 202, answer.text
        ids.add(answer.json()["id"])
    assert len(ids) == 6
    for _ in range(6):
        assert {job["id"] for job in ask(f"{address}jobs.json").json()["jobs"]} == ids
    (waiting, *_) = [job for job in ask(f"{address}jobs.json").json()["jobs"] if job["state"] == "queued"]
    cancelled = ask(f"{address}jobs/{waiting['id']}/cancel", "POST", headers=origin)
    assert cancelled.json()["state"] == "cancelled"
    assert ask(f"{address}jobs/{'0' * 16}/cancel", "POST", headers=origin).status_code == 404
    refused = ask(f"{address}jobs", "POST", data={"kind": "sh", "study": "small"}, headers=origin)
    assert refused.status_code == 422
    until(lambda: all(job["end"] for job in ask(f"{address}jobs.json").json()["jobs"]), 90)
    assert len({ask(f"{address}s/small/{ENSEMBLE}").headers["etag"] for _ in range(8)}) == 1
    counted = [
        float(line.rsplit(" ", 1)[1])
        for line in ask(f"{address}metrics").text.splitlines()
        if line.startswith("seedscope_request_seconds_count") and 'route="/s/{study}/{ensemble}"' in line
    ]
    assert counted == [8.0]  # whichever process answers, they count all
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert process.wait(20) == 0
    assert time.monotonic() - begin < 7
    assert not [pid for pid in workers if is_there(pid)]


def test_a_worker_that_dies_is_started_again(served):
    process, workers, address = served
    os.kill(min(workers), signal.SIGKILL)
    until(lambda: len(pids := children(process.pid)) == N and min(workers) not in pids)
    until(lambda: len(answering(address)) == N)
    assert ask(f"{address}s/small").status_code == 200


def test_no_worker_outlives_the_command_that_started_it(served):
    process, workers, _ = served
    process.kill()
    until(lambda: not [pid for pid in workers if is_there(pid)], 10)


def test_a_worker_is_told_all_settings(tmp_path):
    settings = Settings(tmp_path, "0.0.0.0", 80, "secret", ("a.example", "b.example"), "cpu", 3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(write_settings(settings))
        assert read_settings(theirs) == settings
        ours.close()
        with pytest.raises(EOFError):
            read_settings(theirs)


def test_workers_are_counted_and_bounded():
    assert 1 <= default_workers() <= 4
    assert run("serve", "--workers", "0").returncode == 2
