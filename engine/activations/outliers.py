"""Tokens whose activations are far longer than the others': attention sinks and their like, at one hook point.

A handful of them can hold most of the variance that reconstructions are judged by, and the top contexts of many features.
That they are left out by default, from TIMES the median length on, is this project's policy.
"""

from collections.abc import Callable

import numpy as np

from seedscope.engine.activations.shards import Shards

TIMES = 10.0  # the median length of an activation
AT_ONCE = 2**22  # numbers whose squares are summed together: 16 MiB


def find_outliers(
    rows: np.ndarray | Shards, *, times: float = TIMES, report: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """Indices of the rows that are longer than `times` the median of all rows; cost: one read of them."""
    lengths = np.empty(len(rows), np.float32)
    step = max(AT_ONCE // rows.shape[1], 1)
    for first in range(0, len(rows), step):
        part = rows[first : first + step].astype(np.float32)
        lengths[first : first + step] = np.sqrt(np.einsum("ij,ij->i", part, part))
        report(min(first + step, len(rows)), len(rows))
    return np.flatnonzero(lengths > times * np.median(lengths))


class Without:
    """Rows without some of them, read on demand."""

    def __init__(self, rows: np.ndarray | Shards, left_out: np.ndarray) -> None:
        self._rows, self._kept = rows, np.delete(np.arange(len(rows)), left_out)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._rows[self._kept[part]]
