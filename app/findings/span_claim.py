"""Whether a span of features carries over from seed to seed: a verdict from mean captured energies and their spreads."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from typing import Literal

NEARLY = 0.8  # share of what a span captures of its own features above chance, from which on it carries over
DEVIATIONS = 2.0  # of single pairs: a smaller difference is none
FEWEST_PAIRS = 6  # ordered pairs of three members; the spread of fewer says nothing
CONTROLS = ("random_set", "stable", "activations", "random_subspace")

Compared = Literal["more", "equal", "less"]


@dataclass(frozen=True)
class EnergyAtRank:
    """Captured energy at one rank."""

    mean: float
    spread: float | None  # standard deviation over ordered pairs or members; None: it is exact
    n_pairs: int


@dataclass(frozen=True)
class Claim:
    """What holds of "another seed's span captures unstable features nearly as well as their own"."""

    carries: Literal["nearly", "partly", "no", "nothing"]  # nothing: even their own span captures no more than chance
    kept: float | None  # of what their own span captures above chance, another seed's; None where that is nothing
    against: dict[str, Compared | None]  # another seed's span beside each control's; None: too few pairs to tell

    @property
    def holds(self) -> bool:
        """Whether the claim holds as the paper puts it."""
        return self.carries == "nearly"

    @property
    def is_particular(self) -> bool | None:
        """Whether random living features of the same number capture less; None where nobody can tell."""
        compared = self.against.get("random_set")
        return None if compared is None else compared == "more"


def judge_claim(levels: Mapping[str, EnergyAtRank]) -> Claim | None:
    """The verdict on curves of SpanCurve at one rank; None where a curve it needs stops before that rank."""
    if not {"within", "cross", "random_subspace"} <= levels.keys():
        return None
    within, cross, chance = (levels[name] for name in ("within", "cross", "random_subspace"))
    enough = cross.n_pairs >= FEWEST_PAIRS
    against = {name: compare(cross, levels[name]) if enough else None for name in CONTROLS if name in levels}
    if compare(within, chance) != "more":
        return Claim("nothing", None, against)
    kept = (cross.mean - chance.mean) / (within.mean - chance.mean)
    if compare(cross, chance) != "more":
        return Claim("no", kept, against)
    return Claim("nearly" if kept >= NEARLY else "partly", kept, against)


def compare(a: EnergyAtRank, b: EnergyAtRank) -> Compared:
    """More or less where the means differ by over DEVIATIONS of both spreads together."""
    difference, noise = a.mean - b.mean, DEVIATIONS * hypot(a.spread or 0, b.spread or 0)
    return "more" if difference > noise else "less" if difference < -noise else "equal"
