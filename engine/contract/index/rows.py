"""Numbers of an index's rows: feature r % d_sae of the member r // d_sae, members in ascending order of seeds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def row_numbers(known: Sequence[int], d_sae: int, seeds: ArrayLike, features: ArrayLike) -> np.ndarray:
    """Rows of features, int64; `known` are the ensemble's seeds, ascending.

    Raises ValueError where there is no such feature: by its number alone it would be taken for another one.
    """
    members, of_seeds, of_features = np.array(known, np.int64), np.asarray(seeds), np.asarray(features)
    at = np.searchsorted(members, of_seeds)
    wrong = (members[np.minimum(at, len(members) - 1)] != of_seeds) | (of_features < 0) | (of_features >= d_sae)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"found feature {of_seeds[first]}/{of_features[first]}, expected features 0 to {d_sae - 1} of {len(members)} seeds"
        )
    return np.asarray(at * d_sae + of_features, np.int64)
