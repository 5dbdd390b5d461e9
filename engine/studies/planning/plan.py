"""A plan: time, memory and storage of every stage, from its work and a machine's constants, or a GPU's published figures."""

from dataclasses import asdict, dataclass
from typing import Any

from seedscope.engine.studies.planning.constants import PlanConstants
from seedscope.engine.studies.planning.gpus import BANDWIDTH_EFFICIENCY, PRODUCT_EFFICIENCY, Gpu
from seedscope.engine.studies.planning.shape import StudyShape
from seedscope.engine.studies.planning.work import ON_HOST, StageWork, study_work

FORMAT, FORMAT_VERSION = "seedscope.plan", 1


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan. Bytes and FLOPs are whole numbers; seconds are None where the constants have none for the stage."""

    stage: str
    flops: int
    read: int
    written: int
    memory: int  # peak of the process in this stage, libraries included
    stored: int  # that stay when the study is done
    wall_s: float | None
    cpu_s: float | None  # None as well for what a GPU computes
    remark: str


@dataclass(frozen=True)
class StudyPlanned:
    """What a study would take."""

    study: str
    stages: tuple[PlannedStage, ...]
    basis: str  # what the seconds rest on
    assumed: tuple[str, ...]

    @property
    def wall_s(self) -> float:
        """Of all stages whose seconds are known."""
        return sum(each.wall_s or 0.0 for each in self.stages)

    @property
    def memory(self) -> int:
        """The largest peak."""
        return max(each.memory for each in self.stages)

    @property
    def stored(self) -> int:
        """Bytes that stay."""
        return sum(each.stored for each in self.stages)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        stages = [asdict(stage) for stage in self.stages]
        total = {"wall_s": self.wall_s, "memory": self.memory, "stored": self.stored}
        return {
            "format": FORMAT, "version": FORMAT_VERSION, "study": self.study, "basis": self.basis, "assumed": list(self.assumed),
            "stages": stages, "total": total,
        }  # fmt: skip


def plan_study(study: StudyShape, constants: PlanConstants, *, gpu: Gpu | None = None, n_gpus: int = 1) -> StudyPlanned:
    """Plan a study on the machine of the constants, or with its device work on so many GPUs of one kind.

    With GPUs, members and pairs are shared out among them without loss, which is assumed; what stays on the CPU takes what the
    machine of the constants takes.
    """
    stages = tuple(_planned(work, constants, gpu, n_gpus) for work in study_work(study, on_gpu=gpu is not None))
    threads = "thread" if constants.n_threads == 1 else "threads"
    here = f"{constants.processor}, {constants.n_threads} {threads}, measured {constants.date}"
    if constants.remark:
        here += f" ({constants.remark})"
    basis = here
    if gpu is not None:
        basis = (
            f"planned, not measured: {n_gpus} x {gpu.name} at {PRODUCT_EFFICIENCY:.0%} of the published float32 peak and "
            f"{BANDWIDTH_EFFICIENCY:.0%} of the bandwidth (both assumed); what stays on the CPU as on {here}"
        )
    return StudyPlanned(study.name, stages, basis, study.assumed)


def _planned(work: StageWork, constants: PlanConstants, gpu: Gpu | None, n_gpus: int) -> PlannedStage:
    kept = sum(constants.kept_bytes.get(name, 0.0) * amount for name, amount in work.kept.items())
    wall: float | None
    cpu: float | None
    if not work.units and not work.flops:  # left out
        wall = cpu = 0.0
    elif work.stage not in constants.stages:
        wall = cpu = None
    elif gpu is None or work.stage in ON_HOST:
        cost = constants.stages[work.stage]
        wall = work.flops / constants.flops_wall + sum(cost.wall_s.get(name, 0.0) * n for name, n in work.units.items())
        cpu = work.flops / constants.flops_cpu + sum(cost.cpu_s.get(name, 0.0) * n for name, n in work.units.items())
    else:
        cost = constants.stages[work.stage]
        moved = sum(cost.wall_s.get(name, 0.0) * n for name, n in work.units.items())  # seconds on the CPU
        faster = gpu.bandwidth * BANDWIDTH_EFFICIENCY / constants.bandwidth
        wall = (work.flops / (gpu.fp32 * PRODUCT_EFFICIENCY) + moved / faster) / n_gpus
        cpu = None
    is_planned = bool(work.units or work.flops)
    return PlannedStage(
        work.stage, int(work.flops), int(work.read), int(work.written + kept),
        int(constants.memory + work.memory) if is_planned else 0, int(work.stored + kept), wall, cpu, work.remark,
    )  # fmt: skip
