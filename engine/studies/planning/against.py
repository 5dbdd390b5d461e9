"""A plan beside what a finished run of the same study took."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from seedscope.engine.contract.stage_times import FILE, RunTimes, read_runs, until_published
from seedscope.engine.studies.planning.plan import StudyPlanned
from seedscope.engine.studies.planning.work import STAGES

LARGE = 0.1  # share of the whole from which on a stage is judged by itself
OTHER = "other"  # stages that no plan has


class MeasuredStage(NamedTuple):
    """Seconds of one stage of a plan in a run."""

    wall_s: float
    cpu_s: float


class Comparison(NamedTuple):
    """One stage, or the total: predicted and measured seconds."""

    stage: str
    wall_s: float | None
    measured_wall_s: float
    cpu_s: float | None
    measured_cpu_s: float
    share: float  # of the measured CPU time

    @property
    def wall_ratio(self) -> float | None:
        """Predicted over measured; None where either is missing."""
        return self.wall_s / self.measured_wall_s if self.wall_s is not None and self.measured_wall_s else None

    @property
    def cpu_ratio(self) -> float | None:
        """The same of CPU time."""
        return self.cpu_s / self.measured_cpu_s if self.cpu_s is not None and self.measured_cpu_s else None


def finished_runs(root: Path, study: str) -> list[RunTimes]:
    """The runs that published a study; raises ValueError where none left its times."""
    file = root / study / FILE
    runs = until_published(read_runs(file))
    if not runs:
        raise ValueError(
            f"found no times of a finished run in {file}, expected the study as `seedscope run` or `seedscope demo` of this "
            "version leaves it"
        )
    return runs


def stage_of(name: str) -> str:
    """The stage of a plan that a stage of progress belongs to."""
    for stage, parts in STAGES.items():
        if any(part in name for part in parts):
            return stage
    return OTHER


def measured_stages(runs: Iterable[RunTimes]) -> dict[str, MeasuredStage]:
    """What runs took by stages of a plan, what lies outside all of them under `start`."""
    total = {stage: MeasuredStage(0.0, 0.0) for stage in STAGES}
    for run in runs:
        outside = [run.wall_s, run.cpu_s]
        for each in run.stages:
            before = total.setdefault(stage_of(each.stage), MeasuredStage(0.0, 0.0))
            total[stage_of(each.stage)] = MeasuredStage(before.wall_s + each.wall_s, before.cpu_s + each.cpu_s)
            outside = [outside[0] - each.wall_s, outside[1] - each.cpu_s]
        before = total["start"]
        total["start"] = MeasuredStage(before.wall_s + max(outside[0], 0.0), before.cpu_s + max(outside[1], 0.0))
    return total


def compare(plan: StudyPlanned, runs: list[RunTimes]) -> list[Comparison]:
    """Every stage that was planned or took time, and the total at the end."""
    measured = measured_stages(runs)
    whole = MeasuredStage(*(sum(values) for values in zip(*measured.values(), strict=True)))
    planned = {each.stage: each for each in plan.stages}
    rows = []
    for stage, took in measured.items():
        own = planned.get(stage)
        if own is None and took.wall_s < 0.01:
            continue
        wall, cpu = (own.wall_s, own.cpu_s) if own else (None, None)
        rows.append(Comparison(stage, wall, took.wall_s, cpu, took.cpu_s, took.cpu_s / max(whole.cpu_s, 1e-9)))
    sums = [
        sum(value or 0.0 for value in column) for column in zip(*((row.wall_s, row.cpu_s) for row in rows), strict=True)
    ]
    return [*rows, Comparison("total", sums[0], whole.wall_s, sums[1], whole.cpu_s, 1.0)]
