"""Figures of the live engine for `/metrics`: how long answers took, how it is, and what it holds."""

import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from seedscope.app.turns import Turns
from seedscope.engine.contract.queries import CAUSES, KINDS

LATENCIES = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 60, 120)  # seconds
# Outcomes beside CAUSES: no error; the engine was not up; who asked has gone.
ANSWERED, ABSENT, LEFT = "answered", "absent", "left"
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class LiveFigures:
    """What one web process sees of the engine; labels are a few words each."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._latency = Histogram(
            "seedscope_live_seconds", "Time from a question to the live engine to its answer, by kind and outcome.",
            ("kind", "outcome"), buckets=LATENCIES, registry=registry,
        )  # fmt: skip
        self._started = Counter("seedscope_live_starts", "Live engines that were started.", registry=registry)

    def note_answer(self, kind: str, outcome: str, seconds: float) -> None:
        """One question ended; `outcome` is ANSWERED, ABSENT, LEFT or one of CAUSES."""
        known = outcome if outcome in (ANSWERED, ABSENT, LEFT, *CAUSES) else "fault"
        self._latency.labels(kind if kind in KINDS else "other", known).observe(seconds)

    def note_starts(self, n: int) -> None:
        """So many processes were started."""
        self._started.inc(n)

    def collect(self, status: dict[str, Any], line: Turns) -> Iterable[Metric]:
        """What is read at the moment; `status` is what the engine says of itself, empty where it is not up."""
        yield _gauge("seedscope_live_line", "Requests in this process's line for the live engine.", line.n_waiting)
        yield _gauge(
            "seedscope_live_under_way", "Requests of this process that ask the live engine now.", line.n_running
        )
        yield _gauge("seedscope_live_up", "Whether the live engine answers.", bool(status))
        if not status:
            return
        yield _gauge("seedscope_live_queue", "Questions that wait in the live engine.", status.get("waiting", 0))
        yield _gauge(
            "seedscope_live_device_bytes",
            "Dictionaries and models that it holds on its device.",
            status.get("bytes", 0),
        )
        resident = resident_bytes(int(status.get("pid", 0)))
        if resident is not None:
            yield _gauge("seedscope_live_resident_memory_bytes", "Memory of the live engine's process.", resident)


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, says, value)


def resident_bytes(pid: int) -> int | None:
    """Memory of a process; None where the system does not tell or there is no such process."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return None
