"""Tables of a synthetic study: true features, their recovery, and the cells of the phase map."""

from dataclasses import dataclass, fields
from typing import Literal

import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.engine.contract import schema
from seedscope.engine.contract.tables import synthetic

# Tables as downloads name them.
TruthTable = Literal["features", "latents", "groups", "sets", "map"]
DOWNLOADS: dict[TruthTable, type] = {
    "features": synthetic.TrueFeature,
    "latents": synthetic.TrueLatent,
    "groups": synthetic.TrueGroup,
    "sets": synthetic.SpanLevel,
    "map": synthetic.PhaseCell,
}


@dataclass(frozen=True)
class LatentPoint:
    """A living latent: how alike its best partners are, and how much of it lies inside the true span."""

    seed: int
    feature: int
    group: str
    mean_cosine: float  # of its best partners in the other members
    n_matched: int
    energy: float


@dataclass(frozen=True)
class FoundCount:
    """True features of one group by how many members found them."""

    group: str
    n_members: int  # that found them
    n: int


class KnownTruth:
    """The tables of engine.contract.tables.synthetic of one study."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.row: synthetic.Synthetic = store.rows(synthetic.Synthetic)[0]
        self.groups: dict[str, synthetic.TrueGroup] = {row.group: row for row in store.rows(synthetic.TrueGroup)}
        self.levels: list[synthetic.SpanLevel] = store.rows(synthetic.SpanLevel)
        self.cells: list[synthetic.PhaseCell] = store.rows(synthetic.PhaseCell)

    def features(self, group: str, *, first: int, n: int) -> list[synthetic.TrueFeature]:
        """Some of a group's true features by id, from the `first` of the group on."""
        offset = self.groups["free"].n_true if group == "low" else 0
        where = '"group" = $group AND id >= $first AND id < $last'
        parameters = {"group": group, "first": offset + first, "last": offset + first + n}
        return self._store.rows(synthetic.TrueFeature, where, parameters)

    def found(self, theta: float) -> list[FoundCount]:
        """How many true features of each group 0, 1, .. of the members found."""
        sql = (
            'SELECT "group", len(list_filter(cosines, lambda c: c >= $theta::FLOAT)) AS x, count(*) FROM TrueFeature '
            "GROUP BY ALL ORDER BY ALL"
        )
        return [FoundCount(*row) for row in self._store.fetch(sql, {"theta": theta})]

    def latents(self, theta: float) -> list[LatentPoint]:
        """Every living latent."""
        sql = (
            'SELECT l.seed, l.feature, l."group", list_avg(f.cosines), len(list_filter(f.cosines, lambda c: c >= $theta::FLOAT)), '
            'l.energy FROM TrueLatent l JOIN Feature f USING (ensemble, seed, feature) WHERE l."group" IS NOT NULL '
            "ORDER BY l.seed, l.feature"
        )
        return [LatentPoint(*row) for row in self._store.fetch(sql, {"theta": theta})]

    def table(self, name: TruthTable) -> pa.Table:
        """A table of DOWNLOADS with every column; true features once for every member, whose nearest latent stands beside."""
        kind = DOWNLOADS[name]
        if kind is synthetic.TrueFeature:
            seeds = [member.seed for member in self._store.members(self.row.ensemble)]
            sql = (
                'SELECT ensemble, id, "group", rate, n_active, unnest($seeds::BIGINT[]) AS seed, unnest(latents) AS latent, '
                "unnest(cosines) AS cosine FROM TrueFeature ORDER BY id"
            )
            return self._store.arrow(sql, {"seeds": seeds})
        columns = ", ".join(f'"{field.name}"' for field in fields(kind))
        order = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[kind])
        return self._store.arrow(f"SELECT {columns} FROM {kind.__name__} ORDER BY {order}", {})
