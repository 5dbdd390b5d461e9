"""Datasette over the same rows: a SQLite table of the scalar feature columns with indexes, asked for the same lists.

The buckets at the study's own theta are a column there, as someone would prepare who publishes such a table. Datasette gets
time to count exactly: its limits on queries and facets are lifted, and it suggests no further facets.
"""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from seedscope.engine.bench.dashboard import Dashboard
from seedscope.engine.bench.generated_study import ENSEMBLE, StudySize
from seedscope.engine.bench.load import Load, Plan, ask_load
from seedscope.engine.bench.outside import INTERPRETER
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.bench.requests import BASE
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.stability import EPSILON, THETA, buckets, count_matches
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.store.database import StoreReader

DATASETTE = "datasette"
_TABLE = "features"
_SCALARS = (
    "seed", "feature", "density", "n_active", "mean_activation", "max_activation", "worth_ev", "worth_loss", "token_entropy",
    "top_token_share", "trigger", "trigger_share", "trigger_what", "explanation", "score",
)  # fmt: skip
_TEXT = ("trigger", "trigger_what", "explanation", "bucket")
_WHOLE = ("seed", "feature", "n_active", "n_matched")
_COLUMNS = (*_SCALARS, "n_matched", "bucket")
_INDEXED = ("seed", "bucket", "density", "trigger")
_FACETS = [("_facet", name) for name in ("bucket", "seed", "trigger")]
_SETTINGS = {
    "sql_time_limit_ms": 120_000, "facet_time_limit_ms": 120_000, "suggest_facets": "off", "default_page_size": 50,
    "default_facet_size": 200, "max_returned_rows": 1000,
}  # fmt: skip
_START_S = 60
Pair = list[tuple[str, object]]


def command() -> str | None:
    """The datasette command: on the path, or beside the interpreter that has the peers; None where there is none."""
    beside = Path(os.environ.get(INTERPRETER, "")).with_name(DATASETTE) if os.environ.get(INTERPRETER) else None
    return shutil.which(DATASETTE) or (str(beside) if beside and beside.is_file() else None)


def datasette_lines(
    dashboard: Dashboard, store: Path, size: StudySize, root: Path, *, n: int, seconds: float
) -> Iterator[BenchLine]:
    """One line per kind of list, ours and Datasette's in turns, and one of their sum."""
    program = command()
    name = DATASETTE if program is None else subprocess.check_output([program, "--version"], text=True).strip()
    name = name.replace(", version", "")
    of_size, rng = f"{size.n_members} x {size.d_sae:,}", np.random.default_rng(1)
    peer = None if program is None else _Datasette(program, sqlite_of(store, size, root))
    ours_sum, theirs_sum = 0.0, 0.0
    try:
        for kind, draw in _kinds(size, rng).items():
            drawn = list(dict.fromkeys(draw() for _ in range(n)))
            ours = ask_load(Plan(dashboard.host, dashboard.port, [mine for mine, _ in drawn], seconds=seconds))
            theirs = (
                Load()
                if peer is None
                else ask_load(Plan("127.0.0.1", peer.port, [path for _, path in drawn], seconds=seconds))
            )
            mine, other = (float(np.median(each.seconds)) if each.seconds else None for each in (ours, theirs))
            ours_sum, theirs_sum = ours_sum + (mine or 0), theirs_sum + (other or 0)
            answer: float | str = "not installed" if peer is None else "no answer" if other is None else other
            remark = f"{len(ours.seconds)} and {len(theirs.seconds)} requests alone"
            times = f"; {other / mine:.3g} x" if mine and other else ""
            failed = {side: load.n_failed for side, load in (("ours", ours), ("theirs", theirs)) if load.n_failed}
            remark += times + (f"; failed: {failed}" if failed else "")
            if peer is not None:
                remark += _compared_totals(dashboard, peer.port, *drawn[-1])
            yield BenchLine(f"{kind}, {of_size}", mine, peers_s={name: answer}, goal="never slower", remark=remark)
    finally:
        if peer is not None:
            peer.stop()
    total: dict[str, float | str] = {name: theirs_sum if peer is not None else "not installed"}
    times = f"{theirs_sum / ours_sum:.3g} x" if theirs_sum and ours_sum else ""
    yield BenchLine(f"one of each of these lists, {of_size}", ours_sum, peers_s=total, goal="100 x", remark=times)


def _compared_totals(dashboard: Dashboard, port: int, mine: str, theirs: str) -> str:
    """Whether both find as many features, as the end of a remark: who answers another question is no peer."""
    totals = []
    for address, path, name in (
        (f"{dashboard.host}:{dashboard.port}", mine, "total"),
        (f"127.0.0.1:{port}", theirs, "filtered_table_rows_count"),
    ):
        place, _, query = path.partition("?")
        with urllib.request.urlopen(
            f"http://{address}{place.removesuffix('.json')}.json?{query}", timeout=300
        ) as answer:
            totals.append(json.load(answer)[name])
    return (
        f"; both find {totals[0]:,}" if totals[0] == totals[1] else f"; TOTALS DIFFER: {totals[0]:,} and {totals[1]:,}"
    )


def _kinds(size: StudySize, rng: np.random.Generator) -> dict[str, Callable[[], tuple[str, str]]]:
    """{kind: draws (our address, Datasette's)}; a bound on densities keeps addresses from repeating."""

    def bound(low: float, high: float) -> str:
        return f"{10 ** rng.uniform(low, high):.4g}"

    def paths(ours: Pair, theirs: Pair, *, as_json: bool = False) -> tuple[str, str]:
        suffix, facets = (".json", []) if as_json else ("", _FACETS)
        shown = [("_sort_desc", "density"), *facets]
        place = "features/page.json" if as_json else "features"  # neither counts facets in its JSON
        mine = f"{BASE}/{place}?{urlencode([*ours, ('sort', 'density')])}"
        return mine, f"/{_TABLE}/{_TABLE}{suffix}?{urlencode([*theirs, *shown])}"

    def by_density() -> tuple[str, str]:
        most = bound(-2, -0.6)
        return paths([("density_max", most)], [("density__lte", most)])

    def in_bucket() -> tuple[str, str]:
        bucket, least = ("stable", "middle", "unstable")[rng.integers(3)], bound(-6, -5)
        return paths([("bucket", bucket), ("density_min", least)], [("bucket", bucket), ("density__gte", least)])

    def of_trigger() -> tuple[str, str]:
        trigger, least = TRIGGERS[rng.integers(len(TRIGGERS))], bound(-6, -5)
        return paths([("trigger", trigger), ("density_min", least)], [("trigger", trigger), ("density__gte", least)])

    def seed_and_bucket(*, as_json: bool) -> tuple[str, str]:
        seed, bucket = int(rng.integers(size.n_members)), ("stable", "middle", "unstable")[rng.integers(3)]
        both: Pair = [("seed", seed), ("bucket", bucket)]
        least = bound(-6, -5)
        return paths([*both, ("density_min", least)], [*both, ("density__gte", least)], as_json=as_json)

    return {
        "list by density, three facets": by_density,
        "list of a bucket, three facets": in_bucket,
        "list of a trigger, three facets": of_trigger,
        "list of one seed and bucket, three facets": lambda: seed_and_bucket(as_json=False),
        "list of one seed and bucket, JSON without facets": lambda: seed_and_bucket(as_json=True),
    }


class _Datasette:
    """Datasette over one file in a process of its own."""

    def __init__(self, program: str, file: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = [part for name, value in _SETTINGS.items() for part in ("--setting", name, str(value))]
        call = [program, "serve", "-i", str(file), "--host", "127.0.0.1", "--port", str(self.port), *settings]
        self._process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.perf_counter() + _START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/versions.json", timeout=5).close()
                return
            except OSError:
                if time.perf_counter() > until or self._process.poll() is not None:
                    self.stop()
                    raise RuntimeError("datasette did not start") from None
                time.sleep(0.2)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def sqlite_of(store: Path, size: StudySize, root: Path) -> Path:
    """The features of a store as a SQLite file with indexes, written member by member; the one that is there is taken."""
    file = root / f"peer-{store.stem}" / f"{_TABLE}.db"
    if file.is_file():
        return file
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    connection = sqlite3.connect(unfinished)
    connection.execute("PRAGMA journal_mode = OFF")
    # With types, or numbers in an address, which reach SQLite as text, would be equal to no number in the table.
    kinds = ("TEXT" if name in _TEXT else "INTEGER" if name in _WHOLE else "REAL" for name in _COLUMNS)
    definition = ", ".join(f"{name} {kind}" for name, kind in zip(_COLUMNS, kinds, strict=True))
    connection.execute(f"CREATE TABLE {_TABLE} ({definition})")
    insert = f"INSERT INTO {_TABLE} VALUES ({', '.join('?' * len(_COLUMNS))})"
    with StoreReader(store) as reader:
        for seed in range(size.n_members):
            rows = reader.table(Feature, (*_SCALARS, "dead", "cosines"), ensemble=ENSEMBLE, seed=seed)
            cosines = rows["cosines"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
            n_matched = count_matches(cosines, THETA)
            dead = rows["dead"].to_numpy(zero_copy_only=False).astype(bool)
            bucket = buckets(n_matched, cosines.shape[1], dead, EPSILON)
            columns = [rows[name].to_pylist() for name in _SCALARS]
            connection.executemany(insert, zip(*columns, n_matched.tolist(), bucket.tolist(), strict=True))
    for name in _INDEXED:
        connection.execute(f"CREATE INDEX by_{name} ON {_TABLE} ({name})")
    connection.execute("ANALYZE")
    connection.commit()
    connection.close()
    unfinished.rename(file)
    return file
