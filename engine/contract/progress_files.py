"""What a training tells whoever watches it: one file per ensemble beside the progress file. Standard library only."""

from dataclasses import dataclass

PROGRESS_VARIABLE = (
    "SEEDSCOPE_PROGRESS"  # environment: a file in which running commands keep their StageProgress, as JSON
)
MOST_MEMBERS = 32  # whose values are told; of more, evenly spaced ones
PATTERN = "training.*.json"  # names of the files


@dataclass(frozen=True)
class Moment:
    """Members at one moment of their training; lists hold one value per seed, None where it is no number."""

    step: int  # steps that were made
    tokens: int  # that each member had seen
    seeds: list[int]  # some of all where members are trained in groups
    loss: list[float | None]  # of one batch; empty behind the last step
    ev: list[float | None]
    l0: list[float | None]
    dead: list[float | None]  # share of features silent for long
    agreement: float | None  # mean best cosine between members; None for one member


@dataclass(frozen=True)
class Curves:
    """How the training of one ensemble goes, in the order of steps."""

    study: str
    ensemble: str
    variant: str
    begun: float  # Unix seconds
    n_members: int
    n_tokens: int  # that each member will see
    moments: list[Moment]

    @property
    def has_ended(self) -> bool:
        """Whether all members are trained."""
        return sum(len(moment.seeds) for moment in self.moments if not moment.loss) >= min(self.n_members, MOST_MEMBERS)

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"training.{self.study}.{self.ensemble}.json"


@dataclass(frozen=True)
class StageProgress:
    """How far the stage is that a command works on."""

    stage: str
    unit: str  # of done and total
    done: int
    total: int | None  # None before the first report
    rate: float  # units per second since the stage began
