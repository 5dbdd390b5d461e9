"""A predictor of stability on planted ensembles: what it finds, what must not leak, and whether it says what is observed."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from seedscope.engine.geometry.predictor import (
    NEIGHBOURS,
    HeldOutPredictions,
    LabelledFeatures,
    TooFewError,
    cross_predict,
    fit_predictor,
    folds,
    require_enough,
)
from seedscope.engine.geometry.predictor_scores import (
    ChanceLabels,
    coverage,
    quality,
    rotated_labels,
    settings_of,
    shuffled_labels,
    single_aurocs,
    weighted_auroc,
    with_interval,
)

MEMBERS = 6


def planted(effect: float, *, clusters: int = 300, own: float = 0.0, seed: int = 0) -> LabelledFeatures:
    """Clusters with a copy in every member: p of each is drawn, shifted by `effect` times its first input; the second is a
    fingerprint, equal in all copies of a cluster up to `own`, and says nothing of p."""
    rng = np.random.default_rng(seed)
    first, fingerprint = rng.normal(size=clusters), rng.normal(size=clusters)
    p = 1 / (1 + np.exp(-(effect * first + 2.5 * rng.normal(size=clusters))))
    cluster, member = np.repeat(np.arange(clusters), MEMBERS), np.tile(np.arange(MEMBERS), clusters)
    values = np.stack([first[cluster], fingerprint[cluster]], 1) + own * rng.normal(size=(len(cluster), 2))
    matched = (rng.random((len(cluster), MEMBERS)) < p[cluster, None]).astype(np.int8)
    matched[np.arange(len(cluster)), member] = -1
    return LabelledFeatures(values, matched, member, cluster)


def outcomes(predicted, features):
    """Every comparison as an outcome of its own, the plain way."""
    score, truth, weight = [], [], []
    for row, p in zip(features.matched, predicted, strict=True):
        known = row[row >= 0]
        score += [p] * len(known)
        truth += known.tolist()
        weight += [1 / len(known)] * len(known)
    return np.array(score), np.array(truth), np.array(weight)


@pytest.fixture(scope="module")
def told():
    features = planted(2.0)
    return features, cross_predict(features, "splines")


def test_scores_are_those_of_scikit_learn_and_of_plain_numpy(told):
    features, tested = told
    found = quality(tested.p, features)
    score, truth, weight = outcomes(tested.p, features)
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, score, sample_weight=weight), abs=1e-9)
    edges = np.unique(np.quantile(tested.p, np.arange(1, 10) / 10))
    bins = (tested.p[:, None] > edges).sum(1)
    expected = sum(
        (bins == b).mean() * abs(tested.p[bins == b].mean() - features.p[bins == b].mean()) for b in np.unique(bins)
    )
    assert found.error.value == pytest.approx(expected, abs=1e-9)
    p = features.p
    both = (p == 1) | (p == 0)
    assert found.auroc_stable == pytest.approx(roc_auc_score(p[both] == 1, tested.p[both]))
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert found.counts.sum() == found.n_rows == len(p)
    one = single_aurocs(features)
    score, truth, weight = outcomes(features.values[:, 0], features)
    assert one[0] == pytest.approx(roc_auc_score(truth, score, sample_weight=weight), abs=1e-9)
    assert one[1] == pytest.approx(0.5, abs=0.06)


def test_weighted_auroc_counts_ties_half_for_every_column():
    rng = np.random.default_rng(0)
    score = rng.normal(size=40).round(1)
    positive, negative = rng.random((40, 3)), rng.random((40, 3))
    for column, value in enumerate(weighted_auroc(score, positive, negative)):
        pairs = sum(
            positive[i, column] * negative[j, column] * ((score[i] > score[j]) + (score[i] == score[j]) / 2)
            for i in range(40)
            for j in range(40)
        )
        assert value == pytest.approx(pairs / positive[:, column].sum() / negative[:, column].sum())
    assert np.isnan(weighted_auroc(score, positive * 0, negative)).all()


def test_no_cluster_is_on_both_sides(told):
    features, tested = told
    for train, test in folds(features.cluster, 5):
        assert not set(features.cluster[train]) & set(features.cluster[test])
    for cluster in range(300):
        assert len(set(tested.fold[features.cluster == cluster])) == 1


def test_copies_give_no_more_than_there_is_to_know():
    """Copies share a fingerprint and their p, and nothing else tells p: only where copies leak is there anything to find."""
    features = planted(0.0, clusters=150, own=0.001)
    kept = quality(cross_predict(features, "boosting").p, features)
    by_setting = settings_of(features, ("density", "crowding"), "boosting", None)
    assert set(by_setting) == {"features", "decoder", "density", "shuffled"}
    leaked = quality(*by_setting["features"]())
    assert kept.auroc.value == pytest.approx(0.5, abs=0.07)
    assert leaked.auroc.value > kept.auroc.value + 0.1


def test_what_is_predicted_is_what_is_observed(told):
    features, tested = told
    found = quality(tested.p, features)
    assert found.auroc.value > 0.65
    assert found.error.value < 0.06
    assert (np.diff(found.predicted) > 0).all()
    assert tested.p.mean() == pytest.approx(features.p.mean(), abs=0.02)
    assert ((tested.p >= 0) & (tested.p <= 1)).all()


def test_intervals_hold_the_features_that_they_say(told):
    features, tested = told
    covered, width = coverage(tested, features)
    assert covered > 0.93
    assert 0 < width <= 1
    model = fit_predictor(features, ("density", "crowding"), tested)
    said = model.predict(features.values)
    assert (said.low <= said.high).all()
    assert said.inside.all()
    assert not model.predict(features.values[:1] + 100).inside[0]
    assert model.kind in ("linear", "splines")


def test_an_interval_is_of_the_nearest_predictions():
    predicted, true = np.arange(1000) / 1000, np.tile([0, 1], 500)
    held = HeldOutPredictions.of(np.concatenate([predicted, [2.0] * 50]), np.concatenate([true, [0.5] * 50]))
    low, high = held.interval(np.array([0.5, 2.0]))
    assert (low.tolist(), high.tolist()) == ([0, 0], [1, 1])
    few = HeldOutPredictions.of(np.array([0.1, 0.2]), np.array([0.3, 0.4]))
    assert [each.tolist() for each in few.interval(np.array([0.0, 1.0]))] == [[0.3, 0.3], [0.4, 0.4]]
    assert NEIGHBOURS == 200


def test_the_kind_is_the_simplest_that_does_as_well():
    features = planted(3.0)
    assert set(cross_predict(features).kinds) <= {"linear", "splines"}
    rng = np.random.default_rng(0)
    cluster, member = np.repeat(np.arange(200), MEMBERS), np.tile(np.arange(MEMBERS), 200)
    x = rng.normal(size=200)
    p = 0.05 + 0.9 * (np.abs(x) < 0.7)  # a line says nothing of it
    matched = (rng.random((1200, MEMBERS)) < p[cluster, None]).astype(np.int8)
    matched[np.arange(1200), member] = -1
    bent = LabelledFeatures(x[cluster, None], matched, member, cluster)
    assert "linear" not in cross_predict(bent).kinds
    assert quality(cross_predict(bent).p, bent).auroc.value > 0.9


def test_nulls_leave_nothing_but_what_they_say():
    features = planted(3.0)
    rng = np.random.default_rng(1)
    cosine = rng.random(features.matched.shape)
    rotated = rotated_labels(features, ChanceLabels(np.arange(len(cosine)), cosine))
    assert ((rotated.matched < 0) == (features.matched < 0)).all()
    assert rotated.p.mean() == pytest.approx(features.p.mean(), abs=0.01)
    assert quality(cross_predict(rotated, "linear").p, rotated).auroc.value == pytest.approx(0.5, abs=0.05)
    shuffled = shuffled_labels(features, features.values[:, 1])
    assert sorted(shuffled.p) == sorted(features.p)
    assert quality(cross_predict(shuffled, "linear").p, shuffled).auroc.value == pytest.approx(0.5, abs=0.05)
    by_density = shuffled_labels(features, features.values[:, 0])  # what the first input tells stays
    whole = quality(cross_predict(features, "linear").p, features).auroc.value
    assert quality(cross_predict(by_density, "linear").p, by_density).auroc.value == pytest.approx(whole, abs=0.04)


def test_an_interval_is_centred_on_its_value():
    found = with_interval(np.array([0.8, *np.linspace(0.5, 0.7, 101)]))
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.705, 0.895))
    assert with_interval(np.array([0.99, *np.linspace(0.5, 0.7, 101)])).high == 1
    assert with_interval(np.array([0.4, np.nan, np.nan])) == (0.4, 0.4, 0.4)


def test_too_little_is_refused_in_words():
    with pytest.raises(TooFewError, match=r"found 60 living features whose inputs are known, expected at least 400"):
        require_enough(planted(1.0, clusters=10))
    features = planted(1.0)
    never = features._replace(matched=np.where(features.matched == 1, 0, features.matched).astype(np.int8))
    with pytest.raises(TooFewError, match="found 0 clusters of features with a match, expected at least 20"):
        require_enough(never)
    require_enough(features)
