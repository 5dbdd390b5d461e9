"""How many features of a query have which density: the bars under the handles of the table's filter."""

import math
from dataclasses import dataclass

import numpy as np

from seedscope.app.store.table import FeatureTable

BINS_PER_DECADE = 8


@dataclass(frozen=True)
class DensityBin:
    """Features whose density lies in [low, high); the last bin holds its end too."""

    low: float
    high: float
    features: int


def density_facet(table: FeatureTable, n_tokens: int | None) -> list[DensityBin] | None:
    """Features that fire, by density, under all filters of a table but that by density; None without evaluation tokens.

    The bins are even on a log scale, from at most one evaluation token in all of them to every token.
    """
    if not n_tokens:
        return None
    n_bins = BINS_PER_DECADE * max(math.ceil(math.log10(n_tokens)), 1)
    counts = np.zeros(n_bins, np.int64)
    for place, n in table.density_counts(per_decade=BINS_PER_DECADE).items():
        counts[min(max(n_bins + place, 0), n_bins - 1)] += n
    edges = [10 ** ((i - n_bins) / BINS_PER_DECADE) for i in range(n_bins + 1)]
    return [DensityBin(edges[i], edges[i + 1], n) for i, n in enumerate(counts.tolist())]
