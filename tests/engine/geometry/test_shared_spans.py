"""Small shared spans: planted ones are found and kept, golden values come from plain NumPy, and noise passes nothing."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from seedscope.engine.geometry import expansions, random_sets, shared_spans, span_nulls
from seedscope.engine.geometry.find_spans import Unsearchable, find_spans, pair_energy

RANKS = (6, 4)
D = 40


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def planted(n_seeds=5, ranks=RANKS, n_noise=40, n_shared=20, seed=0):
    """Decoders, which features are searched, labels of those, and the planted spans."""
    rng = np.random.default_rng(seed)
    spans = [np.linalg.qr(rng.standard_normal((D, rank)))[0] for rank in ranks]
    shared = rng.standard_normal((n_shared, D))
    decoders = []
    for _ in range(n_seeds):
        blocks = [unit(rng.standard_normal((2 * span.shape[1], span.shape[1]))) @ span.T for span in spans]
        rows = np.concatenate([*blocks, rng.standard_normal((n_noise, D)), shared])
        decoders.append(unit(rows))
    label = np.repeat([*range(len(ranks)), -1, -2], [*(2 * rank for rank in ranks), n_noise, n_shared])
    searched = np.tile(label != -2, (n_seeds, 1))
    return decoders, searched, np.tile(label[label != -2], n_seeds), spans


@pytest.fixture(scope="module")
def found():
    decoders, searched, label, spans = planted()
    density = np.random.default_rng(1).random(searched.shape)
    return find_spans(decoders, searched, np.ones_like(searched), density), label, spans


def assigned(found):
    labels = np.full(len(found.pool.rows), -1)
    for index, candidate in enumerate(found.kept):
        labels[candidate.span.members] = index
    return labels


def test_planted_spans_are_found_and_kept(found):
    result, label, spans = found
    assert len(result.kept) == len(RANKS)
    assert adjusted_rand_score(label, assigned(result)) > 0.9
    assert sorted(each.span.rank for each in result.kept) == sorted(RANKS)
    for span in spans:
        overlaps = [np.linalg.norm(span.T @ each.span.directions) ** 2 / span.shape[1] for each in result.kept]
        assert max(overlaps) > 0.98
    assert all(max(each.p.values()) <= 0.01 for each in result.kept)
    assert all(set(each.p) == set(span_nulls.NULL_SETS) for each in result.candidates)


def test_noise_alone_gives_no_span():
    for seed in range(3):
        decoders, searched, _, _ = planted(ranks=(), n_noise=60, seed=seed)
        result = find_spans(decoders, searched, np.ones_like(searched))
        assert result.kept == []
        assert all(
            each.failed in ("living", "rotated", "second_moment", "not_found_again") for each in result.candidates
        )


def test_the_same_input_gives_the_same_result(found):
    decoders, searched, _, _ = planted()
    again = find_spans(decoders, searched, np.ones_like(searched), np.random.default_rng(1).random(searched.shape))
    first = found[0]
    assert [(each.id, each.p, each.failed) for each in again.candidates] == [
        (each.id, each.p, each.failed) for each in first.candidates
    ]
    for one, other in zip(first.left_out, again.left_out, strict=True):
        np.testing.assert_array_equal(one.tested.energy, other.tested.energy)


def test_a_seed_plays_no_part_in_the_span_that_is_measured_on_it(found):
    """Another dictionary in the last seed's place changes what is captured there, not the span."""
    decoders, searched, _, _ = planted()
    decoders[-1] = unit(np.random.default_rng(7).standard_normal(decoders[-1].shape))
    other = find_spans(decoders, searched, np.ones_like(searched), n_draws=19)
    spans, there = found[0].left_out[-1].spans, other.left_out[-1].spans
    # The last seed's living features do decide in how many dimensions chance is reckoned.
    assert {tuple(span.members) for span in there} & {tuple(span.members) for span in spans}


def test_captured_energy_is_the_mean_of_the_nearest_rows(found):
    result = found[0]
    candidate = result.kept[0]
    index, overlap = result.at(0, 2)
    span = result.left_out[2].spans[index]
    rows = result.pool.rows[result.pool.seed == 2].astype(float)
    _, _, vectors = np.linalg.svd(result.pool.rows[span.members].astype(float), full_matrices=False)
    energy = np.sort(((rows @ vectors[: span.rank].T) ** 2).sum(1))[::-1]
    assert result.left_out[2].tested.energy[index] == pytest.approx(energy[: span.n_measured].mean(), abs=1e-5)
    n_seeds = len(np.unique(result.pool.seed[span.members]))
    assert span.n_measured == round(len(span.members) / n_seeds)
    mine, theirs = set(candidate.span.members[result.pool.seed[candidate.span.members] != 2]), set(span.members)
    assert overlap == pytest.approx(len(mine & theirs) / len(mine | theirs))


def test_a_pair_is_measured_in_one_seeds_span(found):
    result = found[0]
    index, _ = result.at(0, 3)
    span = result.left_out[3].spans[index]
    mine = result.pool.rows[[m for m in span.members if result.pool.seed[m] == 1]].astype(float)
    _, _, vectors = np.linalg.svd(mine, full_matrices=False)
    rows = result.pool.rows[result.pool.seed == 3].astype(float)
    energy = np.sort(((rows @ vectors[: span.rank].T) ** 2).sum(1))[::-1]
    assert pair_energy(result, 0, 1, 3) == pytest.approx(energy[: span.n_measured].mean(), abs=1e-5)


def test_directions_are_right_singular_vectors():
    rng = np.random.default_rng(0)
    for shape in ((5, 12), (30, 12)):
        rows = rng.standard_normal(shape).astype(np.float32)
        _, _, vectors = np.linalg.svd(rows.astype(float), full_matrices=False)
        got = shared_spans.directions(rows, 4)
        np.testing.assert_allclose(np.abs(np.diag(vectors[:4] @ got)), 1, atol=1e-5)
    assert shared_spans.directions(np.tile(rows[:1], (6, 1)), 4).shape == (12, 1)  # one direction, six times


def test_links_are_mutual_memberships():
    """Two seeds that hold the same two rows: each writes the other with itself."""
    rows = np.eye(6, dtype=np.float32)
    decoders = [rows[:3], rows[[0, 1, 4]]]
    all_of = np.ones((2, 3), bool)
    pool = expansions.pool_of(decoders, all_of, all_of)
    links = expansions.mutual_links(pool, decoders, all_of).toarray()
    expected = np.zeros((6, 6))
    expected[0, 3] = expected[3, 0] = expected[1, 4] = expected[4, 1] = 1
    np.testing.assert_array_equal(links, expected)


def test_effective_dimension_is_the_participation_ratio():
    assert expansions.effective_dimension(np.eye(7)) == pytest.approx(7)
    assert expansions.effective_dimension(np.diag([3.0, 1.0])) == pytest.approx(16 / 10)


def test_communities_leave_a_seed_out():
    pairs = np.zeros((6, 6), np.float32)
    pairs[0, 1] = pairs[1, 2] = pairs[3, 4] = pairs[4, 5] = 1
    graph = sparse.csr_matrix(pairs + pairs.T)
    assert [part.tolist() for part in expansions.communities(graph)] == [[0, 1, 2], [3, 4, 5]]
    assert [part.tolist() for part in expansions.communities(graph, np.arange(6) == 4)] == [[0, 1, 2]]
    assert expansions.communities(sparse.csr_matrix((3, 3))) == []


def test_p_counts_the_largest_of_every_draw():
    rng = np.random.default_rng(0)
    drawn, observed = rng.random((99, 3)), np.array([0.5, 2.0, 0.9])
    every = np.concatenate([drawn, observed[None]])
    scores = (every - every.mean(0)) / every.std(0)
    expected = [(1 + (scores[:-1].max(1) >= score).sum()) / 100 for score in scores[-1]]
    np.testing.assert_allclose(span_nulls.corrected_p(observed, drawn), expected)
    assert span_nulls.corrected_p(np.zeros(0), np.zeros((5, 0))).tolist() == []


def test_p_over_seeds_is_twice_the_median_about():
    assert span_nulls.over_seeds(np.array([0.005, 0.005, 0.005, 1.0, 1.0, 1.0])) == pytest.approx(0.01)
    assert span_nulls.over_seeds(np.array([0.005, 0.005, 0.9, 1.0, 1.0])) == 1


def test_draws_take_no_place_twice():
    rng = np.random.default_rng(0)
    for n, chosen in ((9, 5), (100, 6), (3, 3)):
        places = random_sets._distinct(n, chosen, 200, rng)
        assert places.shape == (200, chosen)
        assert all(len(set(row)) == chosen for row in places.tolist())
        assert 0 <= places.min() <= places.max() < n


def test_the_second_moment_null_has_the_second_moment():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(unit(rng.standard_normal((50, 5)) * [3, 1, 1, 1, 0.2]))
    lengths, axes = span_nulls._principal_axes(rows)
    root = lengths[:, None] * axes.T
    np.testing.assert_allclose((root.T @ root).numpy(), (rows.T @ rows / 50).numpy(), atol=1e-5)


def test_random_frames_are_orthonormal_and_go_anywhere():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([span_nulls.random_frame(6, 3, generator) for _ in range(2000)])
    np.testing.assert_allclose((drawn.mT @ drawn).numpy(), np.tile(np.eye(3), (2000, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(drawn.mean(0).numpy(), 0, atol=0.04)
    np.testing.assert_allclose((drawn**2).mean(0).numpy(), 1 / 6, atol=0.02)


def sets_of_rows(n_rows, d, *, common=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((5, n_rows, d)) + common * rng.standard_normal(d) * np.sqrt(d)
    return torch.from_numpy(unit(rows))


@pytest.mark.parametrize(("n_rows", "d"), [(30, 60), (90, 40)])
@pytest.mark.parametrize("common", [0.0, 0.1])
def test_leading_directions_hold_what_any_as_many_can(n_rows, d, common):
    sets = sets_of_rows(n_rows, d, common=common)
    rank = 8
    got = random_sets.leading_directions(sets, rank)
    np.testing.assert_allclose((got.mT @ got).numpy(), np.tile(np.eye(rank), (5, 1, 1)), atol=2e-3)
    for rows, found in zip(sets.numpy().astype(float), got.numpy(), strict=True):
        most = (np.linalg.svd(rows, compute_uv=False)[:rank] ** 2).sum()
        assert ((rows @ found) ** 2).sum() == pytest.approx(most, rel=1e-4)


def test_energy_in_random_sets_is_that_of_the_singular_vectors(monkeypatch):
    rng = np.random.default_rng(0)
    living, rows = unit(rng.standard_normal((40, 30))), unit(rng.standard_normal((25, 30)))
    at = rng.integers(0, 40, (7, 12))
    draws = random_sets.Draws(torch.from_numpy(living), torch.from_numpy(at))
    expected = []
    for places in at:
        vectors = np.linalg.svd(living[places].astype(float), full_matrices=False)[2][:3]
        expected.append(np.sort(((rows @ vectors.T) ** 2).sum(1))[-4:].mean())
    for at_once in (random_sets.SETS_AT_ONCE, 1):
        monkeypatch.setattr(random_sets, "SETS_AT_ONCE", at_once)
        got = random_sets.energy_in_random_sets(torch.from_numpy(rows), draws, 3, 4)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_stand_ins_are_of_the_members_seeds_and_of_like_density():
    rng = np.random.default_rng(0)
    decoders = [unit(rng.standard_normal((60, 8))) for _ in range(3)]
    living, density = rng.random((3, 60)) > 0.2, rng.random((3, 60))
    pool = expansions.pool_of(decoders, living, living)
    members = np.sort(rng.choice(np.flatnonzero(pool.seed != 1), 9, replace=False))
    rows = random_sets.LivingRows(decoders, living, density)
    of_seed = np.repeat(range(3), living.sum(1))
    for drawn in (rows.of(pool, members).any(50, rng), rows.of(pool, members).matched(50, rng)):
        assert (of_seed[drawn.at.numpy()] == pool.seed[members]).all()
    places = drawn.at.numpy()
    for seed in (0, 2):
        order = np.sort(density[seed][living[seed]])
        mine = np.flatnonzero(pool.seed[members] == seed)
        rank = np.searchsorted(order, density[seed][pool.feature[members[mine]]])
        away = np.abs(places[:, mine] - np.searchsorted(of_seed, seed) - rank)
        assert away.max() <= 2 * random_sets.NEIGHBOURS


def test_what_cannot_be_searched_is_said_in_one_line():
    decoders, searched, _, _ = planted(n_seeds=2)
    alive = np.ones_like(searched)
    with pytest.raises(Unsearchable, match="found 2 seeds, expected at least 3"):
        find_spans(decoders, searched, alive)
    decoders, searched, _, _ = planted(n_seeds=3)
    for unstable, living in ((np.zeros_like(searched), np.ones_like(searched)), (searched, np.zeros_like(searched))):
        with pytest.raises(Unsearchable, match="0 of 3 seeds have living features without counterparts"):
            find_spans(decoders, unstable, living)
    bare = [rows.copy() for rows in decoders]
    bare[1][0] = 0
    with pytest.raises(ValueError, match="without a direction"):
        find_spans(bare, searched, np.ones_like(searched))
