"""Four signatures, from paper B, of agreement between members that training did not cause: verdicts from a study's distances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from seedscope.app.findings.start_grid import Cell, Course, MeasuredCell

EQUAL_START = 0.01  # distance up to which members begin at the same rows
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


def signatures(measured: Sequence[MeasuredCell]) -> list[Signature]:
    """Every signature, from the ensembles of the grid whose distances are known, each once."""
    return [_shared(measured), _independent(measured), _constraint(measured), _inflation(measured)]


def _shared(measured: Sequence[MeasuredCell]) -> Signature:
    claim = "A shared start begins at distance 0 and cannot go below it"
    own = [each for each in measured if each.cell.start == "shared"]
    if not own:
        return Signature(claim, "cannot be asked", ["No ensemble’s seeds share their start."])
    begins = max(each.start for each in own)
    apart = [each for each in own if each.end > each.start]
    says = [
        f"The {_n(own, 'ensemble')} of a shared start {'begins' if len(own) == 1 else 'begin'} at "
        f"{'most ' if begins >= 0.0005 else ''}{begins:.3f} and {'ends' if len(own) == 1 else 'end'} at {_ends(own)}: "
        "training can only have taken seeds apart, so that how alike they still are says nothing of convergence."
    ]
    lives = [(each.end, each.course.end_live) for each in own if each.course.end_live is not None]
    if lives:
        higher = sum(end_live > end for end, end_live in lives)
        live_ends = _range([end_live for _, end_live in lives])
        says.append(
            f"Among living features alone they end at {live_ends}, further apart than all features in "
            f"{higher} of {len(lives)}"
            + (": features that died stay where all began, and count as agreement." if 2 * higher > len(lives) else ".")
        )
    whole = begins <= EQUAL_START and len(apart) == len(own)
    return Signature(claim, "reproduced" if whole else "partly" if apart else "not reproduced", says)


def _independent(measured: Sequence[MeasuredCell]) -> Signature:
    claim = "Independent starts must fall from the random level to show stabilization"
    free = [each for each in measured if each.cell.constraint == "none"]
    drawn = [each for each in free if each.cell.start == "random"]
    own = [each for each in free if each.cell.start == "independent"]
    if not drawn and not own:
        return Signature(claim, "cannot be asked", ["No ensemble without a constraint begins independently."])
    says, fallen = [], [each for each in drawn if _falls(each)]
    if drawn:
        levels = [each.course.random_distance for each in drawn if each.course.random_distance is not None]
        says.append(
            f"Random rows begin at {_starts(drawn)}"
            + (f" (random dictionaries: {fmean(levels):.3f})" if levels else "")
            + f" and end at {_ends(drawn)}: {len(fallen)} of {len(drawn)} fall by more than pairs of seeds differ."
        )
    if own:
        says.append(
            f"Rows from a k-means of each seed’s own begin at {_starts(own)} before a single step, for all are made of "
            f"the same activations, and end at {_ends(own)}; {_moved(own)}."
        )
    judged = drawn or own
    n = sum(_falls(each) for each in judged)
    return Signature(claim, _verdict(n, len(judged)), says)


def _constraint(measured: Sequence[MeasuredCell]) -> Signature:
    claim = "The archetypal constraint adds no such fall"
    pairs, says = _against(measured, lambda c: c.constraint in ("A", "RA"), lambda c: c.constraint == "none"), []
    if not pairs:
        return Signature(claim, "cannot be asked", ["No two ensembles differ in the constraint alone."])
    for start, words in (
        ("shared", "a shared k-means"),
        ("independent", "k-means of their own"),
        ("random", "random starts"),
    ):
        own = [(a, b) for a, b in pairs if a.cell.start == start]
        if own:
            says.append(f"From {words}: {_compared(own, 'with the constraint', 'without')}.")
    apart = [(a, b) for a, b in pairs if a.cell.start != "shared"]
    unprojected = _against(measured, lambda c: c.constraint in ("A", "RA"), lambda c: c.constraint == "RA unprojected")
    if unprojected:
        says.append(
            f"From the same random mixtures of activations: {_compared(unprojected, 'with the constraint', 'without')}."
        )
    judged = apart or pairs
    n = sum(not _below(a, b) for a, b in judged)
    return Signature(claim, _verdict(n, len(judged)), says)


def _inflation(measured: Sequence[MeasuredCell]) -> Signature:
    claim = "Raw activations inflate cosines of rows that are made of them"
    pairs = [
        (a, b)
        for a in measured
        for b in measured
        if (a.cell.preprocessing, b.cell.preprocessing) == ("raw", "centred")
        and (a.cell.constraint, a.cell.start, a.cell.group) == (b.cell.constraint, b.cell.start, b.cell.group)
        and (a.cell.constraint, a.cell.start) != ("none", "random")
    ]
    if not pairs:
        says = ["No two ensembles whose rows begin at activations differ in centring alone."]
        return Signature(claim, "cannot be asked", says)
    says = []
    for a, b in pairs:
        text = f"{_CONSTRAINT.get(a.cell.constraint, a.cell.constraint)}, {_START[a.cell.start]}: "
        text += f"{a.start:.3f} to {a.end:.3f} raw, "
        text += f"{b.start:.3f} to {b.end:.3f} centred"
        if a.course.end_centred is not None and b.course.end_centred is not None:
            text += f"; at the end without the mean direction {a.course.end_centred:.3f} and {b.course.end_centred:.3f}"
        shares = [_share_range(each.course) for each in (a, b)]
        if None not in shares:
            text += f"; that direction holds {shares[0]} of raw rows, {shares[1]} of centred ones"
        says.append(f"{text}.")
    begins = [a.cell.start != "shared" and a.start_high < b.start_low for a, b in pairs]
    ends = [_below(a, b) for a, b in pairs]
    says.insert(
        0,
        f"Raw ones look closer than centred ones, beyond what pairs of seeds differ in, in {sum(begins)} of {len(pairs)} at the "
        f"start and {sum(ends)} of {len(pairs)} at the end. From start to end:",
    )
    n = sum(either or other for either, other in zip(begins, ends, strict=True))
    return Signature(claim, _verdict(n, len(pairs)), says)


# -- comparisons ---------------------------------------------------------------------------------------------------


def _against(
    measured: Sequence[MeasuredCell], one: Callable[[Cell], bool], other: Callable[[Cell], bool]
) -> list[tuple[MeasuredCell, MeasuredCell]]:
    """Ensembles of the same start and preprocessing that differ in nothing else."""
    return [
        (a, b)
        for a in measured
        for b in measured
        if one(a.cell)
        and other(b.cell)
        and (a.cell.start, a.cell.preprocessing, a.cell.group) == (b.cell.start, b.cell.preprocessing, b.cell.group)
    ]


def _below(a: MeasuredCell, b: MeasuredCell) -> bool:
    """Whether every pair of the one ends closer than every pair of the other."""
    return a.end_high < b.end_low


def _falls(measured: MeasuredCell) -> bool:
    """Whether every pair ends closer than any pair began."""
    return measured.end_high < measured.start_low


def _verdict(n: int, of: int) -> Verdict:
    return "reproduced" if n == of else "partly" if n else "not reproduced"


# -- in words ------------------------------------------------------------------------------------------------------


def _starts(measured: Sequence[MeasuredCell]) -> str:
    return _range([each.start for each in measured])


def _ends(measured: Sequence[MeasuredCell]) -> str:
    return _range([each.end for each in measured])


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _compared(pairs: Sequence[tuple[MeasuredCell, MeasuredCell]], one: str, other: str) -> str:
    """The ends of both, space by space, and how many of the first are closer."""
    ends = [f"{a.cell.preprocessing} {a.end:.3f} {one}, {b.end:.3f} {other}" for a, b in pairs]
    lower = sum(_below(a, b) for a, b in pairs)
    return f"{'; '.join(ends)}; closer in {lower} of {len(pairs)}"


def _share_range(course: Course) -> str | None:
    """How much of rows the mean direction holds, start to end; None where that is not known."""
    if course.start_share is None or course.end_share is None:
        return None
    return f"{_percent(course.start_share)} to {_percent(course.end_share)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _moved(measured: Sequence[MeasuredCell]) -> str:
    closer = sum(_falls(each) for each in measured)
    apart = sum(each.end_low > each.start_high for each in measured)
    return f"{closer} of {len(measured)} came closer, {apart} went apart"


def _n(measured: Sequence[MeasuredCell], what: str) -> str:
    return f"{len(measured)} {what}{'s' if len(measured) != 1 else ''}"
