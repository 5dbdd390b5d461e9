"""The command line as a user starts it, in a process of its own."""

import os
import subprocess
import sys

from support.paths import ROOT

COMMAND = [sys.executable, "-m", "seedscope.app.cli"]


CWD = ROOT


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=CWD, env=os.environ | environment, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("seedscope: ")
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == []
