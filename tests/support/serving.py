"""`seedscope serve` as a process of its own."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from support.commands import COMMAND, CWD


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen, list[str], str]]:
    """A running server: its process, what it printed up to its address, and the address by way of loopback."""
    command = [*COMMAND, "serve", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=CWD, env=os.environ | environment, **pipes) as process:
        try:
            printed = []
            while not (printed and "SeedScope is at" in printed[-1]):
                line = process.stdout.readline()
                assert line, process.stderr.read()
                printed.append(line)
            address = re.search(r"http://\S+", printed[-1])[0]
            yield process, printed, address.replace("0.0.0.0", "127.0.0.1")
        finally:
            process.kill()
