"""Rows of the tables Pair and NullMatch, from the cosines that matching gives."""

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
    """Add one anchor's rows of Pair under one rule, one per comparison.

    `cosines` is (d_sae, comparisons), NO_MATCH where the rule forms no pair; `others` are the comparisons' seeds, `gap` is
    (comparisons,). `dead` and `directed` (a decoder row with a direction) are (d_sae,) of the anchor.
    """
    living = directed & ~dead
    by_comparison = np.ascontiguousarray(cosines.T)
    paired = by_comparison > schema.NO_MATCH
    n = len(others)
    columns = {
        "seed": np.full(n, seed),
        "other": others,
        "n_anchors": np.full(n, directed.sum()),
        "n_living": np.full(n, living.sum()),
        "n_paired": paired.sum(1),
        "mean_cosine": (by_comparison * paired).sum(1, dtype=np.float64) / np.maximum(paired.sum(1), 1),
        "gap": gap,
        "matched": count_on_grid(by_comparison[:, directed]),
        "matched_living": count_on_grid(by_comparison[:, living]),
    }
    writer.add(Pair, {"ensemble": ensemble, "rule": rule} | columns)


def add_null(writer: Writer, ensemble: str, seed: int, kind: str, chance: Chance) -> None:
    """Add one member's rows of NullMatch under one null; `chance.cosine` is (anchors, comparisons)."""
    keys = row_keys(ensemble, seed, chance.feature)
    writer.add(NullMatch, keys | {"kind": kind, "cosines": chance.cosine})
