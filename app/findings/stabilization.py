"""Whether training brought members together: a verdict from agreement at every checkpoint, the start included."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from seedscope.engine.contract.tables.training import AgreementPoint, Checkpoint, CosineGeometry, TracePoint

EQUAL_START = 0.01  # distance from which on starts are not one

Kind = Literal["shown", "not shown", "shared start"]
Measure = Literal["Hungarian distance", "1 − mean best cosine"]


@dataclass(frozen=True)
class Stabilization:
    """Whether training brought members together, judged by how the measure fell from the start to the end."""

    kind: Kind
    measure: Measure
    start: float
    end: float
    random: float  # of random dictionaries of the same size
    centred_start: float  # the mean direction taken out
    centred_end: float
    live_start: float | None
    live_end: float | None
    fall: float
    n_pairs: int


@dataclass(frozen=True)
class Trajectory:
    """Everything of one ensemble but what its features have; lists that were not computed are empty."""

    trace: list[TracePoint]
    checkpoints: list[Checkpoint]
    agreement: list[AgreementPoint]
    geometry: list[CosineGeometry]

    def of(self, population: str) -> list[AgreementPoint]:
        """Agreement among all, or among living features."""
        return [row for row in self.agreement if row.population == population]


def judge_stabilization(trajectory: Trajectory, shared_start: str) -> Stabilization | None:
    """The verdict; None where agreement was not measured.

    Shown where members began apart, every pair ends nearer than any pair began, and the fall is no work of the mean direction
    alone: what is left of every row without it comes nearer, too.
    """
    points, live = trajectory.of("all"), trajectory.of("live")
    if len(points) < 2:
        return None
    first, last, before, after = points[0], points[-1], trajectory.geometry[0], trajectory.geometry[-1]
    levels = _distances(first, last, before, after) or _best_cosines(first, last, before, after)
    is_distance = levels.measure == "Hungarian distance"
    alive = [each.distance if is_distance else 1 - each.best_cosine for each in live]
    is_live_known = {first.step, last.step} <= {row.step for row in live}
    has_fallen = levels.farthest_end < levels.nearest_start and levels.centred_end < levels.centred_start
    kind: Kind = "shown" if has_fallen else "not shown"
    return Stabilization(
        kind="shared start" if shared_start == "yes" or levels.start < EQUAL_START else kind,
        measure=levels.measure,
        start=levels.start,
        end=levels.end,
        random=levels.random,
        centred_start=levels.centred_start,
        centred_end=levels.centred_end,
        live_start=alive[0] if is_live_known else None,
        live_end=alive[-1] if is_live_known else None,
        fall=levels.start - levels.end,
        n_pairs=first.n_pairs,
    )


class _Levels(NamedTuple):
    """How far members are apart at the start and at the end, by one measure."""

    measure: Measure
    start: float  # mean over pairs, as is `end`
    nearest_start: float  # of the pair that began nearest
    end: float
    farthest_end: float
    centred_start: float  # the mean direction taken out
    centred_end: float
    random: float  # of random dictionaries


def _distances(
    first: AgreementPoint, last: AgreementPoint, before: CosineGeometry, after: CosineGeometry
) -> _Levels | None:
    """By the distance of the one-to-one matching; None where that was not computed."""
    start, nearest_start, end, farthest_end = first.distance, first.distance_low, last.distance, last.distance_high
    centred_start, centred_end, random = before.centred_distance, after.centred_distance, before.random_distance
    if start is None or nearest_start is None or end is None or farthest_end is None:
        return None
    if centred_start is None or centred_end is None or random is None:
        return None
    return _Levels("Hungarian distance", start, nearest_start, end, farthest_end, centred_start, centred_end, random)


def _best_cosines(
    first: AgreementPoint, last: AgreementPoint, before: CosineGeometry, after: CosineGeometry
) -> _Levels:
    """By one less the mean best cosine."""
    return _Levels(
        "1 − mean best cosine",
        start=1 - first.best_cosine,
        nearest_start=1 - first.best_cosine_high,
        end=1 - last.best_cosine,
        farthest_end=1 - last.best_cosine_low,
        centred_start=1 - before.centred_best_cosine,
        centred_end=1 - after.centred_best_cosine,
        random=1 - before.random_best_cosine,
    )
