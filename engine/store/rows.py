"""Helpers to add rows of the contract's tables to a Writer."""

import numpy as np

from seedscope.engine.store.database import Writer


def add_row(writer: Writer, row: object) -> None:
    """Add one row, an instance of its table's dataclass."""
    writer.add(type(row), {name: [value] for name, value in vars(row).items()})


def row_keys(ensemble: str, seed: int, feature: np.ndarray) -> dict[str, object]:
    """The key columns of rows with one row per feature of one member; `feature` (rows,) are indices."""
    return {"ensemble": ensemble, "seed": np.full(len(feature), seed), "feature": feature}
