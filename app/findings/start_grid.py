"""The grid of constraints, starts and preprocessing: which ensemble stands where, and how far its members moved in training."""

from dataclasses import dataclass

CONSTRAINTS = ("none", "A", "RA", "RA unprojected")
STARTS = ("shared", "independent", "random")
PREPROCESSING = ("raw", "centred", "standardised")


@dataclass(frozen=True)
class Cell:
    """One place of the grid: constraint, start, preprocessing; and the ensemble that stands there."""

    constraint: str  # one of CONSTRAINTS
    start: str  # one of STARTS
    preprocessing: str  # one of PREPROCESSING
    ensemble: str
    variant: str
    group: int  # ensembles of one group differ in these three alone
    equals: bool  # with W = 1 this place is that of no constraint: the ensemble is that one's
    shared_start: str


@dataclass(frozen=True)
class Course:
    """Where a cell's members stand at the start and at the end; distances and cosines are means over pairs of members.

    In the space of training. What was not computed is None.
    """

    n_members: int
    n_pairs: int
    steps: int  # of the end
    start_distance: float | None
    start_low: float | None  # smallest and largest of the pairs
    start_high: float | None
    end_distance: float | None
    end_low: float | None
    end_high: float | None
    start_live: float | None  # distances of features that are active on the evaluation tokens at that step
    end_live: float | None
    start_cosine: float  # mean best cosine
    end_cosine: float
    start_centred: float | None  # distance after the mean direction was taken out of every row
    end_centred: float | None
    start_share: float | None  # squared length of the mean of a dictionary's unit rows
    end_share: float | None
    random_distance: float | None  # of random unit dictionaries of that size
    random_cosine: float | None
    ev: float | None
    dead: float | None  # share of features


@dataclass(frozen=True)
class MeasuredCell:
    """A cell whose members' distances are known at the start and at the end; `low` and `high` are of the pairs."""

    cell: Cell
    course: Course
    start: float
    start_low: float
    start_high: float
    end: float
    end_low: float
    end_high: float

    @classmethod
    def of(cls, cell: Cell, course: Course) -> "MeasuredCell | None":
        """None where one-to-one matching was not done."""
        start, start_low, start_high = course.start_distance, course.start_low, course.start_high
        end, end_low, end_high = course.end_distance, course.end_low, course.end_high
        if start is None or start_low is None or start_high is None:
            return None
        if end is None or end_low is None or end_high is None:
            return None
        return cls(cell, course, start, start_low, start_high, end, end_low, end_high)
