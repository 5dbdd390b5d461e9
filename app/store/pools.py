"""Feature pools: where pooled features came from, what training on does, and whether the paper's two claims hold."""

from dataclasses import dataclass
from statistics import fmean, stdev

import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.pairs import Pairs
from seedscope.app.store.span_claim import DEVIATIONS, FEWEST_PAIRS, Compared, EnergyAtRank, compare
from seedscope.engine.contract.tables.pools import FeaturePool, PooledFeature, PoolPoint

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


class Pools:
    """The pools of one study's ensembles."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.rows: dict[str, FeaturePool] = {row.ensemble: row for row in store.rows(FeaturePool)}

    def points(self, ensemble: str) -> list[PoolPoint]:
        """Every curve at every length."""
        return self._store.rows(PoolPoint, "ensemble = ?", [ensemble])

    def given(self, ensemble: str) -> list[tuple[int, int, int]]:
        """(seed, holders, pooled features that came from that member and are held by so many)."""
        sql = "SELECT seed, holders, count(*) FROM PooledFeature WHERE ensemble = ? GROUP BY ALL ORDER BY ALL"
        return self._store.fetch(sql, [ensemble])

    def features(
        self, ensemble: str, *, holders: int | None, seed: int | None, first: int, n: int
    ) -> tuple[list[PooledFeature], int]:
        """Some of the pooled features that so many hold and that came from this member, in the pool's order; and how many
        there are."""
        where = "ensemble = $ensemble AND holders = coalesce($holders, holders) AND seed = coalesce($seed, seed)"
        found = {"ensemble": ensemble, "holders": holders, "seed": seed}
        total = self._store.fetch(f"SELECT count(*) FROM PooledFeature WHERE {where}", found)[0][0]
        page = f"id IN (SELECT id FROM PooledFeature WHERE {where} ORDER BY id LIMIT $n OFFSET $first)"
        return self._store.rows(
            PooledFeature, f"ensemble = $ensemble AND {page}", found | {"first": first, "n": n}
        ), total

    def feature_table(self, ensemble: str) -> pa.Table:
        """Every pooled feature with what is known of the original, for downloads."""
        row = self._store.ensemble(ensemble)
        sql = (
            "SELECT p.ensemble, p.id, p.seed, p.feature, p.holders, p.density, "
            "len(list_filter(f.cosines, lambda c: c >= $theta::FLOAT)) AS n_matched, $n_comparisons AS n_comparisons, f.dead, "
            "f.worth_ev, f.trigger, f.explanation, f.explainer, f.score FROM PooledFeature p "
            "JOIN Feature f USING (ensemble, seed, feature) WHERE p.ensemble = $ensemble ORDER BY p.id"
        )
        return self._store.arrow(sql, {"ensemble": ensemble, "theta": row.theta, "n_comparisons": row.n_comparisons})

    def curve_table(self, ensemble: str) -> pa.Table:
        """Every curve, a row for each SAE, for downloads."""
        sql = (
            "SELECT ensemble, curve, tokens, generate_subscripts(evs, 1) - 1 AS sae, unnest(evs) AS ev, unnest(l0s) AS l0, "
            "unnest(deads) AS dead, unnest(n_living) AS n_living, unnest(losses) AS loss, unnest(shares) AS share, shared, "
            "best_cosine FROM PoolPoint WHERE ensemble = $ensemble ORDER BY curve, tokens, sae"
        )
        return self._store.arrow(sql, {"ensemble": ensemble})

    def pairs(self, ensemble: str) -> PairSpread | None:
        """How much members agree as they are, at the ensemble's own theta; None for one member."""
        theta = self._store.ensemble(ensemble).theta
        sums: dict[tuple[int, ...], list[int]] = {}
        for pair, _, living in Pairs(self._store, ensemble, "argmax").summaries(theta):
            held = sums.setdefault(tuple(sorted((pair.seed, pair.other))), [0, 0])
            held[0], held[1] = held[0] + living, held[1] + pair.n_living
        shares = [matched / n for matched, n in sums.values() if n]
        if not shares:
            return None
        spread = stdev(shares) if len(shares) >= FEWEST_PAIRS else None
        return PairSpread(len(shares), fmean(shares), min(shares), max(shares), spread)


def judge_pool(points: list[PoolPoint], pairs: PairSpread | None) -> list[PoolVerdict]:
    """The verdict at every length that pools of two halves were measured at; empty without them.

    One pair of pools stands beside one pair of controls: how much one pair says is the spread over pairs of members.
    """
    at = {(each.curve, each.tokens): each for each in points}
    found = []
    for tokens in sorted({each.tokens for each in points if each.curve == "halves"}):
        pools = at["halves", tokens]
        against = [
            _against(pools, control, pairs) for name in CONTROLS if (control := at.get((name, tokens))) is not None
        ]  # fmt: skip
        found.append(PoolVerdict(tokens, against, _is_more(against), all(each.keeps_ev for each in against[:1])))
    return found


def _is_more(against: list[Against]) -> bool | None:
    told = [each.compared for each in against]
    if {"less", "equal"} & set(told):
        return False
    return None if None in told or not told else True


def _against(pools: PoolPoint, control: PoolPoint, pairs: PairSpread | None) -> Against:
    told = None
    if None not in (pools.shared, control.shared) and pairs and pairs.spread is not None:
        told = compare(*(EnergyAtRank(each.shared, pairs.spread, pairs.n_pairs) for each in (pools, control)))
    ev, control_ev = fmean(pools.evs), fmean(control.evs)
    keeps = ev >= control_ev - EV_KEPT
    return Against(control.curve, pools.shared, control.shared, told, ev, control_ev, keeps)


def least_difference(pairs: PairSpread | None) -> float | None:
    """From which difference of two agreements on it is more than one pair more or less; see `claim.compare`."""
    return None if pairs is None or pairs.spread is None else DEVIATIONS * 2**0.5 * pairs.spread
