"""Stability told from decoder rows: scores against their definitions, and copies that leak where nothing can be told."""

import networkx as nx
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit

from seedscope.engine.geometry.predictability import auroc, f1, fit, match_clusters, predictability, some_clusters


def ensemble(direction: float, *, n: int = 60, d: int = 160, members: int = 3, seed: int = 0):
    """Stable rows are near copies across members, unstable ones their own; `direction` is added to the stable ones."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n, d)) + direction * np.sqrt(d) * np.eye(d)[0]
    rows, clusters = [], []
    for member in range(members):
        copies = centres + 0.3 * rng.normal(size=(n, d))
        rows.append(np.concatenate([copies, rng.normal(size=(n + 10, d))]))
        clusters.append(np.concatenate([np.arange(n), 1000 * (member + 1) + np.arange(n + 10)]))
    return rows, [np.arange(2 * n + 10) < n] * members, clusters


def test_the_fit_is_where_the_penalised_likelihood_is_stationary():
    rng = np.random.default_rng(0)
    rows, stable = rng.normal(size=(40, 5)), rng.random(40) < 0.5
    found = fit(rows, stable, 0.7)

    def objective(w):
        p = expit(rows @ w[:-1] + w[-1])
        return w[:-1] @ w[:-1] / 2 - 0.7 * np.log(np.where(stable, p, 1 - p)).sum()

    np.testing.assert_allclose(approx_fprime(found, objective, 1e-7), 0, atol=1e-4)


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    logits, stable = rng.normal(size=(30, 3)).round(1), rng.random(30) < 0.4
    for column in range(3):
        x = logits[:, column]
        pairs = [(a > b) + (a == b) / 2 for a in x[stable] for b in x[~stable]]
        assert auroc(logits, stable)[column] == pytest.approx(np.mean(pairs))
        hits, called = (stable & (x > 0)).sum(), (x > 0).sum()
        precision, recall = hits / called, hits / stable.sum()
        assert f1(logits, stable)[column] == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(-np.ones((4, 1)), np.arange(4) < 2).tolist() == [0]
    assert f1(np.ones((4, 1)), np.arange(4) < 2) == pytest.approx(2 / 3)


def test_copies_leak_labels_and_disjoint_clusters_do_not():
    found = predictability(*ensemble(0.0))
    assert found.plain.auroc_mean > 0.7
    assert found.isotropic.auroc_mean == pytest.approx(found.plain.auroc_mean, abs=0.05)
    assert found.fewer.auroc_mean > 0.6
    for chance in (found.disjoint, found.isotropic_disjoint, found.shuffled):
        assert chance.auroc_mean == pytest.approx(0.5, abs=0.1)
    assert abs(found.left) < 0.12
    assert found.always_stable_f1 == pytest.approx(2 / 3)
    assert found.n_clusters == 60 + 3 * 70
    assert found.largest_cluster == pytest.approx(3 / 390)
    assert found.plain.n_pairs == 6
    assert (found.plain.n_train, found.plain.n_test) == (120, 120)
    assert (found.fewer.n_train, found.fewer.n_test) == (found.disjoint.n_train, found.disjoint.n_test)
    assert np.isnan(found.plain.f1[[0, 1, 2], [0, 1, 2]]).all()


def test_a_planted_direction_of_stable_rows_survives_disjoint_clusters():
    found = predictability(*ensemble(0.5))
    assert found.disjoint.auroc_mean > 0.9
    assert found.disjoint.f1_mean > 0.8 > found.isotropic_disjoint.f1_mean
    assert found.left > 0.3
    assert found.shuffled.auroc_mean == pytest.approx(0.5, abs=0.15)


def test_clusters_are_chains_of_matches_across_members():
    """0:0 - 1:1 - 2:0 is a chain although 0:0 and 2:0 do not match; a partner below theta joins nothing."""
    other = np.array([[1, 2], [0, 2], [0, 1]])
    partner, cosine = np.full((3, 2, 2), -1), np.full((3, 2, 2), -2, np.float32)
    partner[0, 0, 0], cosine[0, 0, 0] = 1, 0.9
    partner[2, 0, 1], cosine[2, 0, 1] = 1, 0.7
    partner[0, 1, 1], cosine[0, 1, 1] = 1, 0.69
    found = match_clusters(partner, cosine, other)
    assert found[0, 0] == found[1, 1] == found[2, 0]
    assert len(np.unique(found)) == 4


def test_clusters_are_those_of_all_matches_at_once(monkeypatch):
    n, d_sae = 5, 30
    rng = np.random.default_rng(0)
    other = np.array([[j for j in range(n) if j != i] for i in range(n)])
    partner = rng.integers(-1, d_sae, (n, d_sae, n - 1))
    cosine = rng.uniform(0.3, 0.8, partner.shape).astype(np.float32)
    graph = nx.Graph()
    graph.add_nodes_from(range(n * d_sae))
    for i, f, slot in np.argwhere((cosine >= np.float32(0.7)) & (partner >= 0)):
        graph.add_edge(i * d_sae + f, other[i, slot] * d_sae + partner[i, f, slot])
    expected = np.empty(n * d_sae, int)
    for label, members in enumerate(sorted(nx.connected_components(graph), key=min)):
        expected[list(members)] = label
    for at_once in (0, 2**24):
        monkeypatch.setattr("seedscope.engine.geometry.predictability.EDGES_AT_ONCE", at_once)
        assert match_clusters(partner, cosine, other).ravel().tolist() == expected.tolist()


def test_some_clusters_are_whole_ones():
    clusters = [np.array([3, 3, 7, 9]), np.array([9, 1, 1, 1]), np.array([7, 7, 2, 5])]
    for seed in range(5):
        masks = some_clusters(clusters, 7, seed)
        assert 0 < sum(int(mask.sum()) for mask in masks) <= 7
        states = [
            (label, kept)
            for ids, mask in zip(clusters, masks, strict=True)
            for label, kept in zip(ids, mask, strict=True)
        ]
        assert len(set(states)) == 6
    assert all(mask.all() for mask in some_clusters(clusters, 12))


def test_one_chain_of_everything_leaves_no_disjoint_split_and_says_so():
    rows, stable, clusters = ensemble(0.0, n=10)
    found = predictability(rows, stable, [np.zeros_like(one) for one in clusters], n_draws=1)
    assert found.largest_cluster == 1
    assert found.disjoint.n_pairs == 0
    assert np.isnan(found.disjoint.auroc_mean)
    assert found.plain.n_pairs == 6


def test_one_member_and_members_without_both_kinds_are_refused():
    rows, stable, clusters = ensemble(0.0, n=5)
    with pytest.raises(ValueError, match="found 1 member"):
        predictability(rows[:1], stable[:1], clusters[:1])
    with pytest.raises(ValueError, match="member 1 has 0 stable and 20 unstable rows"):
        predictability(rows, [stable[0], np.zeros(20, bool), stable[2]], clusters)
