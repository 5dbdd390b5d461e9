"""Progress files, as a running command writes them for the dashboard: JSON of the dataclasses here. Standard library only.

A command keeps its running stage (`StageProgress`) in the file that the environment variable PROGRESS_VARIABLE names.
Training writes its curves (`Curves`) beside that file, one file per ensemble.
"""

from dataclasses import dataclass

PROGRESS_VARIABLE = "SEEDSCOPE_PROGRESS"
MOST_MEMBERS = 32  # whose values the curves hold; of more members, evenly spaced ones
PATTERN = "training.*.json"  # names of the files of curves


@dataclass(frozen=True)
class Moment:
    """Members at one moment of their training; lists hold one value per seed, None where it is not finite."""

    step: int  # optimiser steps made so far
    tokens: int  # that each member has seen so far
    seeds: list[int]  # where members are trained in groups, those of the group
    loss: list[float | None]  # training loss of one batch; empty after the last step
    ev: list[float | None]  # explained variance, at most 1
    l0: list[float | None]  # mean number of active features per token
    dead: list[float | None]  # share of features that have not fired for TrainConfig.silent_after tokens, 0 to 1
    agreement: float | None  # mean best cosine between members, -1 to 1; None for one member


@dataclass(frozen=True)
class Curves:
    """Training curves of one ensemble, in the order of steps."""

    study: str
    ensemble: str
    variant: str
    begun: float  # when training began, Unix seconds
    n_members: int
    n_tokens: int  # that each member will have seen at the end
    moments: list[Moment]

    @property
    def has_ended(self) -> bool:
        """Whether all members are trained: each then has a moment without loss."""
        return sum(len(moment.seeds) for moment in self.moments if not moment.loss) >= min(self.n_members, MOST_MEMBERS)

    @property
    def file(self) -> str:
        """Name of the file that holds these curves."""
        return f"training.{self.study}.{self.ensemble}.json"


@dataclass(frozen=True)
class StageProgress:
    """The stage that a command works on, and how far it is."""

    stage: str
    unit: str  # of done and total
    done: int
    total: int | None  # None before the first report
    rate: float  # units per second since the stage began
