"""Constants of `seedscope plan`, from four small studies that are run here, a product and a copy.

Each study is run by `seedscope run` as a process of its own, with everything that it computes. A stage's seconds are what its
products would take at the rate of a bare one, and a sum over its counted units whose factors are fitted by non-negative least
squares to the four, relative to what each took.

In one thread (OMP_NUM_THREADS=1) CPU time stands for wall time as well: it hardly depends on what else the machine does meanwhile.
With more threads that wait for each other it does, so that such constants are to be measured on a machine that does nothing else.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from seedscope.engine.bench.harvest import Report
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.cores import processor_name
from seedscope.engine.contract.stage_times import RunTimes
from seedscope.engine.demo import stdlib
from seedscope.engine.studies.planning.against import MeasuredStage, finished_runs, measured_stages
from seedscope.engine.studies.planning.constants import Cost, PlanConstants, write_constants
from seedscope.engine.studies.planning.shape import GivenShape, study_shape
from seedscope.engine.studies.planning.work import STAGES, StageWork, study_work
from seedscope.engine.studies.studyfile.read import read_study_file

# Sizes that differ in every number, so that the units of a stage can be told apart: seeds, features, k, training tokens, batch,
# evaluation tokens.
STUDIES = {
    "narrow": (4, 256, 8, 200_000, 512, 40_000),
    "wide": (3, 1024, 8, 200_000, 512, 40_000),
    "many": (8, 256, 16, 200_000, 1024, 80_000),
    "dense": (2, 1536, 32, 100_000, 256, 80_000),
}
FILE = """[study]
name = "{name}"
[model]
path = "{model}"
hookpoint = "{hookpoint}"
[tokens]
source = "{source}"
n_ctx = 256
eval = {eval}
[[ensemble]]
name = "e"
train = {{ d_sae = {d_sae}, seeds = {seeds}, k = {k}, tokens = {tokens}, batch = {batch}, lr = 4e-3, silent_after = 50_000 }}
"""
N, D = 1024, 1024  # rows and width of the product
COPIED = 2**26  # float32 numbers that are copied
ROUNDS = 60  # of which the best counts: in the others something else took the core's units


NOTHING = (
    0.02  # of the longest: a stage that took less in a study found nothing to do there, and says nothing of its cost
)


# What small studies cannot tell, for there other things take longer: per feature and other member, from the generated study of
# 96 x 32,768 that `seedscope bench serve` publishes (manual, "Measured": 221 s, 8.8 and 5.9 GB).
PUBLISHED_ROW_S, STORE_ROW_BYTES = 7.4e-7, 33.0


class CalibrationRun(NamedTuple):
    """One of STUDIES, run."""

    work: dict[str, StageWork]
    measured: dict[str, MeasuredStage]
    peak: int
    kept: dict[str, int]  # bytes of parts, of those of matches and of counterparts, and of the store with its index


def lines(*, constants: Path, root: Path | None, report: Report) -> Iterator[BenchLine]:
    """Run the studies, under `root` where one is given (those that are there and finished are read), and write the constants."""
    load = os.getloadavg()[0]
    flops_wall, flops_cpu, bandwidth = rates()
    yield BenchLine(
        f"product {N} x {N} x {D}, float32", 2.0 * N * N * D / flops_wall, figure=f"{flops_wall / 1e9:.1f} GFLOP/s"
    )
    yield BenchLine(f"copy of {4 * COPIED / 2**20:.0f} MiB", None, figure=f"{bandwidth / 1e9:.1f} GB/s")
    runs = []
    with tempfile.TemporaryDirectory() if root is None else nullcontext(str(root)) as folder:
        for done, name in enumerate(STUDIES):
            runs.append(run := calibration_run(Path(folder), name))
            took = [sum(column) for column in zip(*run.measured.values(), strict=True)]
            yield BenchLine(f"study {name}", took[0], figure=f"{took[0]:.0f} s, {took[1]:.0f} s of CPU time")
            report(done + 1, len(STUDIES))
    date = datetime.now(UTC).date().isoformat()
    write_constants(
        PlanConstants(
            processor_name(), torch.get_num_threads(), date, version("seedscope"), flops_wall, flops_cpu, bandwidth,
            memory=float(np.median([run.peak - max(each.memory for each in run.work.values()) for run in runs])),
            stages=fitted_costs(runs, flops_wall, flops_cpu), kept_bytes=fitted_bytes(runs),
            remark=f"load average {load:.1f} when it began",
        ), constants,
    )  # fmt: skip


def calibration_run(root: Path, name: str) -> CalibrationRun:
    """Run one of STUDIES, or read it where it is finished; raises RuntimeError with the last line of one that fails."""
    seeds, d_sae, k, tokens, batch, n_eval = STUDIES[name]
    root.mkdir(parents=True, exist_ok=True)
    file = root / f"{name}.toml"
    settings = {"seeds": seeds, "d_sae": d_sae, "k": k, "tokens": tokens, "batch": batch, "eval": n_eval}
    file.write_text(
        FILE.format(
            name=name, model=stdlib.MODEL_DIR, hookpoint=stdlib.STUDY.hookpoint, source=stdlib.SOURCE, **settings
        )
    )
    try:
        runs = finished_runs(root, name)
    except ValueError:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "seedscope.app.cli",
            "run",
            str(file),
            "--root",
            str(root),
            "--quiet",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"study {name} failed: {done.stderr.strip().splitlines()[-1:]}") from None
        runs = finished_runs(root, name)
    shape = study_shape(read_study_file(file), GivenShape())
    work = {each.stage: each for each in study_work(shape, on_gpu=False)}
    return CalibrationRun(work, measured_stages(runs), _peak(runs), _kept(root / name))


def _peak(runs: Sequence[RunTimes]) -> int:
    return max(run.peak_bytes for run in runs)


def _kept(study: Path) -> dict[str, int]:
    def size(pattern: str) -> int:
        return sum(file.stat().st_size for file in study.glob(pattern) if file.is_file())

    of_parts = {
        name: size(f"parts/*/{folder}/**/*") for name, folder in (("matches", "match"), ("counterparts", "function"))
    }
    return {"parts": size("parts/**/*"), "store": size("study-*") + size("study-*/**/*")} | of_parts


def rates() -> tuple[float, float, float]:
    """FLOP/s of a product, FLOP per CPU second of it, and bytes/s of a copy; the best of ROUNDS."""
    a, b = torch.randn(N, D), torch.randn(D, N)
    source, target = torch.randn(COPIED), torch.empty(COPIED)
    products, copies = [], []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        torch.mm(a, b)
        products.append((time.perf_counter() - wall, time.process_time() - cpu))
        wall = time.perf_counter()
        target.copy_(source)
        copies.append(time.perf_counter() - wall)
    flops = 2.0 * N * N * D
    wall, cpu = (min(times) for times in zip(*products, strict=True))
    return flops / (cpu if torch.get_num_threads() == 1 else wall), flops / cpu, 8.0 * COPIED / min(copies)


def fitted_costs(runs: Sequence[CalibrationRun], flops_wall: float, flops_cpu: float) -> dict[str, Cost]:
    """Seconds per unit of every stage, none negative."""
    costs = {}
    for stage in STAGES:
        done = [run for run in runs if stage in run.work and run.work[stage].units]
        if not done:
            continue
        works, names = [run.work[stage] for run in done], list(done[0].work[stage].units)
        cpu = _fit(works, names, [run.measured[stage].cpu_s for run in done], flops_cpu)
        wall = cpu
        if torch.get_num_threads() > 1:
            wall = _fit(works, names, [run.measured[stage].wall_s for run in done], flops_wall)
        costs[stage] = Cost(wall, cpu)
    return costs


def _fit(works: Sequence[StageWork], names: Sequence[str], seconds: Sequence[float], rate: float) -> dict[str, float]:
    """Seconds per unit, those of units that take none left out."""
    known = {"rows": PUBLISHED_ROW_S} if works[0].stage == "publish" else {}
    names = [name for name in names if name not in known]
    units = np.array([[work.units.get(name, 0.0) for name in names] for work in works])
    taken = np.maximum(seconds, 1e-6)
    of_known = np.array([sum(each * work.units.get(name, 0.0) for name, each in known.items()) for work in works])
    left = np.maximum(taken - of_known - np.array([work.flops for work in works]) / rate, 0.0)
    scale = np.maximum(units.max(0), 1e-30)  # columns of the same size
    told = taken > NOTHING * taken.max()
    found, _ = nnls((units / scale / taken[:, None])[told], (left / taken)[told])
    return known | {
        name: float(value / size) for name, value, size in zip(names, found, scale, strict=True) if value > 0
    }


def fitted_bytes(runs: Sequence[CalibrationRun]) -> dict[str, float]:
    """Stored bytes per amount of StageWork.kept."""
    amounts: list[dict[str, float]] = []
    for run in runs:
        total: dict[str, float] = {}
        for work in run.work.values():
            for name, amount in work.kept.items():
                total[name] = total.get(name, 0.0) + amount
        amounts.append(total)

    def ratio(kind: str, taken: Sequence[float]) -> float:
        return sum(taken) / max(sum(total.get(f"parts: {kind}", 0.0) for total in amounts), 1.0)

    pairwise = {kind: [float(run.kept[kind]) for run in runs] for kind in ("matches", "counterparts")}
    rest = [run.kept["parts"] - run.kept["matches"] - run.kept["counterparts"] for run in runs]
    found = {f"parts: {kind}": ratio(kind, taken) for kind, taken in pairwise.items()}
    found |= {"parts: features": ratio("features", rest), "store: rows": STORE_ROW_BYTES}
    names = ["store: studies", "store: members", "store: features"]
    columns = np.array([[total[name] for name in names] for total in amounts])
    taken = np.array(
        [run.kept["store"] - STORE_ROW_BYTES * total["store: rows"] for run, total in zip(runs, amounts, strict=True)]
    )
    values, _ = nnls(columns / taken[:, None], np.ones(len(runs)))
    return found | {name: float(value) for name, value in zip(names, values, strict=True)}
