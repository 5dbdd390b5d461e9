"""Numbers of rows: the place of a feature among those of all seeds, and refusal of what is no feature."""

import numpy as np
import pytest

from seedscope.engine.contract.index.rows import row_numbers

SEEDS, D_SAE = [2, 5, 2**40], 4


def test_rows_are_features_seed_by_seed():
    places = [(seed, feature) for seed in SEEDS for feature in range(D_SAE)]
    seeds, features = np.array(places).T
    assert row_numbers(SEEDS, D_SAE, seeds, features).tolist() == list(range(len(places)))
    assert row_numbers(SEEDS, D_SAE, [], []).tolist() == []


@pytest.mark.parametrize(("seed", "feature"), [(1, 0), (3, 0), (2**41, 0), (5, 4), (5, -1)])
def test_what_is_no_feature_is_refused_and_never_another_one(seed, feature):
    with pytest.raises(ValueError, match=rf"found feature {seed}/{feature}, expected features 0 to 3 of 3 seeds"):
        row_numbers(SEEDS, D_SAE, [2, seed], [0, feature])
