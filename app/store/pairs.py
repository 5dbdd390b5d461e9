"""Pairs of members under one rule: the seed x seed matrix, and one pair feature by feature."""

from dataclasses import dataclass

import numpy as np

from seedscope.app.store.database import Database
from seedscope.engine.contract.index.layout import DEAD, TILE
from seedscope.engine.contract.schema import NO_MATCH, RULE_COLUMN, theta_index
from seedscope.engine.contract.tables.features import Pair

# The partner that each rule names; `both` and `hungarian` name the decoders' one-to-one partner.
_PARTNER = {
    "argmax": "partners", "live": "live_partners", "mutual": "partners", "hungarian": "hungarian_partners",
    "both": "hungarian_partners",
}  # fmt: skip

_SCALARS = ("ensemble", "rule", "seed", "other", "n_anchors", "n_living", "n_paired", "mean_cosine", "gap")


@dataclass(frozen=True)
class PairRows:
    """One member's features in another; arrays over the anchor's features, in order."""

    partner: np.ndarray  # -1 without a pair
    cosine: np.ndarray  # that theta is compared with; NO_MATCH without a pair
    runner_up: np.ndarray  # second-largest cosine, whatever the rule
    mutual: np.ndarray  # each is the other's nearest
    dead: np.ndarray  # known to be dead
    activity: bool  # whether the others are known to live


def _pair(scalars: tuple) -> Pair:
    """A row without its lists."""
    return Pair(**dict(zip(_SCALARS, scalars, strict=True)), matched=[], matched_living=[])


class Pairs:
    """The ordered pairs of an ensemble's members under one rule."""

    def __init__(self, store: Database, ensemble: str, rule: str) -> None:
        self._store, self._ensemble, self._rule = store, ensemble, rule

    def summaries(self, theta: float) -> list[tuple[Pair, int, int]]:
        """Every ordered pair with its matched anchors at theta: (pair, all, living); its own lists are left empty."""
        index = theta_index(theta)
        scalars = ", ".join(_SCALARS)
        parameters = {"ensemble": self._ensemble, "rule": self._rule}
        where = "WHERE ensemble = $ensemble AND rule = $rule ORDER BY seed, other"
        if index is not None:
            rows = self._store.fetch(
                f"SELECT {scalars}, matched[{index + 1}], matched_living[{index + 1}] FROM Pair {where}", parameters
            )
            return [(_pair(row[: len(_SCALARS)]), row[-2], row[-1]) for row in rows]
        counted = self._count(theta)
        rows = self._store.fetch(f"SELECT {scalars} FROM Pair {where}", parameters)
        return [(_pair(row), *counted[row[2], row[3]]) for row in rows]

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
        slot = self._store.other_seeds(self._ensemble, seed).index(other) + 1
        partner, nearest = f"m.{_PARTNER[self._rule]}[{slot:d}]", f"m.partners[{slot:d}]"
        table = self._store.arrow(
            f"SELECT {partner} AS partner, f.{RULE_COLUMN[self._rule]}[{slot:d}] AS cosine, "
            f"m.runner_up_cosines[{slot:d}] AS runner_up, m.mutuals[{slot:d}] AND {partner} = {nearest} AS mutual, "
            "f.dead IS TRUE AS dead FROM Feature f JOIN Match m USING (ensemble, seed, feature) "
            "WHERE ensemble = $ensemble AND seed = $seed ORDER BY feature",
            {"ensemble": self._ensemble, "seed": seed},
        )
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        columns["partner"] = np.where(columns["cosine"] > NO_MATCH, columns["partner"], -1)
        return PairRows(**columns, activity=self._store.has(self._ensemble, "activity"))
