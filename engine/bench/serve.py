"""What a dashboard over a large study takes: every page alone, under many people, saturated; its memory, weight and start.

The study is generated (`generated_study`) or found again. Server and load generator are processes of their own, addresses do not
repeat (`requests`), answers are asked for compressed. The floor of a list page is reading one byte per feature, its bucket, at
the rate at which this machine copies memory.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seedscope.engine.bench.dashboard import Dashboard
from seedscope.engine.bench.generated_study import StudySize, generated_study
from seedscope.engine.bench.generated_texts import token_vocabulary
from seedscope.engine.bench.load import Load, Plan, ask_load
from seedscope.engine.bench.peer_datasette import DATASETTE, datasette_lines
from seedscope.engine.bench.publishing import publishing_lines
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.bench.requests import BASE, Requests

_GOALS_S = {  # p50 of pages asked for alone; None: part of another line's goal
    "table": 0.03, "table, deep": 0.03, "word search": 0.06, "token search": 0.06, "feature": 0.04, "feature in a filter": 0.04,
    "overview": 0.1, "buckets": 0.1, "explanations": 0.1, "subspaces": 0.1, "seed x seed": 0.1, "map": 0.1,
    "shared spans": 0.05, "shared spans, .json": 0.05, "shared span": 0.05, "shared span, .json": 0.05,
    "table, theta off the grid": 0.2, "overview, theta off the grid": 0.2, "feature, theta off the grid": 0.2,
}  # fmt: skip
_READ_ALL_BUCKETS = ("table", "overview", "buckets", "search")  # kinds whose floor is one byte per feature
_WEIGHED = ("table", "feature", "overview")
_PEOPLE_GOAL = "30 ms / 150 ms"
_COPIED = 2**27  # bytes


@dataclass(frozen=True)
class Effort:
    """How long each measurement takes."""

    n_alone: int = 40  # requests of every kind alone
    alone_s: float = 30.0  # at most, of a kind
    n_people: int = 32
    pause_s: float = 2.0  # from click to click of one of them
    people_s: float = 30.0
    n_connections: int = 8  # saturated
    saturated_s: float = 10.0


def default_folder() -> Path:
    """Where generated studies are kept: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seedscope" / "bench"


def lines(
    size: StudySize,
    *,
    root: Path | None = None,
    workers: int | None = None,
    peer: str | None = None,
    effort: Effort | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[BenchLine]:
    """One line per measurement. The study is kept in `root`, by default in the user's cache; `report` is of its generation.

    `workers` is passed on to `seedscope serve`. `peer` is DATASETTE or None. Raises ValueError for another peer and for a study
    that is too small, RuntimeError where the server does not start.
    """
    if peer not in (None, DATASETTE):
        raise ValueError(f"peer is {peer!r}, expected {DATASETTE}")
    effort, root = effort or Effort(), root or default_folder() / f"{size.n_members}x{size.d_sae}"
    root.mkdir(parents=True, exist_ok=True)
    store = generated_study(root, size, report=report)
    of_size = f"{size.n_members} x {size.d_sae:,}"
    yield from publishing_lines(store, of_size)
    requests = Requests(size, token_vocabulary())
    began = time.perf_counter()
    with Dashboard(root, workers=workers) as dashboard:
        dashboard.get("/")
        home_s = time.perf_counter() - began
        dashboard.get(requests.draw("table", 1)[0])
        table_s = time.perf_counter() - began
        yield BenchLine(
            f"start to home, {of_size}", home_s, goal="2 s", remark=f"bound after {dashboard.started_s:.2f} s"
        )
        yield BenchLine(f"start to first table, {of_size}", table_s, goal="2 s", remark="home before it")
        floor = _Floor.measure(size)
        weights: dict[str, Load] = {}
        for kind in requests.kinds:
            line, load = _alone(dashboard, requests, kind, of_size, floor, effort)
            weights |= {kind: load} if kind in _WEIGHED else {}
            yield line
        for kind in ("table", "feature"):
            yield _with_people(dashboard, requests, kind, of_size, floor, effort)
        yield _saturated(dashboard, requests, of_size, floor, effort)
        yield _memory(dashboard, of_size)
        for kind in ("csv", "parquet"):
            yield _download(dashboard, kind, of_size)
        for kind, load in weights.items():
            yield _weight(kind, load, of_size)
        if peer == DATASETTE:
            yield from datasette_lines(dashboard, store, size, root, n=effort.n_alone, seconds=effort.alone_s)


@dataclass(frozen=True)
class _Floor:
    """The least that a page about all features has to read."""

    n_bytes: int
    bytes_per_s: float

    @classmethod
    def measure(cls, size: StudySize) -> "_Floor":
        source = np.ones(_COPIED, np.uint8)
        target = np.empty_like(source)
        taken = interleaved({"copy": lambda: np.copyto(target, source)})["copy"]
        return cls(size.n_members * size.d_sae, _COPIED / taken)

    def of(self, kind: str) -> tuple[str, float | None]:
        """(what the limit is, its seconds); nothing for kinds that do not read all features."""
        if not kind.startswith(_READ_ALL_BUCKETS) and "search" not in kind:
            return "", None
        said = f"one byte per feature, {self.n_bytes / 1e6:.3g} MB, copied at {self.bytes_per_s / 1e9:.3g} GB/s"
        return said, self.n_bytes / self.bytes_per_s


def percentiles(load: Load) -> tuple[float | None, float | None]:
    """(p50, p99) of the answers' times, None without any."""
    if not load.seconds:
        return None, None
    median, high = np.percentile(load.seconds, (50, 99)).tolist()
    return median, high


def failures(load: Load) -> str:
    """What failed, as the end of a remark; empty where nothing did."""
    if not load.n_failed:
        return ""
    said = ", ".join(f"{n} x {status}" for status, n in sorted(load.failed.items()))
    return f"; failed: {said}, such as {load.first_failed}"


def _alone(
    dashboard: Dashboard, requests: Requests, kind: str, of_size: str, floor: _Floor, effort: Effort
) -> tuple[BenchLine, Load]:
    """One after the other on one connection; the first, which reads what was not read before, is told apart."""
    plan = Plan(
        dashboard.host, dashboard.port, requests.draw(kind, effort.n_alone + 1), seconds=effort.alone_s,
        n_next=2 if "deep" in kind else 0,
    )  # fmt: skip
    load = ask_load(plan)
    at_first = f", first {load.seconds.pop(0):.2f} s" if len(load.seconds) > 1 else ""
    median, high = percentiles(load)
    limit, limit_s = floor.of(kind)
    remark = f"{len(load.seconds)} requests alone{at_first}{failures(load)}"
    goal = f"{1000 * _GOALS_S[kind]:.0f} ms p50"
    return BenchLine(f"{kind}, {of_size}", median, limit, limit_s, {}, goal, remark, high), load


def _with_people(
    dashboard: Dashboard, requests: Requests, kind: str, of_size: str, floor: _Floor, effort: Effort
) -> BenchLine:
    n_asked = round(effort.n_people * effort.people_s / effort.pause_s)
    plan = Plan(
        dashboard.host, dashboard.port, requests.draw(kind, n_asked), n_clients=effort.n_people, pause_s=effort.pause_s,
        seconds=effort.people_s,
    )  # fmt: skip
    load = ask_load(plan)
    median, high = percentiles(load)
    limit, limit_s = floor.of(kind)
    rate = len(load.seconds) / load.elapsed_s
    remark = f"{rate:.1f} answers/s of {effort.n_people / effort.pause_s:.0f} asked for{failures(load)}"
    work = f"{kind} with {effort.n_people} people clicking every {effort.pause_s:g} s, {of_size}"
    return BenchLine(work, median, limit, limit_s, {}, _PEOPLE_GOAL if kind == "table" else "", remark, high)


def _saturated(dashboard: Dashboard, requests: Requests, of_size: str, floor: _Floor, effort: Effort) -> BenchLine:
    paths = requests.draw("table", int(1000 * effort.saturated_s))
    n = effort.n_connections
    load = ask_load(Plan(dashboard.host, dashboard.port, paths, n_clients=n, seconds=effort.saturated_s))
    rate = len(load.seconds) / load.elapsed_s
    limit, limit_s = floor.of("table")
    return BenchLine(
        f"saturated table pages, {n} connections, {of_size}", 1 / rate if rate else None, limit, limit_s,
        goal="100 pages/s", remark=f"{rate:.1f} pages/s over {load.elapsed_s:.0f} s{failures(load)}",
        figure=f"{rate:.1f} pages/s", numbers={"pages_per_s": rate},
    )  # fmt: skip


def _memory(dashboard: Dashboard, of_size: str) -> BenchLine:
    work, processes = f"memory of the server's processes after all pages, {of_size}", dashboard.memory()
    if not processes:
        return BenchLine(work, None, goal="600 MB a process", remark="not measured: needs Linux", figure="not measured")
    said = ", ".join(f"{each.resident / 1e6:.0f} MB ({each.anonymous / 1e6:.0f} anonymous)" for each in processes)
    numbers = {
        "resident_bytes": float(sum(each.resident for each in processes)),
        "largest_resident_bytes": float(max(each.resident for each in processes)),
        "anonymous_bytes": float(sum(each.anonymous for each in processes)),
    }
    figure = f"{numbers['largest_resident_bytes'] / 1e6:.0f} MB"
    return BenchLine(work, None, goal="600 MB a process", remark=f"each: {said}", figure=figure, numbers=numbers)


def _download(dashboard: Dashboard, kind: str, of_size: str) -> BenchLine:
    """All features as one file."""
    first_s, whole_s, n_bytes = dashboard.download(f"{BASE}/features.{kind}")
    anonymous = [each.anonymous for each in dashboard.memory()]
    most = f"; {max(anonymous) / 1e6:.0f} MB anonymous then" if anonymous else ""
    remark = f"first byte {1000 * first_s:.0f} ms, {n_bytes / 1e6:.0f} MB{most}"
    numbers = {"first_byte_s": first_s, "downloaded_bytes": float(n_bytes)}
    return BenchLine(f"download of all features as {kind}, {of_size}", whole_s, remark=remark, numbers=numbers)


def _weight(kind: str, load: Load, of_size: str) -> BenchLine:
    work = f"weight of the page {kind}, {of_size}"
    if not load.wire_bytes:
        return BenchLine(work, None, remark=f"not measured{failures(load)}", figure="not measured")
    raw, wire = float(np.median(load.raw_bytes)), float(np.median(load.wire_bytes))
    figure = f"{raw / 1e3:.0f} kB, {wire / 1e3:.1f} kB gzipped"
    goal = "25 kB gzipped" if kind == "table" else ""
    return BenchLine(work, None, goal=goal, figure=figure, numbers={"raw_bytes": raw, "gzipped_bytes": wire})
