"""Paper B's signatures of agreement that training did not bring about, judged by a study's own numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from seedscope.app.store.starts import Cell, Course

EQUAL_START = 0.01  # distance up to which members begin at the same rows
Held = tuple[Cell, Course]
_CONSTRAINT = {"none": "No constraint"}
_START = {"shared": "shared k-means", "independent": "k-means of their own", "random": "random"}
Verdict = Literal["reproduced", "partly", "not reproduced", "cannot be asked"]


@dataclass(frozen=True)
class Signature:
    """One claim, whether it holds here, and the numbers that say so."""

    claim: str
    verdict: Verdict
    says: list[str]


@dataclass(frozen=True)
class Reference:
    """A Hungarian distance that paper B released, on other data."""

    constraint: str
    start: str
    centred: float
    raw: float


# DINOv2-small, 76,800 x 384, 200 atoms, TopK 3, delta 0.1.
REFERENCE = (
    Reference("none", "random", 0.419, 0.283),
    Reference("RA", "k-means", 0.245, 0.087),
    Reference("RA unprojected", "k-means", 0.081, 0.089),
    Reference("none", "k-means", 0.072, 0.076),
)
REFERENCE_RANDOM = 0.868


def signatures(held: Sequence[Held]) -> list[Signature]:
    """Every signature; `held` are the ensembles of the grid with their courses, each once, distances known."""
    return [_shared(held), _independent(held), _constraint(held), _inflation(held)]


def _shared(held: Sequence[Held]) -> Signature:
    claim = "A shared start begins at distance 0 and cannot go below it"
    own = [(cell, course) for cell, course in held if cell.start == "shared"]
    if not own:
        return Signature(claim, "cannot be asked", ["No ensemble’s members share their start."])
    begins = max(course.start_distance for _, course in own)
    apart = [(cell, course) for cell, course in own if course.end_distance > course.start_distance]
    says = [
        f"The {_n(own, 'ensemble')} of a shared start {'begins' if len(own) == 1 else 'begin'} at "
        f"{'most ' if begins >= 0.0005 else ''}{begins:.3f} and {'ends' if len(own) == 1 else 'end'} at {_range(own, _end)}: "
        "training can only have taken members apart, so that how alike they still are says nothing of convergence."
    ]
    lives = [(cell, course) for cell, course in own if course.end_live is not None]
    if lives:
        higher = sum(course.end_live > course.end_distance for _, course in lives)
        says.append(
            f"Among living features alone they end at {_range(lives, lambda c: c.end_live)}, further apart than all features in "
            f"{higher} of {len(lives)}"
            + (": features that died stay where all began, and count as agreement." if 2 * higher > len(lives) else ".")
        )
    whole = begins <= EQUAL_START and len(apart) == len(own)
    return Signature(claim, "reproduced" if whole else "partly" if apart else "not reproduced", says)


def _independent(held: Sequence[Held]) -> Signature:
    claim = "Independent starts must fall from the random level to show stabilization"
    free = [(cell, course) for cell, course in held if cell.constraint == "none"]
    drawn = [each for each in free if each[0].start == "random"]
    own = [each for each in free if each[0].start == "independent"]
    if not drawn and not own:
        return Signature(claim, "cannot be asked", ["No ensemble without a constraint begins independently."])
    says, fallen = [], [each for each in drawn if _falls(each[1])]
    if drawn:
        levels = [course.random_distance for _, course in drawn if course.random_distance is not None]
        says.append(
            f"Random rows begin at {_range(drawn, _start)}"
            + (f" (random dictionaries: {fmean(levels):.3f})" if levels else "")
            + f" and end at {_range(drawn, _end)}: {len(fallen)} of {len(drawn)} fall by more than pairs of members differ."
        )
    if own:
        says.append(
            f"Rows from a k-means of each member’s own begin at {_range(own, _start)} before a single step, for all are made of "
            f"the same activations, and end at {_range(own, _end)}; {_moved(own)}."
        )
    judged = drawn or own
    n = sum(_falls(course) for _, course in judged)
    return Signature(claim, _verdict(n, len(judged)), says)


def _constraint(held: Sequence[Held]) -> Signature:
    claim = "The archetypal constraint adds no such fall"
    pairs, says = _against(held, lambda c: c.constraint in ("A", "RA"), lambda c: c.constraint == "none"), []
    if not pairs:
        return Signature(claim, "cannot be asked", ["No two ensembles differ in the constraint alone."])
    for start, words in (
        ("shared", "a shared k-means"),
        ("independent", "k-means of their own"),
        ("random", "random starts"),
    ):
        own = [(a, b) for a, b in pairs if a[0].start == start]
        if own:
            says.append(f"From {words}: {_compared(own, 'with the constraint', 'without')}.")
    apart = [(a, b) for a, b in pairs if a[0].start != "shared"]
    unprojected = _against(held, lambda c: c.constraint in ("A", "RA"), lambda c: c.constraint == "RA unprojected")
    if unprojected:
        says.append(
            f"From the same random mixtures of activations: {_compared(unprojected, 'with the constraint', 'without')}."
        )
    judged = apart or pairs
    n = sum(not _below(a[1], b[1]) for a, b in judged)
    return Signature(claim, _verdict(n, len(judged)), says)


def _inflation(held: Sequence[Held]) -> Signature:
    claim = "Raw activations inflate cosines of rows that are made of them"
    pairs = [
        (a, b)
        for a in held
        for b in held
        if (a[0].preprocessing, b[0].preprocessing) == ("raw", "centred")
        and (a[0].constraint, a[0].start, a[0].group) == (b[0].constraint, b[0].start, b[0].group)
        and (a[0].constraint, a[0].start) != ("none", "random")
    ]
    if not pairs:
        told = "No two ensembles whose rows begin at activations differ in centring alone."
        return Signature(claim, "cannot be asked", [told])
    says = []
    for a, b in pairs:
        text = f"{_CONSTRAINT.get(a[0].constraint, a[0].constraint)}, {_START[a[0].start]}: "
        text += f"{a[1].start_distance:.3f} to {a[1].end_distance:.3f} raw, "
        text += f"{b[1].start_distance:.3f} to {b[1].end_distance:.3f} centred"
        if None not in (a[1].end_centred, b[1].end_centred):
            text += f"; at the end without the mean direction {a[1].end_centred:.3f} and {b[1].end_centred:.3f}"
        if None not in (a[1].start_share, a[1].end_share, b[1].start_share, b[1].end_share):
            text += (
                f"; that direction holds {_percent(a[1].start_share)} to {_percent(a[1].end_share)} of raw rows, "
                f"{_percent(b[1].start_share)} to {_percent(b[1].end_share)} of centred ones"
            )
        says.append(f"{text}.")
    begins = [a[0].start != "shared" and a[1].start_high < b[1].start_low for a, b in pairs]
    ends = [_below(a[1], b[1]) for a, b in pairs]
    says.insert(
        0,
        f"Raw ones look closer than centred ones, beyond what pairs of members differ in, in {sum(begins)} of {len(pairs)} at the "
        f"start and {sum(ends)} of {len(pairs)} at the end. From start to end:",
    )
    n = sum(either or other for either, other in zip(begins, ends, strict=True))
    return Signature(claim, _verdict(n, len(pairs)), says)


# -- comparisons ---------------------------------------------------------------------------------------------------


def _against(
    held: Sequence[Held], one: Callable[[Cell], bool], other: Callable[[Cell], bool]
) -> list[tuple[Held, Held]]:
    """Ensembles of the same start and preprocessing that differ in nothing else."""
    return [
        (a, b)
        for a in held
        for b in held
        if one(a[0])
        and other(b[0])
        and (a[0].start, a[0].preprocessing, a[0].group) == (b[0].start, b[0].preprocessing, b[0].group)
    ]


def _below(a: Course, b: Course) -> bool:
    """Whether every pair of the one ends closer than every pair of the other."""
    return a.end_high < b.end_low


def _falls(course: Course) -> bool:
    return course.end_high < course.start_low


def _verdict(n: int, of: int) -> Verdict:
    return "reproduced" if n == of else "partly" if n else "not reproduced"


# -- in words ------------------------------------------------------------------------------------------------------


def _start(course: Course) -> float:
    return course.start_distance


def _end(course: Course) -> float:
    return course.end_distance


def _range(held: Sequence[Held], of: Callable[[Course], float]) -> str:
    values = sorted(of(course) for _, course in held)
    low, high = f"{values[0]:.3f}", f"{values[-1]:.3f}"
    return low if low == high else f"{low} to {high}"


def _compared(pairs: Sequence[tuple[Held, Held]], one: str, other: str) -> str:
    """The ends of both, space by space, and how many of the first are closer."""
    told = [f"{a[0].preprocessing} {a[1].end_distance:.3f} {one}, {b[1].end_distance:.3f} {other}" for a, b in pairs]
    lower = sum(_below(a[1], b[1]) for a, b in pairs)
    return f"{'; '.join(told)}; closer in {lower} of {len(pairs)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _moved(held: Sequence[Held]) -> str:
    closer = sum(_falls(course) for _, course in held)
    apart = sum(course.end_low > course.start_high for _, course in held)
    return f"{closer} of {len(held)} came closer, {apart} went apart"


def _n(held: Sequence[Held], what: str) -> str:
    return f"{len(held)} {what}{'s' if len(held) != 1 else ''}"
