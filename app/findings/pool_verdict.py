"""Whether a feature pool's two claims hold: pools of disjoint halves of the seeds agree more than controls, and keep EV."""

from dataclasses import dataclass
from statistics import fmean

from seedscope.app.findings.span_claim import DEVIATIONS, Compared, EnergyAtRank, compare
from seedscope.engine.contract.tables.pools import PoolPoint

CONTROLS = ("members", "fresh", "subset")
EV_KEPT = 0.01  # a pool keeps EV where it loses at most this against members that were trained on as long


@dataclass(frozen=True)
class PairSpread:
    """How much two members agree as they are, over all unordered pairs: what one pair more or less is worth."""

    n_pairs: int
    mean: float  # share of the living features of both with a match in the other
    low: float
    high: float
    spread: float | None  # standard deviation; None for too few pairs


@dataclass(frozen=True)
class Against:
    """Pools of two disjoint halves beside one control, both trained on as long."""

    control: str  # of CONTROLS
    shared: float | None  # of the pools
    control_shared: float | None
    compared: Compared | None  # the pools' agreement against the control's; None where nobody can tell
    ev: float
    control_ev: float
    keeps_ev: bool  # the pools lose next to nothing against the control


@dataclass(frozen=True)
class PoolVerdict:
    """What holds at one length of "pooling makes features more stable and keeps EV"."""

    tokens: int
    against: list[Against]
    is_more_stable: bool | None  # the pools agree more than every control; None where that cannot be told
    keeps_ev: bool  # against members that were trained on as long


def judge_pool(points: list[PoolPoint], pairs: PairSpread | None) -> list[PoolVerdict]:
    """The verdict at every length that pools of two halves were measured at; empty without them.

    One pair of pools stands beside one pair of controls: how much one pair says is the spread over pairs of members.
    """
    at = {(each.curve, each.tokens): each for each in points}
    verdicts = []
    for tokens in sorted({each.tokens for each in points if each.curve == "halves"}):
        pools = at["halves", tokens]
        against = [
            _against(pools, control, pairs) for name in CONTROLS if (control := at.get((name, tokens))) is not None
        ]  # fmt: skip
        verdicts.append(PoolVerdict(tokens, against, _is_more(against), all(each.keeps_ev for each in against[:1])))
    return verdicts


def _is_more(against: list[Against]) -> bool | None:
    outcomes = [each.compared for each in against]
    if {"less", "equal"} & set(outcomes):
        return False
    return None if None in outcomes or not outcomes else True


def _against(pools: PoolPoint, control: PoolPoint, pairs: PairSpread | None) -> Against:
    compared = None
    if pools.shared is not None and control.shared is not None and pairs and pairs.spread is not None:
        levels = (EnergyAtRank(shared, pairs.spread, pairs.n_pairs) for shared in (pools.shared, control.shared))
        compared = compare(*levels)
    ev, control_ev = fmean(pools.evs), fmean(control.evs)
    keeps = ev >= control_ev - EV_KEPT
    return Against(control.curve, pools.shared, control.shared, compared, ev, control_ev, keeps)


def least_difference(pairs: PairSpread | None) -> float | None:
    """From which difference of two agreements on it is more than one pair more or less; see `span_claim.compare`."""
    return None if pairs is None or pairs.spread is None else DEVIATIONS * 2**0.5 * pairs.spread
