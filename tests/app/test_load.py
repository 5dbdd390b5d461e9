"""The server under a crowd that asks for pages, JSON, CSV and the live engine at once: it answers or says when to come again."""

import os
import random
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from support.crowd import Crowd, crowd
from support.serving import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="addresses of 127/8 and /proc")
D_SAE, N_MEMBERS = 96, 4


def draw(base: str, chance: random.Random) -> tuple[str, str]:
    """(kind, address) of what somebody asks for next."""
    feature = f"{base}/{chance.randrange(N_MEMBERS)}/{chance.randrange(D_SAE)}"
    theta = f"theta={chance.randrange(3000, 9500) / 10000}"
    paths = {
        "page": [f"{feature}?{theta}", f"{base}/features?{theta}&sort=density", f"{base}?{theta}", "/"],
        "json": [f"{feature}.json?{theta}", f"{base}/features.json?{theta}", f"{base}/buckets.json?{theta}"],
        "csv": [f"{base}/features.csv?{theta}", f"{base}/members.csv?a=0&b=1&{theta}"],
        "live": [
            f"{feature}/neighbours.json?k={chance.randrange(1, 9)}",
            f"{base}/members/match.json?a=0&b={chance.randrange(1, N_MEMBERS)}&{theta}",
            f"{base}/try.json?text={chance.randrange(100)}",
        ],
        "at once": ["/static/app.css", "/healthz"],
    }
    kind = chance.choices([*paths], (40, 20, 5, 25, 10))[0]
    return kind, chance.choice(paths[kind])


def figures(address: str) -> dict[str, float]:
    """What `/metrics` says of one process."""
    lines = urlopen(f"{address}metrics", timeout=20).read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def stormed(root: Path, base: str, *, n: int, seconds: float, pause_s: float) -> tuple[Crowd, float, float]:
    """(what came back, growth of memory in bytes over the second half, longest lag of the event loop's in seconds, rounded up)."""
    with serving("--root", root, "--port", 0, "--workers", 1) as (process, _, address):
        at = urlsplit(address)

        def ask(seconds: float) -> Crowd:
            return crowd(at.hostname, at.port, lambda chance: draw(base, chance), n=n, seconds=seconds, pause_s=pause_s)

        first = ask(seconds / 2)
        before, open_before = figures(address), descriptors(process.pid)
        seen = ask(seconds / 2)
        after = figures(address)
        assert descriptors(process.pid) <= open_before + n
        seen.statuses += first.statuses
        seen.first_failed = first.first_failed or seen.first_failed
        lags = {
            float(name.split('"')[1]): count
            for name, count in after.items()
            if name.startswith("seedscope_event_loop_lag_seconds_bucket")
        }
        lag = min(bound for bound, count in lags.items() if count == lags[float("inf")])
        process.terminate()
        process.wait(20)
        memory = "process_resident_memory_bytes"
        said = process.stderr.read()
        assert not re.search(r"Traceback|error:", said), said[:2000]
        return seen, after[memory] - before[memory], lag


@pytest.mark.slow
def test_a_crowd_is_answered_or_told_when_to_come_again(study_root, address):
    seen, _, _ = stormed(study_root, address, n=60, seconds=4, pause_s=1)
    assert set(seen.statuses) <= {"200", "503"}, (seen.statuses, seen.first_failed)
    assert seen.statuses["200"] > 50


@pytest.mark.slow
def test_two_hundred_clients_for_a_minute(study_root, address, capsys):
    seen, growth, lag = stormed(study_root, address, n=200, seconds=60, pause_s=2)
    with capsys.disabled():
        print(
            f"\n200 clients, 60 s: {dict(seen.statuses)}; memory {growth / 1e6:+.0f} MB in the second half; lag below {lag} s"
        )
        for kind, times in seen.seconds.items():
            print(
                f"  {kind}: {len(times)} answers, p50 {seen.quantile(kind, 0.5):.3f} s, p95 {seen.quantile(kind, 0.95):.3f} s"
            )
    assert set(seen.statuses) <= {"200", "503"}, (seen.statuses, seen.first_failed)
    assert seen.statuses["200"] > 500
    assert growth < 100e6
    assert lag <= 1  # 0.1 s on a machine of its own
    assert seen.quantile("at once", 0.5) < 1
