"""Paper B's signatures of agreement that training did not bring about, judged by a study's own numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from app.store.starts import Cell, Course

EQUAL_START = 0.01  # distance up to which members begin at the same rows
Held = tuple[Cell, Course]
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
        f"training took {'their' if len(own) > 1 else 'its'} members apart. What they agree on at the end "
        "is agreement that they began with."
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
    for start, words in (("shared", "shared k-means"), ("independent", "independent k-means"), ("random", "random")):
        own = [(a, b) for a, b in pairs if a[0].start == start]
        if own:
            lower = sum(_below(a[1], b[1]) for a, b in own)
            says.append(
                f"From a {words} start it ends at {_range([a for a, _ in own], _end)} with the constraint, "
                f"{_range([b for _, b in own], _end)} without; closer beyond what pairs of members differ in {lower} of {len(own)}."
            )
    apart = [(a, b) for a, b in pairs if a[0].start != "shared"]
    unprojected = _against(held, lambda c: c.constraint in ("A", "RA"), lambda c: c.constraint == "RA unprojected")
    if unprojected:
        lower = sum(_below(a[1], b[1]) for a, b in unprojected)
        says.append(
            f"From the same random mixtures it ends at {_range([a for a, _ in unprojected], _end)} with the constraint, "
            f"{_range([b for _, b in unprojected], _end)} without; closer in {lower} of {len(unprojected)}."
        )
    judged = apart or pairs
    n = sum(not _below(a[1], b[1]) for a, b in judged)
    return Signature(claim, _verdict(n, len(judged)), says)


def _inflation(held: Sequence[Held]) -> Signature:
    claim = "Raw activations inflate cosines"
    pairs = [
        (a, b)
        for a in held
        for b in held
        if (a[0].preprocessing, b[0].preprocessing) == ("raw", "centred")
        and (a[0].constraint, a[0].start, a[0].variant) == (b[0].constraint, b[0].start, b[0].variant)
        and a[0].start != "shared"
    ]
    if not pairs:
        return Signature(claim, "cannot be asked", ["No two ensembles of independent starts differ in centring alone."])
    lower = sum(_below(a[1], b[1]) for a, b in pairs)
    raw, centred = [a for a, _ in pairs], [b for _, b in pairs]
    says = [
        f"Of independent starts, raw ensembles end at {_range(raw, _end)}, centred ones at {_range(centred, _end)}: raw ones look "
        f"closer, beyond what pairs of members differ, in {lower} of {len(pairs)}."
    ]
    if all(course.end_centred is not None for _, course in raw + centred):
        says.append(
            f"With each dictionary’s mean direction removed: {_range(raw, lambda c: c.end_centred)} against "
            f"{_range(centred, lambda c: c.end_centred)}."
        )
    if all(course.end_share is not None and course.start_share is not None for _, course in raw + centred):
        says.append(
            f"That direction holds {_share(raw, lambda c: c.start_share)} of raw rows’ squared length at the start and "
            f"{_share(raw, lambda c: c.end_share)} at the end, of centred rows’ {_share(centred, lambda c: c.start_share)} and "
            f"{_share(centred, lambda c: c.end_share)}: cosines can be inflated by about as much."
        )
    return Signature(claim, _verdict(lower, len(pairs)), says)


# -- comparisons ---------------------------------------------------------------------------------------------------


def _against(
    held: Sequence[Held], one: Callable[[Cell], bool], other: Callable[[Cell], bool]
) -> list[tuple[Held, Held]]:
    """Ensembles of the same start and preprocessing."""
    return [
        (a, b)
        for a in held
        for b in held
        if one(a[0]) and other(b[0]) and (a[0].start, a[0].preprocessing) == (b[0].start, b[0].preprocessing)
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


def _share(held: Sequence[Held], of: Callable[[Course], float]) -> str:
    return f"{100 * fmean(of(course) for _, course in held):.1f}\u00a0%"


def _moved(held: Sequence[Held]) -> str:
    closer = sum(_falls(course) for _, course in held)
    apart = sum(course.end_low > course.start_high for _, course in held)
    return f"{closer} of {len(held)} came closer, {apart} went apart"


def _n(held: Sequence[Held], what: str) -> str:
    return f"{len(held)} {what}{'s' if len(held) != 1 else ''}"
