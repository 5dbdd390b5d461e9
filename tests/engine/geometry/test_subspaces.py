"""Spans of sets of features against NumPy's SVD and explicit loops, and planted spans that must be found."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from seedscope.engine.geometry import subspaces
from seedscope.engine.geometry.subspaces import (
    basis,
    captured,
    effective_rank,
    log_ranks,
    matched_rank,
    moment,
    overlaps,
    principal_angles,
    projected_energy,
    random_rank,
    spectrum,
    transfer,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_sets(*sizes: int, d: int = 12, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [unit(rng.normal(size=(n, d))).astype(np.float32) for n in sizes]


def planted_sets(members: int, n: int, d: int, r: int, *, shared: bool) -> list[np.ndarray]:
    """Rows inside an r-dimensional span: one for all members, or one of each member's own."""
    rng = np.random.default_rng(0)
    spans = [np.linalg.qr(rng.normal(size=(d, r)))[0].T for _ in range(members)]
    return [unit(rng.normal(size=(n, r)) @ spans[0 if shared else member]) for member in range(members)]


def bases_of(sets: list[np.ndarray], rank: int) -> list[subspaces.Basis]:
    return [basis(torch.from_numpy(rows), rank) for rows in sets]


def top(rows: np.ndarray, rank: int) -> np.ndarray:
    """(rank, d) right singular vectors."""
    return np.linalg.svd(rows.astype(float), full_matrices=False)[2][:rank]


@pytest.mark.parametrize("n", [1, 5, 12, 40])
def test_spectrum_and_effective_rank_are_those_of_the_svd(n):
    [rows] = random_sets(n)
    values = np.linalg.svd(rows.astype(float), compute_uv=False)
    np.testing.assert_allclose(spectrum(rows), values, atol=1e-6)
    p = values / values.sum()
    found = effective_rank(rows)
    assert found.rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=1e-6)
    assert found.per_dimension * 12 == pytest.approx(found.rank)
    assert found.per_bound * min(n, 12) == pytest.approx(found.rank)


def test_effective_rank_of_equal_rows_is_one_and_of_orthogonal_rows_their_number():
    assert effective_rank(np.tile(np.eye(6, dtype=np.float32)[0], (9, 1))).rank == pytest.approx(1, abs=1e-5)
    assert effective_rank(3 * np.eye(6, dtype=np.float32)[:4]).rank == pytest.approx(4)


def test_random_rows_reach_the_effective_ranks_that_are_known():
    assert random_rank(500, 768, n_draws=1).mean / 768 == pytest.approx(0.585, abs=0.003)
    assert random_rank(60, 24).mean > random_rank(20, 24).mean


def test_count_matched_ranks_grow_with_the_count_and_end_at_the_whole():
    [rows] = random_sets(50)
    ranks = [matched_rank(rows, n) for n in (3, 6, 12, 25, 50)]
    assert (np.diff([found.mean for found in ranks]) > 0).all()
    assert ranks[-1].mean == pytest.approx(effective_rank(rows).rank)
    assert ranks[-1].spread == 0 < ranks[2].spread
    assert abs(ranks[2].mean - random_rank(12, 12).mean) < 4 * (ranks[2].spread + 0.05)
    with pytest.raises(ValueError, match="asked for 51 of 50 rows"):
        matched_rank(rows, 51)


def test_captured_energy_is_the_mean_squared_cosine_with_the_top_singular_vectors():
    fitted, measured = random_sets(9, 30, 4), random_sets(20, 5, seed=1)
    ranks = [1, 3, 4, 8, 12]
    found = captured(bases_of(fitted, 12), torch.stack([moment(torch.from_numpy(rows)) for rows in measured]), ranks)
    for s, rows in enumerate(fitted):
        for t, others in enumerate(measured):
            for at, rank in enumerate(ranks):
                expected = ((others @ top(rows, rank).T) ** 2).sum(1).mean() if rank <= len(rows) else np.nan
                assert found[s, t, at] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_blocks_of_bases_change_nothing(monkeypatch):
    fitted = random_sets(20, 20, 20, 20, 20)
    bases, moments = bases_of(fitted, 12), torch.stack([moment(torch.from_numpy(rows)) for rows in fitted])
    whole = captured(bases, moments, [2, 5]), overlaps(bases, [2, 5])
    monkeypatch.setattr(subspaces, "HELD_PROJECTORS", 2 * 4 * 12**2)
    monkeypatch.setattr(subspaces, "ANGLES_AT_ONCE", 10)
    np.testing.assert_allclose(captured(bases, moments, [2, 5]), whole[0], atol=1e-6)
    np.testing.assert_allclose(overlaps(bases, [2, 5]), whole[1], atol=1e-6)
    assert principal_angles(bases, 3).shape == (10, 3)


def test_overlaps_and_angles_are_those_of_the_spans():
    fitted = random_sets(20, 20, 3)
    bases = bases_of(fitted, 12)
    found, angles = overlaps(bases, [2, 5]), principal_angles(bases, 5)
    for s, t in ((0, 1), (1, 0)):
        expected = [np.linalg.norm(top(fitted[s], r) @ top(fitted[t], r).T) ** 2 / r for r in (2, 5)]
        np.testing.assert_allclose(found[s, t], expected, atol=1e-6)
    np.testing.assert_allclose(found[[0, 1], [0, 1]], 1, atol=1e-6)
    np.testing.assert_allclose(angles[0], np.sort(subspace_angles(top(fitted[0], 5).T, top(fitted[1], 5).T)), atol=1e-5)
    np.testing.assert_allclose((np.cos(angles[0]) ** 2).mean(), found[0, 1, 1], atol=1e-6)
    assert np.isnan(angles[1:]).all()
    assert np.isnan(found[0, 2]).tolist() == [False, True]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 20), min_size=2, max_size=4), st.integers(2, 9), st.integers(0, 1000))
def test_energies_are_shares_that_grow_with_rank_and_overlaps_are_symmetric(sizes, d, seed):
    sets = random_sets(*sizes, d=d, seed=seed)
    ranks = list(range(1, d + 1))
    bases = bases_of(sets, d)
    energy = captured(bases, torch.stack([moment(torch.from_numpy(rows)) for rows in sets]), ranks)
    shared = overlaps(bases, ranks)
    np.testing.assert_array_equal(shared, shared.transpose(1, 0, 2))
    for values in (energy, shared):
        assert np.nanmin(values) >= 0
        assert np.nanmax(values) <= 1
    for member, rows in enumerate(sets):
        reached = energy[member, :, : min(d, len(rows))]
        assert (np.diff(reached, axis=-1) >= -1e-6).all()
        assert np.isnan(energy[member, :, len(rows) :]).all()
        assert reached[member, -1] == pytest.approx(1, abs=1e-5)


def test_a_shared_span_transfers_whole_and_one_of_each_its_own_by_chance():
    d, r = 40, 6
    shared = transfer(planted_sets(4, 60, d, r, shared=True), [2, r, 20])
    np.testing.assert_allclose(shared.cross.mean[1:], 1, atol=1e-5)
    np.testing.assert_allclose(shared.within.mean[1:], 1, atol=1e-5)
    assert shared.cross.mean[0] < 0.7
    own = transfer(planted_sets(4, 60, d, r, shared=False), [r])
    assert own.within.mean[0] == pytest.approx(1, abs=1e-5)
    assert own.cross.mean[0] == pytest.approx(r / d, abs=0.04)
    assert own.random_subspace.tolist() == [r / d]


def test_within_and_cross_agree_where_members_are_draws_of_one_distribution():
    """Fitted on equally many rows, measured on rows that were not fitted: no optimism on either side."""
    rng, scale = np.random.default_rng(0), np.geomspace(1, 0.1, 16)
    found = transfer([unit(rng.normal(size=(200, 16)) * scale) for _ in range(6)], [2, 6], n_splits=6)
    np.testing.assert_allclose(found.within.mean, found.cross.mean, atol=0.01)
    assert (found.cross.mean > found.random_subspace + 0.1).all()
    assert (found.cross.split_spread < found.cross.spread).all()


def test_transfer_is_that_of_explicit_loops():
    """The halves are drawn as `transfer` says: one permutation per member, in order."""
    sets = random_sets(11, 14, 9, d=6)
    found = transfer(sets, [2, 5], n_splits=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    within, cross = np.zeros((2, 3, 2)), np.zeros((2, 3, 3, 2))
    for split in range(2):
        for s, rows in enumerate(sets):
            order = torch.randperm(len(rows), generator=generator).numpy()
            half = len(rows) // 2
            for at, rank in enumerate((2, 5)):
                v = top(rows[order[:half]], rank) if rank <= half else np.full((rank, 6), np.nan)
                within[split, s, at] = ((rows[order[half:]] @ v.T) ** 2).sum(1).mean()
                cross[split, s, :, at] = [((other @ v.T) ** 2).sum(1).mean() for other in sets]
    np.testing.assert_allclose(found.within.energy[:, 0], within.mean(0), atol=1e-6)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found.cross.energy[off], cross.mean(0)[off], atol=1e-6)
    assert np.isnan(found.cross.energy[~off]).all()
    np.testing.assert_allclose(found.cross.mean, np.nanmean(cross.mean(0)[off], 0), atol=1e-6)
    np.testing.assert_allclose(found.cross.spread, np.nanstd(cross.mean(0)[off], 0), atol=1e-6)
    np.testing.assert_allclose(found.cross.split_spread[0], cross[:, off][..., 0].mean(1).std(), atol=1e-6)
    assert found.cross.n_fitted.tolist() == [5, 7, 4]
    assert found.cross.n_pairs.tolist() == [6, 4]
    assert found.within.n_pairs.tolist() == [3, 2]


def test_baselines_are_fitted_on_as_many_rows_and_stop_where_theirs_end():
    sets = planted_sets(3, 40, 30, 5, shared=True)
    stable = random_sets(60, 60, 12, d=30)
    living = [np.concatenate(both) for both in zip(sets, stable, strict=True)]
    found = transfer(sets, [5, 15, 25], living=living, stable=stable, covariance=sets[0].T @ sets[0])
    assert found.random_set.n_fitted.tolist() == found.cross.n_fitted.tolist() == [20, 20, 20]
    assert found.stable.n_fitted.tolist() == [20, 20, 12]
    assert found.stable.n_pairs.tolist() == [6, 4, 0]
    assert np.isnan(found.stable.mean[2])
    assert found.stable.mean[0] == pytest.approx(5 / 30, abs=0.05)
    assert found.stable.mean[0] < found.random_set.mean[0] < found.cross.mean[0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.activations.energy[0], 1, atol=1e-5)
    assert found.activations.energy.shape == (1, 3, 3)
    assert transfer(sets, [5]).stable is None


def test_a_features_energy_in_its_own_span_is_fitted_without_it():
    """Isotropic rows: fitted on themselves they would capture far more than r / d."""
    rows = random_sets(60, 60, 60, d=40)
    found = projected_energy(rows, [np.arange(60) < 40] * 3, [4, 20, 30], n_splits=4)
    for member in found:
        np.testing.assert_allclose(member.own[:, :2].mean(0), [4 / 40, 20 / 40], atol=0.04)
        np.testing.assert_allclose(member.others[:, :2].mean(0), [4 / 40, 20 / 40], atol=0.04)
        assert np.isnan(member.own[:, 2]).all()  # halves have 20 rows
        assert np.isnan(member.others[:, 2]).all()


def test_projected_energies_are_those_of_the_fitted_halves():
    rows, inside = random_sets(12, 10, 11, d=5), [np.arange(12) < 8, np.arange(10) > 2, np.arange(11) < 6]
    found = projected_energy(rows, inside, [2], n_splits=1, seed=5)
    generator = torch.Generator().manual_seed(5)
    halves = []
    for mask in inside:
        at = np.flatnonzero(mask)
        halves.append(np.array_split(at[torch.randperm(len(at), generator=generator).numpy()], 2))
    energy = np.array(
        [
            [[((rows[0][i] @ top(rows[m][half], 2).T) ** 2).sum() for i in range(12)] for half in halves[m]]
            for m in range(3)
        ]
    )
    np.testing.assert_allclose(found[0].others[:, 0], energy[1:].mean((0, 1)), atol=1e-6)
    own = energy[0].mean(0)
    own[halves[0][0]], own[halves[0][1]] = energy[0, 1, halves[0][0]], energy[0, 0, halves[0][1]]
    np.testing.assert_allclose(found[0].own[:, 0], own, atol=1e-6)


def test_rows_of_a_planted_span_lie_in_it_and_others_do_not():
    planted, others = planted_sets(3, 30, 40, 4, shared=True), random_sets(30, 30, 30, d=40)
    rows = [np.concatenate(both) for both in zip(planted, others, strict=True)]
    found = projected_energy(rows, [np.arange(60) < 30] * 3, [4])
    for member in found:
        np.testing.assert_allclose(member.own[:30], 1, atol=1e-5)
        np.testing.assert_allclose(member.others[:30], 1, atol=1e-5)
        assert member.others[30:].mean() == pytest.approx(4 / 40, abs=0.05)


def test_ranks_are_spaced_by_their_logarithm():
    assert log_ranks(768) == sorted(set(log_ranks(768)))
    assert (log_ranks(768)[0], log_ranks(768)[-1]) == (1, 768)
    assert log_ranks(3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("sets", "ranks", "message"),
    [
        (random_sets(5), [1], "found 1 member, expected at least 2"),
        (random_sets(5, 0), [1], "set 1 has 0 rows, expected at least 2: leave"),
        (random_sets(1, 5), [1], "set 0 has 1 rows, expected at least 2"),
        ([np.eye(4), np.zeros((3, 4))], [1], "set 1 has 3 rows without a direction"),
        ([np.eye(4), np.eye(5)], [1], r"rows of \[4, 5\] entries"),
        (random_sets(5, 5), [13], r"ranks are \[13\], expected at least one, from 1 to the width 12"),
        (random_sets(5, 5), [0, 2], "from 1 to the width"),
        (random_sets(5, 5), [], "expected at least one"),
    ],
)
def test_what_cannot_be_compared_is_refused(sets, ranks, message):
    with pytest.raises(ValueError, match=message):
        transfer(sets, ranks)


def test_empty_sets_and_baselines_are_refused():
    with pytest.raises(ValueError, match="0 rows"):
        effective_rank(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="set 1 has 0 rows"):
        transfer(random_sets(5, 5), [1], stable=random_sets(5, 0))
    with pytest.raises(ValueError, match="set 0 has 1 rows, expected at least 2"):
        projected_energy(random_sets(5, 5), [np.arange(5) < 1, np.arange(5) < 4], [1])
