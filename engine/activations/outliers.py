"""Find tokens whose activation norm at one hook point is far above the median: attention sinks and their like.

A handful of them can hold most of the variance that reconstructions are judged by, and fill the top contexts of many
features. Leaving them out by default, from TIMES the median norm on, is this project's policy.
"""

from collections.abc import Callable

import numpy as np

from seedscope.engine.activations.shards import Chosen, Shards

TIMES = 10.0  # of the median activation norm: longer rows are outliers
AT_ONCE = 2**22  # numbers whose squares are summed together: 16 MiB


def find_outliers(
    rows: np.ndarray | Shards | Chosen,
    *,
    times: float = TIMES,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Ascending indices of the rows whose norm exceeds `times` the median norm; cost: one read of all rows."""
    norms = np.empty(len(rows), np.float32)
    step = max(AT_ONCE // rows.shape[1], 1)
    for first in range(0, len(rows), step):
        part = rows[first : first + step].astype(np.float32)
        norms[first : first + step] = np.sqrt(np.einsum("ij,ij->i", part, part))
        report(min(first + step, len(rows)), len(rows))
    return np.flatnonzero(norms > times * np.median(norms))


class Without(Chosen):
    """An array of rows (tokens, d_in) without some of them, read on demand."""

    def __init__(self, rows: np.ndarray | Shards | Chosen, left_out: np.ndarray) -> None:
        super().__init__(rows, np.delete(np.arange(len(rows)), left_out))
