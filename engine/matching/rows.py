"""Partners and chance matches as rows of the contract."""

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.stability import count_on_grid
from seedscope.engine.contract.tables.features import NullMatch, Pair
from seedscope.engine.matching.match import Chance
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import row_keys


def add_anchor_pairs(
    writer: Writer,
    ensemble: str,
    rule: str,
    seed: int,
    others: list[int],
    cosines: np.ndarray,
    dead: np.ndarray,
    directed: np.ndarray,
    gap: np.ndarray,
) -> None:
    """One anchor's pairs under one rule; `cosines` is (d_sae, comparisons), NO_MATCH where the rule forms no pair."""
    living = directed & ~dead
    mine = np.ascontiguousarray(cosines.T)
    paired = mine > schema.NO_MATCH
    n = len(others)
    columns = {
        "seed": np.full(n, seed),
        "other": others,
        "n_anchors": np.full(n, directed.sum()),
        "n_living": np.full(n, living.sum()),
        "n_paired": paired.sum(1),
        "mean_cosine": (mine * paired).sum(1, dtype=np.float64) / np.maximum(paired.sum(1), 1),
        "gap": gap,
        "matched": count_on_grid(mine[:, directed]),
        "matched_living": count_on_grid(mine[:, living]),
    }
    writer.add(Pair, {"ensemble": ensemble, "rule": rule} | columns)


def add_null(writer: Writer, ensemble: str, seed: int, kind: str, chance: Chance) -> None:
    """What one null finds for one member; `chance.cosine` is (anchors, comparisons)."""
    keys = row_keys(ensemble, seed, chance.feature)
    writer.add(NullMatch, keys | {"kind": kind, "cosines": chance.cosine})
