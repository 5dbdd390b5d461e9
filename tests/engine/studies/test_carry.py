"""What may be trained on where an ensemble is left out: nothing that matches the half that is predicted."""

import numpy as np

from seedscope.engine.geometry.predictor import LabelledFeatures
from seedscope.engine.studies.carry import HALVES, may_train, together

THETA = 0.7


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_no_copy_of_a_tested_feature_is_trained_on_and_as_many_others_are_left_out():
    rng = np.random.default_rng(0)
    tested = unit(rng.normal(size=(300, 64)))
    half_of = rng.integers(HALVES, size=300)
    rows = unit(np.concatenate([tested + 0.02 * rng.normal(size=tested.shape), rng.normal(size=(2000, 64))]))
    allowed = may_train(rows, tested, half_of, THETA, rng)
    for half in range(HALVES):
        cosines = np.array([[float(a @ b) for b in tested[half_of == half]] for a in rows[allowed[half]][:400]])
        assert cosines.max() < THETA
        assert allowed[half][:300].tolist() == (half_of != half).tolist()  # copies of the other half stay
    assert (allowed[:, 300:].sum(0) == 1).all()
    assert abs(allowed[0, 300:].mean() - 0.5) < 0.05


def test_rows_of_another_width_match_nothing():
    rng = np.random.default_rng(0)
    allowed = may_train(unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(20, 6))), np.zeros(20, int), THETA, rng)
    assert (allowed.sum(0) == 1).all()


def test_ensembles_together_keep_their_clusters_apart_and_their_missing_members_absent():
    def some(n: int, members: int) -> LabelledFeatures:
        matched = np.ones((n, members), np.int8)
        matched[:, 0] = -1
        return LabelledFeatures(np.full((n, 2), members, float), matched, np.zeros(n, int), np.arange(n) // 2)

    both = together([some(6, 3), some(4, 5)])
    assert both.matched.shape == (10, 5)
    assert (both.matched[:6, 3:] == -1).all()
    assert both.p.tolist() == [1] * 10
    assert both.cluster.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
