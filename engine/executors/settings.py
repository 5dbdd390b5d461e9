"""What an `[executor]` table says: where units run, and what one of them takes."""

from dataclasses import dataclass, fields
from pathlib import Path

KINDS = ("local", "ray", "slurm")
EVERYWHERE = ("kind", "cpus", "members", "retries")
# Settings beside those of EVERYWHERE.
SETTINGS_OF = {
    "local": ("workers",),
    "ray": ("address", "gpus", "memory"),
    "slurm": ("partition", "gpus", "memory", "array", "time", "logs"),
}
IN_MINUTES, AT_ONCE = 60, 1000


@dataclass(frozen=True)
class ExecutorSettings:
    """Where units run, and what one of them takes; raises ValueError for a setting that the kind does not have."""

    kind: str = "local"
    cpus: int | None = None
    """Threads of a unit, and what it asks a scheduler for; None: as many as this process computes with. Sums round by it."""
    members: int | None = None
    """SAEs trained together in one unit; None: all that fit into memory. Rounding in training depends on it."""
    retries: int = 2
    """How often a unit is begun again that was lost with its process or its node; one that raised is not."""
    workers: int = 1
    """local: units at once, each in a process; with 1 they run in this process."""
    address: str | None = None
    """ray: of a cluster that this machine is a node of, HOST:PORT or auto; `local` starts one here. None: $RAY_ADDRESS, or auto."""
    gpus: int = 0
    memory: float | None = None
    """GB of a unit; None: the scheduler's own."""
    partition: str | None = None
    """slurm: None: the cluster's own."""
    array: int = AT_ONCE
    """slurm: units in one job array, and so at most at once."""
    time: int = IN_MINUTES
    """slurm: minutes of a unit; one that takes longer is queued again, and goes on behind what it kept."""
    logs: Path | None = None
    """slurm: folder of scripts and logs, shared with the nodes; None: one in the root."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"executor is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if misplaced := self.misplaced():
            has = ", ".join((*EVERYWHERE[1:], *SETTINGS_OF[self.kind]))
            raise ValueError(f"executor {self.kind} has no setting {misplaced[0]}, expected some of {has}")

    def misplaced(self) -> list[str]:
        """Settings that were given and that the kind does not have."""
        allowed = (*EVERYWHERE, *SETTINGS_OF[self.kind])
        return [
            each.name for each in fields(self) if each.name not in allowed and getattr(self, each.name) != each.default
        ]
