"""A server ends within seconds whatever hangs, and a builder ends with whoever started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from support.commands import COMMAND, CWD
from support.serving import serving
from support.studies import ENSEMBLE, STUDY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
LIMIT_S = 8  # five, and what a busy machine adds


def until(condition: Callable[[], object], limit_s: float = 60.0) -> object:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return value


def with_word(word: str) -> set[int]:
    """Processes whose command holds a word, such as a root that no other test has."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            state = path.with_name("stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if word.encode() in command and state != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_ends_within_seconds_whatever_hangs(study_root, tmp_path, workers):
    root = tmp_path / f"root-of-{workers}"
    subprocess.run(["cp", "-r", str(study_root), str(root)], check=True)
    with serving("--root", root, "--port", 0, "--workers", workers, "--device", "cpu") as (process, _, address):
        at = urlsplit(address)
        base = f"{address}s/{STUDY}/{ENSEMBLE}"
        with httpx2.Client(trust_env=False, timeout=60) as client:
            until(lambda: client.get(f"{base}/0/1/neighbours.json").status_code == 200)
            form = {"kind": "analyze", "study": STUDY, "loss_tokens": "50000"}
            job = client.post(
                f"{address}jobs", data=form, headers={"Origin": address.rstrip("/"), "Accept": "application/json"}
            )
            assert job.status_code == 202
            until(lambda: client.get(f"{address}jobs/{job.json()['id']}.json").json()["job"]["state"] != "queued")
        stopped = with_word(str(root)) - {process.pid}
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)  # neither the engine nor the job does anything any more
        connections = []
        for text in (
            b"",
            b"GET / HTTP/1.1\r\nHost: ",
            f"GET /s/{STUDY}/{ENSEMBLE}/0/2/neighbours.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        ):
            connections.append(socket.create_connection((at.hostname, at.port)))
            connections[-1].sendall(text)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - begin < LIMIT_S
        until(lambda: not with_word(str(root)), 10)
        assert "Traceback" not in process.stderr.read()
        for connection in connections:
            connection.close()


HANGS = """
import socket, sys, threading, time
from pathlib import Path
from seedscope.app.cli.web import create_small_app, web_server
from seedscope.app.settings import Settings

app = create_small_app(Settings(Path(sys.argv[1])))
app.get("/hang")(lambda: time.sleep(600))
app.get("/download")(lambda: time.sleep(600))
listener = socket.create_server(("127.0.0.1", 0), backlog=16)
print(listener.getsockname()[1], flush=True)
web_server(app).run(sockets=[listener])
"""


def test_a_server_ends_although_threads_hang(tmp_path):
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        hanging = []
        for _ in range(5):
            hanging.append(socket.create_connection(("127.0.0.1", port)))
            hanging[-1].sendall(b"GET /hang HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        process.wait(20)
        assert time.monotonic() - begin < LIMIT_S
        for connection in hanging:
            connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_builder_of_a_demo_ends_with_it(tmp_path, number):
    root = tmp_path / f"demo-{number}"
    command = [*COMMAND, "demo", "--root", str(root), "--no-serve", "--quiet"]
    with subprocess.Popen(command, cwd=CWD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: len(with_word(str(root))) == 2)
        time.sleep(1)
        process.send_signal(number)
        process.wait(20)
        until(lambda: not with_word(str(root)), 15)


def test_a_second_server_says_who_runs_the_jobs_of_a_root(study_root, tmp_path):
    root = tmp_path / "shared"
    subprocess.run(["cp", "-r", str(study_root), str(root)], check=True)
    form = {"kind": "analyze", "study": STUDY, "loss_tokens": "1"}

    def ask(address: str) -> httpx2.Response:
        headers = {"Origin": address.rstrip("/"), "Accept": "application/json"}
        return httpx2.post(f"{address}jobs", data=form, headers=headers, trust_env=False, timeout=60)

    options = ("--root", root, "--port", 0, "--workers", 1)
    with serving(*options) as (first, _, one), serving(*options) as (_, _, two):
        assert ask(one).status_code == 202
        refused = ask(two)
        assert refused.status_code == 409
        found = refused.json()["problems"][0]["found"]
        assert f"process {first.pid} (" in found
        assert "serve" in found
        assert time.strftime("%Y-") in found


@pytest.mark.slow
def test_a_builder_that_is_done_ends_well_while_its_parent_lives():
    """A thread waits for the parent's end; an interpreter that found it in the lock of its standard input aborted."""
    waits = (
        "import threading, time, seedscope.engine.studies.embedded as embedded\n"
        "threading.Thread(target=embedded._end_with_parent, daemon=True).start()\n"
        "time.sleep(0.3)"
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", waits], stdin=subprocess.PIPE) as builder:
        assert builder.wait(60) == 0
