"""The variants page in one or two sentences: which ensemble comes back most, which reconstructs best, and paper A's finding."""

from collections.abc import Callable

from seedscope.app.formats import percent
from seedscope.app.routes.study.variant_lines import NEAR, Spread, VariantLine, of_compared

CLEAR = 2.0  # standard deviations between members from which on two means are called different
TOPK_KINDS = ("topk", "batchtopk", "matryoshka")


def sentence(lines: list[VariantLine], l0: float | None) -> str:
    """The page in one or two sentences, made from its numbers."""
    own = [line for line in lines if line.control_of is None]
    at = [line for line in own if line.l0_matched] or own
    measured = [(line, line.ev) for line in at if line.ev is not None]
    where = f"At L0 = {l0:.1f} within {percent(NEAR, 0)}" if l0 is not None and at[0].l0_matched else "Of its ensembles"
    if not measured:
        most = max(at, key=lambda line: of_compared(line.stable).mean)
        return f"{where}, {most.ensemble} {_comes_back(most)} ({_share(most)}); EV is not known, so nothing is said of a trade-off."
    apart = [each for each in measured if each[0].shared_start == "no"] or measured  # agreement is no stability
    most, ev_of_most = max(apart, key=lambda each: of_compared(each[0].stable).mean)
    best, best_ev = max(measured, key=lambda each: each[1].mean)
    if most is best:
        said = f"{where}, {most.ensemble} {_comes_back(most)} ({_share(most)}) and reconstructs best (EV {best_ev.mean:.3f})."
    else:
        said = (
            f"{where}, {most.ensemble} {_comes_back(most)} ({_share(most)}, EV {ev_of_most.mean:.3f}) and {best.ensemble} "
            f"reconstructs best (EV {best_ev.mean:.3f}, {_share(best)})."
        )
    return f"{said} {_paper(measured)}".strip()


def _comes_back(line: VariantLine) -> str:
    return "comes back most" if line.shared_start == "no" else "agrees most"


def _share(line: VariantLine) -> str:
    word = {"no": "stable", "yes": "agree, start shared"}.get(line.shared_start, "agree, start unknown")
    return f"{percent(of_compared(line.stable).mean)} {word}"


def _paper(measured: list[tuple[VariantLine, Spread]]) -> str:
    """Whether ReLU + l1 is more stable and reconstructs less than the TopK kinds, as paper A reports; empty without both."""
    relu = [each for each in measured if each[0].variant == "relu"]
    kinds = [each for each in measured if each[0].variant in TOPK_KINDS]
    if not relu or not kinds:
        return ""
    one, one_ev = relu[0]
    more = [_differs(of_compared(one.stable), of_compared(line.stable)) for line, _ in kinds]
    less = [_differs(ev, one_ev) for _, ev in kinds]
    verdict = {
        (True, True): "That ReLU + l1 is more stable and reconstructs less than the TopK kinds (paper A) holds here",
        (
            True,
            False,
        ): "Of paper A's finding the first half holds here: ReLU + l1 is more stable than the TopK kinds, but it does "
        "not reconstruct less",
        (
            False,
            True,
        ): "Of paper A's finding the second half holds here: ReLU + l1 reconstructs less than the TopK kinds, but "
        "it is not more stable",
        (
            False,
            False,
        ): "That ReLU + l1 is more stable and reconstructs less than the TopK kinds (paper A) does not hold here",
    }[all(each > 0 for each in more), all(each > 0 for each in less)]
    shares = [of_compared(line.stable).mean for line, _ in kinds]
    stable = f"{percent(of_compared(one.stable).mean)} against {_range(shares, percent)}"
    ev = f"EV {one_ev.mean:.3f} against {_range([ev.mean for _, ev in kinds], '{:.3f}'.format)}"
    return f"{verdict}: {stable} stable, {ev} ({', '.join(line.ensemble for line, _ in kinds)})."


def _range(values: list[float], shown: Callable[[float], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _differs(a: Spread, b: Spread) -> int:
    """1 where a is larger by more than CLEAR standard deviations of both, -1 where smaller, else 0."""
    spread = ((a.sd or 0) ** 2 + (b.sd or 0) ** 2) ** 0.5
    return 0 if abs(a.mean - b.mean) <= CLEAR * spread else 1 if a.mean > b.mean else -1
