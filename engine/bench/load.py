"""A load generator in a process of its own: `python -m seedscope.engine.bench.load` reads a plan as JSON and prints what it met.

Clients are threads, each with one connection that stays open; answers are asked for compressed, as browsers do. A client either
asks at once again, or waits until its next click is due; one that waited longer than that for an answer clicks at once.
Standard library only, so that it starts quickly and takes little of the machine that it measures.
"""

import gzip
import html
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from itertools import islice

_TIMEOUT_S = 300
_NEXT = re.compile(rb'href="([^"]*[?&;]after=[^"]*)"')


@dataclass(frozen=True)
class Plan:
    """What to ask of a server, and how."""

    host: str
    port: int
    paths: list[str]  # each is asked at most once, in this order, by whichever client is free
    n_clients: int = 1
    pause_s: float = 0.0  # from click to click of one client; 0: asks at once again
    seconds: float = 60.0  # no request begins later
    n_next: int = 0  # pages behind a page that are asked for by its own link, before another path


@dataclass
class Load:
    """What came back; times are from sending a request to the last byte of its answer."""

    seconds: list[float] = field(default_factory=list)  # of answers that are 200
    wire_bytes: list[int] = field(default_factory=list)  # of their bodies as sent
    raw_bytes: list[int] = field(default_factory=list)  # of their bodies, decompressed; only where decompressed at all
    failed: dict[str, int] = field(default_factory=dict)  # {status or error: answers}
    first_failed: str = ""  # path of the first of them
    elapsed_s: float = 0.0

    @property
    def n_failed(self) -> int:
        """Answers that were not 200."""
        return sum(self.failed.values())


def ask_load(plan: Plan) -> Load:
    """Carry a plan out in a fresh process; raises RuntimeError where that process ends with an error."""
    done = subprocess.run(
        [sys.executable, "-m", "seedscope.engine.bench.load"],
        input=json.dumps(asdict(plan)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the load generator ended with exit {done.returncode}: {done.stderr[-300:]}")
    return Load(**json.loads(done.stdout))


def carry_out(plan: Plan) -> Load:
    """Carry a plan out in this process."""
    run = _Run(plan)
    clients = [threading.Thread(target=run.client, args=(number,)) for number in range(plan.n_clients)]
    began = time.perf_counter()
    run.end = began + plan.seconds
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    run.load.elapsed_s = time.perf_counter() - began
    return run.load


class _Run:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.load, self.end = plan, Load(), 0.0
        self._paths = iter(plan.paths)
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        """One client until the paths or the time end; clients begin evenly spread over one pause."""
        plan = self.plan
        links: list[tuple[str, int]] = []  # from the last page, and how many pages behind it are still asked for
        due = time.perf_counter() + plan.pause_s * number / plan.n_clients
        connection = http.client.HTTPConnection(plan.host, plan.port, timeout=_TIMEOUT_S)
        while True:
            time.sleep(max(due - time.perf_counter(), 0))
            if time.perf_counter() >= self.end:
                break
            if not links:
                with self._lock:
                    links += [(path, plan.n_next) for path in islice(self._paths, 1)]
            if not links:
                break
            path, n_next = links.pop()
            began = time.perf_counter()
            due = began + plan.pause_s
            try:
                connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._fail(type(error).__name__, path)
                connection.close()
                continue
            seconds = time.perf_counter() - began
            if answer.status != 200:
                self._fail(str(answer.status), path)
                continue
            is_alone = plan.n_clients == 1  # many clients would measure this process instead
            content = None
            if n_next or is_alone:
                content = gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body
            with self._lock:
                self.load.seconds.append(seconds)
                self.load.wire_bytes.append(len(body))
                if content is not None:
                    self.load.raw_bytes.append(len(content))
            link = _NEXT.search(content) if n_next and content else None
            if link:
                links.append((html.unescape(link[1].decode()), n_next - 1))
        connection.close()

    def _fail(self, status: str, path: str) -> None:
        with self._lock:
            self.load.failed[status] = self.load.failed.get(status, 0) + 1
            self.load.first_failed = self.load.first_failed or path


if __name__ == "__main__":
    print(json.dumps(asdict(carry_out(Plan(**json.loads(sys.stdin.read()))))))
