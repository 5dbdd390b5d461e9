"""Rows of the contract, added one by one or as columns."""

import numpy as np

from seedscope.engine.store.database import Writer


def add_row(writer: Writer, row: object) -> None:
    """One dataclass row of any table."""
    writer.add(type(row), {name: [value] for name, value in vars(row).items()})


def row_keys(ensemble: str, seed: int, feature: np.ndarray) -> dict[str, object]:
    """The key columns of rows that belong to features of one member."""
    return {"ensemble": ensemble, "seed": np.full(len(feature), seed), "feature": feature}
