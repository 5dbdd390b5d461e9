"""Orthogonal matching pursuit against explicit least squares, planted combinations, and random dictionaries."""

import numpy as np
import pytest

from seedscope.engine.geometry import pursuit
from seedscope.engine.geometry.pursuit import pursuit_residual, span_residuals


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def by_least_squares(row: np.ndarray, dictionary: np.ndarray, k_max: int) -> tuple[list[float], list[int]]:
    """Textbook matching pursuit, one row at a time."""
    atoms, norms, left = [], [], row.astype(float)
    for _ in range(k_max):
        atoms.append(int(np.abs(dictionary @ left).argmax()))
        chosen = dictionary[atoms].T.astype(float)
        left = row - chosen @ np.linalg.lstsq(chosen, row.astype(float), rcond=None)[0]
        norms.append(float(np.linalg.norm(left)))
    return norms, atoms


@pytest.mark.parametrize("held", [pursuit.HELD_COSINES, 90])
def test_residuals_and_atoms_are_those_of_least_squares(held, monkeypatch):
    monkeypatch.setattr(pursuit, "HELD_COSINES", held)  # 90: three rows at once
    rows, dictionary = unit_rows(20, 16), unit_rows(30, 16, seed=1)
    found = pursuit_residual(rows, dictionary, 6)
    for i, row in enumerate(rows):
        norms, atoms = by_least_squares(row, dictionary, 6)
        np.testing.assert_allclose(found.residual[i], norms, atol=1e-5)
        assert found.atoms[i].tolist() == atoms


def test_a_combination_of_orthogonal_features_is_written_exactly_and_nothing_joins_after_that():
    dictionary = np.eye(10, dtype=np.float32)
    row = (3 * dictionary[4] - 2 * dictionary[7] + dictionary[1])[None]
    found = pursuit_residual(row, dictionary, 5)
    np.testing.assert_allclose(found.residual[0], np.sqrt([5 / 14, 1 / 14, 0, 0, 0]), atol=1e-6)
    assert found.atoms[0].tolist() == [4, 7, 1, -1, -1]


def test_rows_end_behind_the_first_feature_that_gains_too_little():
    rows, dictionary = unit_rows(40, 16), unit_rows(30, 16, seed=1)
    whole, cut = pursuit_residual(rows, dictionary, 6), pursuit_residual(rows, dictionary, 6, least_gain=0.3)
    before = np.concatenate([np.ones((40, 1)), whole.residual[:, :-1]], 1)
    enough = np.logical_and.accumulate(1 - (whole.residual / before) ** 2 > 0.3, axis=1)
    n_steps = np.minimum(enough.sum(1) + 1, 6)  # with the one that was too little
    assert len(set(n_steps.tolist())) > 2
    for i, n in enumerate(n_steps):
        np.testing.assert_allclose(cut.residual[i, :n], whole.residual[i, :n], atol=1e-6)
        assert cut.atoms[i, :n].tolist() == whole.atoms[i, :n].tolist()
        assert (cut.atoms[i, n:] == -1).all()
        assert (cut.residual[i, n:] == cut.residual[i, n - 1]).all()


def test_copies_of_a_feature_in_the_dictionary_write_no_more_than_one():
    one = unit_rows(1, 8)
    found = pursuit_residual(unit_rows(5, 8, seed=2), np.repeat(one, 4, axis=0), 3)
    np.testing.assert_allclose(found.residual[:, 1:], found.residual[:, :1].repeat(2, 1), atol=1e-6)
    assert (found.atoms[:, 1:] == -1).all()


def test_members_with_common_features_write_each_other_and_random_dictionaries_cannot():
    """Every row mixes two of forty directions that all members hold."""
    rng, common = np.random.default_rng(0), unit_rows(40, 32, seed=3)
    rows = [common[[rng.choice(40, 2, replace=False) for _ in range(25)]].sum(1) for _ in range(3)]
    found = span_residuals(rows, [common, common[::-1].copy(), common], 4, n_rows=20)
    assert found.n_rows.tolist() == [20, 20, 20]
    assert found.by_pair.shape == (3, 3, 4)
    assert np.isnan(found.by_pair[[0, 1, 2], [0, 1, 2]]).all()
    assert (np.diff(found.mean) <= 1e-6).all()
    assert found.mean[3] < 0.3 < min(chance[3] for chance in found.chance.values())
    assert set(found.chance) == {"haar", "second_moment"}


def test_empty_sets_one_member_and_no_features_are_refused():
    with pytest.raises(ValueError, match="set 1 has 0 rows"):
        pursuit_residual(unit_rows(3, 4), np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="k_max is 0"):
        pursuit_residual(unit_rows(3, 4), unit_rows(3, 4), 0)
    with pytest.raises(ValueError, match="found 1 member"):
        span_residuals([unit_rows(3, 4)], [unit_rows(3, 4)])
