"""Features of an ensemble as masks, one per member: what the live engine projects."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from seedscope.app.store.database import Database
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.tables.features import Feature


class FeatureSets(NamedTuple):
    """(members, d_sae) masks over the members asked for, in that order."""

    found: np.ndarray  # what the query finds
    living: np.ndarray  # what is not known to be dead
    stable: np.ndarray  # the stable ones under the query's judgement


def feature_sets(store: Database, query: FeatureQuery, seeds: Sequence[int]) -> FeatureSets:
    """A query's features in some members whatever seed or index it names, beside the sets they are compared with."""
    judged = type(query)(query.ensemble, query.theta, query.epsilon, query.rule)
    count_dead = query.dead if query.dead == "count" else None
    queries = (
        replace(query, seed=None, id=None),
        replace(judged, dead="exclude"),
        replace(judged, bucket="stable", dead=count_dead),
    )
    return FeatureSets(*(_mask(store, each, seeds) for each in queries))


def _mask(store: Database, query: FeatureQuery, seeds: Sequence[int]) -> np.ndarray:
    seed, feature = FeatureTable(store, query).places()
    masks = np.zeros((len(seeds), store.ensembles[query.ensemble].d_sae), bool)
    for mask, wanted in zip(masks, seeds, strict=True):
        mask[feature[seed == wanted]] = True
    return masks


def alike_in_density(store: Database, feature: Feature, n: int) -> list[int]:
    """The n living features of a feature's member whose densities are nearest to its own in the logarithm, nearest first.

    Any of them, always the same, for a feature that never fires or where nobody knows.
    """
    others = (
        "FROM Feature WHERE ensemble = $ensemble AND seed = $seed AND feature <> $feature AND dead IS NOT TRUE "
        "AND decoder_norm > 0"
    )
    parameters = {"ensemble": feature.ensemble, "seed": feature.seed, "feature": feature.feature, "n": n}
    if feature.n_active:
        order = "AND n_active > 0 ORDER BY abs(ln(n_active) - ln($n_active)), feature"
        parameters["n_active"] = feature.n_active
    else:
        order = "ORDER BY hash(feature)"
    return [feature for (feature,) in store.fetch(f"SELECT feature {others} {order} LIMIT $n", parameters)]
