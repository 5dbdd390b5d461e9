"""Pairs of members under one rule: the seed x seed matrix, and one pair feature by feature."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seedscope.app.store.database import Database
from seedscope.engine.contract.index.layout import DEAD, TILE
from seedscope.engine.contract.schema import NO_MATCH, theta_index

# The partner that each rule names; `both` and `hungarian` name the decoders' one-to-one partner.
_PARTNER = {
    "argmax": "partners", "live": "live_partners", "mutual": "partners", "hungarian": "hungarian_partners",
    "both": "hungarian_partners", "active": "active_partners",
}  # fmt: skip


class PairSummary(NamedTuple):
    """An ordered pair of members at one theta: 96 seeds have 9,120."""

    seed: int  # the anchor
    other: int
    n_anchors: int
    n_living: int
    mean_cosine: float
    gap: float
    n_matched: int
    n_matched_living: int


_STORED = ", ".join(PairSummary._fields[:6])


@dataclass(frozen=True)
class PairRows:
    """One member's features in another; arrays over the anchor's features, in order."""

    partner: np.ndarray  # -1 without a pair
    cosine: np.ndarray  # that theta is compared with (under `active` a correlation); NO_MATCH without a pair
    runner_up: np.ndarray  # second-largest cosine, whatever the rule
    mutual: np.ndarray  # each is the other's nearest
    dead: np.ndarray  # known to be dead
    activity: bool  # whether the others are known to live


class Pairs:
    """The ordered pairs of an ensemble's members under one rule."""

    def __init__(self, store: Database, ensemble: str, rule: str) -> None:
        self._store, self._ensemble, self._rule = store, ensemble, rule

    def summaries(self, theta: float) -> list[PairSummary]:
        """Every ordered pair with its matched anchors at theta."""
        index = theta_index(theta)
        parameters = {"ensemble": self._ensemble, "rule": self._rule}
        where = "WHERE ensemble = $ensemble AND rule = $rule ORDER BY seed, other"
        if index is not None:
            rows = self._store.fetch(
                f"SELECT {_STORED}, matched[{index + 1}], matched_living[{index + 1}] FROM Pair {where}", parameters
            )
            return [PairSummary._make(row) for row in rows]
        counted = self._count(theta)
        rows = self._store.fetch(f"SELECT {_STORED} FROM Pair {where}", parameters)
        return [PairSummary._make((*row, *counted[row[:2]])) for row in rows]

    def _count(self, theta: float) -> dict[tuple[int, int], tuple[int, int]]:
        """{(seed, other): (matched anchors, living ones among them)} from the cosines themselves."""
        index = self._store.index(self._ensemble)
        dead = (index.column("status") == DEAD).reshape(len(index.seeds), index.d_sae)
        counted = {}
        for member, seed in enumerate(index.seeds):
            reached = index.reached(self._rule, theta, member)
            tile, within = np.divmod(np.flatnonzero(dead[member]), TILE)
            matched = [int(np.count_nonzero(reached[:, slot])) for slot in range(index.n_comparisons)]
            of_dead = reached[tile, :, within].sum(0).tolist()
            others = self._store.other_seeds(self._ensemble, seed)
            for other, n, n_dead in zip(others, matched, of_dead, strict=True):
                counted[seed, other] = (n, n - n_dead)
        index.release_cosines()
        return counted

    def rows(self, seed: int, other: int) -> PairRows:
        """Every feature of one member and its partner in another, in feature order."""
        slot = self._store.other_seeds(self._ensemble, seed).index(other)
        partner, nearest = f"{_PARTNER[self._rule]}[{slot + 1:d}]", f"partners[{slot + 1:d}]"
        table = self._store.arrow(
            f"SELECT {partner} AS partner, runner_up_cosines[{slot + 1:d}] AS runner_up, "
            f"mutuals[{slot + 1:d}] AND {partner} = {nearest} AS mutual "
            "FROM Match WHERE ensemble = $ensemble AND seed = $seed ORDER BY feature",
            {"ensemble": self._ensemble, "seed": seed},
        )
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        index = self._store.index(self._ensemble)
        member = index.seeds.index(seed)
        cosine = index.pair_cosines(self._rule, member, slot)
        dead = index.column("status")[member * index.d_sae : (member + 1) * index.d_sae] == DEAD
        columns["partner"] = np.where(cosine > NO_MATCH, columns["partner"], -1)
        return PairRows(**columns, cosine=cosine, dead=dead, activity=self._store.has(self._ensemble, "activity"))
