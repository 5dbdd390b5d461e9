"""The dashboard in a process of its own, and what that process and its workers hold in memory."""

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple, Self


class ProcessMemory(NamedTuple):
    """Resident memory of one process, in bytes."""

    resident: int
    anonymous: int  # of it: not of files that other processes share


class Dashboard:
    """`seedscope serve` over a root on a free port; used as a context manager, it is stopped at the end."""

    def __init__(self, root: Path, *, workers: int | None = None) -> None:
        self._command = [sys.executable, "-m", "seedscope.app.cli", "serve", "--root", str(root), "--port", "0"]
        self._command += [] if workers is None else ["--workers", str(workers)]
        self.host, self.port = "127.0.0.1", 0
        self.started_s = 0.0  # until the server named its address

    def __enter__(self) -> Self:
        began = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        address = re.search(r"http://([^/:]+):(\d+)", line)
        if address is None:
            self.__exit__()
            raise RuntimeError(f"the server said {line!r}, expected the address that it serves")
        self.host, self.port = address[1], int(address[2])
        self.started_s = time.perf_counter() - began
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:  # it still works on an answer
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def get(self, path: str) -> float:
        """Seconds until the whole answer is there; raises HTTPError for anything but 200."""
        return self.download(path)[1]

    def download(self, path: str) -> tuple[float, float, int]:
        """(seconds to the first byte, to the last, bytes) of an answer that is not kept; raises HTTPError for anything but 200."""
        began, n_bytes = time.perf_counter(), 0
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=300) as answer:
            n_bytes += len(answer.read(1))
            first_s = time.perf_counter() - began
            while block := answer.read(1 << 20):
                n_bytes += len(block)
        return first_s, time.perf_counter() - began, n_bytes

    def memory(self) -> list[ProcessMemory]:
        """Of the server's process and of all that it started, the server first; empty where there is no /proc."""
        return process_memory(self._process.pid)


def process_memory(pid: int) -> list[ProcessMemory]:
    """Of a process and all below it; empty where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return []
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", status.read_text(), re.MULTILINE))
    own = ProcessMemory(int(fields.get("VmRSS", 0)) * 1024, int(fields.get("RssAnon", 0)) * 1024)
    children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [own, *(memory for child in children for memory in process_memory(int(child)))]
