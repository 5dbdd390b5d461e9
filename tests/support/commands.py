"""The command line as a user types it: in this process, which has loaded torch already, or in one of its own."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from seedscope.app.cli import main
from support.paths import ROOT

COMMAND = [sys.executable, "-m", "seedscope.app.cli"]
CWD = ROOT


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """What a command prints and how it ends, without the seconds that a new process takes to load torch.

    It runs from the checkout with nothing to read and no terminal. Signals, sockets and a clean interpreter are tested with
    processes of their own.
    """
    command = ["seedscope", *map(str, arguments)]
    stdout, stderr, before = io.StringIO(), io.StringIO(), os.getcwd()
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", command),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        contextlib.ExitStack() as after,
    ):
        after.callback(os.chdir, before)
        os.chdir(CWD)
        try:
            main.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


def run_alone(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """The same in a process of its own: for commands that start others, whose output goes where this process cannot look."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=CWD, env=os.environ | environment, check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    """A failed run that says these words in one line."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("seedscope: ")
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == []
