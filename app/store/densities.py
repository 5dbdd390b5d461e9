"""How many features of a query have which density: the bars under the handles of the table's filter."""

import math
from dataclasses import dataclass, replace

import numpy as np

from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable

BINS_PER_DECADE = 8


@dataclass(frozen=True)
class DensityBin:
    """Features whose density lies in [low, high); the last bin holds its end too."""

    low: float
    high: float
    features: int


def density_facet(store: Database, query: FeatureQuery) -> list[DensityBin] | None:
    """Features that fire, by density, under all filters of a query but that by density; None without activity.

    The bins are even on a log scale, from at most one evaluation token in all of them to every token.
    """
    n_tokens = store.ensembles[query.ensemble].n_tokens
    if not n_tokens:
        return None
    n_bins = BINS_PER_DECADE * max(math.ceil(math.log10(n_tokens)), 1)
    counts = np.zeros(n_bins, np.int64)
    table = FeatureTable(store, replace(query, density_min=None, density_max=None))
    for place, n in table.density_counts(per_decade=BINS_PER_DECADE).items():
        counts[min(max(n_bins + place, 0), n_bins - 1)] += n
    edges = [10 ** ((i - n_bins) / BINS_PER_DECADE) for i in range(n_bins + 1)]
    return [DensityBin(edges[i], edges[i + 1], n) for i, n in enumerate(counts.tolist())]
