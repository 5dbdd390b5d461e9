"""Constants of the cost model: what a machine takes for a unit of work, read from the file that `seedscope bench plan` writes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seedscope.engine.contract.files import write_whole

FORMAT, FORMAT_VERSION = "seedscope.plan-constants", 1
DEFAULT = (
    Path(__file__).parent / "measured.json"
)  # written by `seedscope bench plan --constants`, on the machine it names


@dataclass(frozen=True)
class Cost:
    """What a stage takes beside its products: seconds per unit, by the names of engine.studies.planning.work."""

    wall_s: Mapping[str, float]
    cpu_s: Mapping[str, float]


@dataclass(frozen=True)
class PlanConstants:
    """One machine's."""

    processor: str
    n_threads: int  # that products were computed in
    date: str  # ISO, of the measurement
    seedscope: str  # version
    flops_wall: float  # FLOP/s of a product of float32 matrices on all cores
    flops_cpu: float  # FLOP per second of CPU time of the same
    bandwidth: float  # bytes/s that are read and written while a large array is copied
    memory: float  # bytes of the process that has loaded its libraries and the embedded model
    stages: Mapping[str, Cost]
    kept_bytes: Mapping[str, float]  # stored bytes per amount of StageWork.kept
    remark: str = ""  # on the circumstances


def read_constants(path: Path | None = None) -> PlanConstants:
    """The constants of a file, or those that the package brings; raises ValueError where the file holds none."""
    file = path or DEFAULT
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        if (content["format"], content["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"it says {content['format']} {content['version']}")
        fields = {name: value for name, value in content.items() if name not in ("format", "version")}
        stages = {name: Cost(**cost) for name, cost in fields.pop("stages").items()}
        return PlanConstants(**fields, stages=stages)
    except OSError as error:
        raise ValueError(
            f"cannot read the constants in {file} ({error.strerror}); measure them: seedscope bench plan --constants FILE"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} holds no constants of a plan ({error}), expected a file that `seedscope bench plan --constants FILE` wrote"
        ) from None


def write_constants(constants: PlanConstants, path: Path) -> None:
    """Write them as JSON."""
    write_whole(path, json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **asdict(constants)}, indent=1) + "\n")
