"""Planted pairs of members hold what they say, and rules are judged against it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from seedscope.engine.bench import planted
from seedscope.engine.bench.generated_pairs import CROWD_RANK, PlantedConfig, PlantedMember, PlantedPair, draw_pair

SMALL = PlantedConfig(d_in=48, n_shared=120, n_split=12, n_merged=9, n_alone=30, n_tokens=2000, rates=(5e-3, 2e-2))


@pytest.fixture(scope="module")
def pair() -> PlantedPair:
    return draw_pair(SMALL)


def test_members_hold_what_was_planted(pair):
    assert pair.counterparts.shape == (120 + 12 + 2 * 9 + 30, 120 + 2 * 12 + 9 + 30)
    of_a, of_b = np.asarray(pair.counterparts.sum(1)).ravel(), np.asarray(pair.counterparts.sum(0)).ravel()
    assert np.bincount(of_a).tolist() == [30, 120 + 18, 12]  # alone, shared or part of a merge, split
    assert np.bincount(of_b).tolist() == [30, 120 + 24, 9]
    for member in (pair.a, pair.b):
        for rows in (member.decoder, member.encoder):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert member.codes.shape == (2000, len(member.decoder))
        assert (member.codes.data > 0).all()


def test_counterparts_are_as_near_as_their_noise_says():
    config = PlantedConfig(d_in=1024, n_shared=600, n_split=0, n_merged=0, n_alone=0, n_tokens=50)
    pair = draw_pair(config)
    rows, columns = pair.counterparts.nonzero()
    cosine = (pair.a.decoder[rows] * pair.b.decoder[columns]).sum(1)
    for level in config.levels:
        here = pair.a.level[rows] == level
        assert (pair.b.level[columns][here] == level).all()
        assert np.median(cosine[here]) == pytest.approx(1 / (1 + level**2), abs=0.05)


def test_crowds_share_few_dimensions():
    pair = draw_pair(replace(SMALL, d_in=256, n_shared=96, n_split=0, n_merged=0, n_alone=0))
    energy = np.linalg.svd(pair.a.decoder, compute_uv=False) ** 2
    assert energy[:CROWD_RANK].sum() > 0.35 * energy.sum()  # half of the rows lie in one crowd


def test_firings_follow_the_true_feature_as_far_as_the_noise_lets_them():
    pair = draw_pair(replace(SMALL, n_tokens=20_000, n_split=0, n_merged=0))
    rows, columns = pair.counterparts.nonzero()
    fires = [each.codes.toarray() > 0 for each in (pair.a, pair.b)]
    both = (fires[0][:, rows] & fires[1][:, columns]).sum(0) / fires[0][:, rows].sum(0)
    for level in SMALL.levels:
        cosine = 1 / np.sqrt(1 + level**2)
        expected = cosine * cosine / (cosine + (1 - cosine))  # kept by both, of those kept or added by the first
        assert both[pair.a.level[rows] == level].mean() == pytest.approx(expected, abs=0.06)


def test_without_noise_every_rule_finds_every_counterpart():
    pair = draw_pair(
        PlantedConfig(
            d_in=64, n_shared=150, n_split=0, n_merged=0, n_alone=0, levels=(0.0,), n_tokens=500, rates=(0.05, 0.1)
        )
    )
    for score in planted.scores(pair, head=20, best=80):
        assert (score.at_head, score.at_best, score.tail_precision, score.precision, score.recall) == (1, 1, 1, 1, 1), (
            score
        )
        assert score.n_pairs == 150


def test_the_most_correlated_of_the_nearest_rows_is_numpys(pair):
    found = planted.most_correlated(pair.a, pair.b, 5)
    cosines = pair.a.decoder @ pair.b.decoder.T
    a, b = pair.a.codes.toarray().astype(float), pair.b.codes.toarray().astype(float)
    for row in range(len(cosines)):
        near = np.argsort(-cosines[row], kind="stable")[:5]
        correlations = [np.corrcoef(a[:, row], b[:, column])[0, 1] for column in near]
        assert found.partner[row] == near[np.argmax(correlations)]
        assert found.score[row] == pytest.approx(max(correlations), abs=1e-6)


def test_features_that_never_fire_are_paired_with_nothing(pair):
    silent = sparse.csc_matrix(pair.a.codes.shape, dtype=np.float32)
    assert (planted.most_correlated(pair.a._replace(codes=silent), pair.b).partner == -1).all()
    only = pair.b.codes.toarray()
    only[:, 1:] = 0
    found = planted.most_correlated(pair.a, pair.b._replace(codes=sparse.csc_matrix(only)), 5)
    assert set(found.partner.tolist()) == {-1, 0}


def test_of_equally_alike_rows_the_lowest_index_is_taken():
    """Rows 0 and 2 fire alike; row 2 is nearer."""
    mine = np.array([[1, 0, 0]], np.float32)
    theirs = np.array([[0.6, 0.8, 0], [0, 0, 1], [0.8, 0.6, 0]], np.float32)
    codes = np.array([[1, 0, 2, 0]], np.float32).T
    a = PlantedMember(mine, mine, sparse.csc_matrix(codes), np.zeros(1))
    b = PlantedMember(theirs, theirs, sparse.csc_matrix(codes @ np.array([[1, 0, 1]], np.float32)), np.zeros(3))
    found = planted.most_correlated(a, b, 3)
    assert (found.partner.tolist(), found.score.tolist()) == ([0], [pytest.approx(1)])


def test_a_rule_is_judged_by_its_pairs_in_the_order_of_their_scores():
    """Six features; five have counterparts; four pairs are right."""
    rows = np.eye(6, dtype=np.float32)
    near = rows.copy()
    near[4] = [0, 0, 0, 0.8, 0.6, 0]  # its counterpart has a cosine of .6
    member = PlantedMember(rows, rows, sparse.csc_matrix((1, 6), dtype=np.float32), np.zeros(6))
    counterparts = sparse.csr_matrix(np.diag([True] * 5 + [False]))
    pair = PlantedPair(member, member._replace(decoder=near), counterparts)
    ranked = planted.Ranked(np.array([0, 1, 3, 3, 4, 5]), np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))
    score = planted.judged("rule", ranked, pair, 1.0, head=2, best=3)
    assert (score.at_head, score.at_best) == (1, pytest.approx(2 / 3))
    assert (score.tail_precision, score.precision) == (
        1,
        0.8,
    )  # the pair of the feature without one comes last and is left out
    assert (score.recall, score.tail_recall, score.n_pairs) == (0.8, 1, 6)
    none = planted.judged("rule", ranked._replace(partner=np.full(6, -1)), pair, 1.0, head=2, best=3)
    assert (none.at_head, none.recall, none.n_pairs) == (0, 0, 0)


def test_every_rule_has_a_line():
    lines = list(planted.lines(config=SMALL))
    assert [line.work.rsplit(": ", 1)[1] for line in lines] == [
        "argmax", "mutual", "hungarian", "both", "transport", "active", "active", "active",
    ]  # fmt: skip
    assert "500 tokens" in lines[-2].work
    for line in lines:
        assert all(0 <= value <= 1 for name, value in line.numbers.items() if name not in ("n_pairs", "seconds"))
