"""Blockwise best cosines against the whole matrix in NumPy."""

import numpy as np
import pytest
import torch
from golden import unit_rows

from engine.kernels import best_cosines


def unit(n: int, d: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def from_whole_matrix(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ordered = np.sort(cosines, axis=1)
    return ordered[:, -1], cosines.argmax(1), ordered[:, -2]


SIZES = [{}, {"block": 2, "group": 1}, {"block": 7, "group": 3}, {"block": 16, "group": 5}, {"block": 64, "group": 64}]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("rows_a", "rows_b"), [(33, 50), (16, 16), (2, 40)])
def test_blocks_of_any_size_find_what_the_whole_matrix_holds_in_both_directions(rows_a, rows_b, sizes):
    a, b = unit(rows_a, 8, seed=1), unit(rows_b, 8, seed=2)
    cosines = a @ b.T
    found = best_cosines(torch.from_numpy(a), torch.from_numpy(b), **sizes)
    for best, matrix in zip(found, (cosines, cosines.T), strict=True):
        value, partner, runner_up = from_whole_matrix(matrix)
        np.testing.assert_array_equal(best.partner, partner)
        np.testing.assert_allclose(best.cosine, value, atol=1e-6)
        np.testing.assert_allclose(best.runner_up, runner_up, atol=1e-6)


def test_default_sizes_find_what_the_whole_matrix_holds():
    a, b = unit(600, 16, seed=1), unit(2500, 16, seed=2)
    for best, matrix in zip(best_cosines(torch.from_numpy(a), torch.from_numpy(b)), (a @ b.T, b @ a.T), strict=True):
        np.testing.assert_allclose(best.cosine, matrix.max(1), atol=1e-6)
        np.testing.assert_array_equal(best.partner, matrix.argmax(1))


@pytest.mark.parametrize("sizes", SIZES)
def test_ties_go_to_the_lowest_index_within_and_across_blocks(sizes):
    """Rows of the identity, repeated: every row has exact copies in several blocks, and the copy is the runner-up."""
    eye = np.eye(4, dtype=np.float32)
    a, b = eye[[3, 0, 2, 1]], np.concatenate([eye, eye[::-1], eye])
    forward, backward = best_cosines(torch.from_numpy(a), torch.from_numpy(b), **sizes)
    assert forward.partner.tolist() == [3, 0, 2, 1]
    assert forward.cosine.tolist() == forward.runner_up.tolist() == [1.0] * 4
    assert backward.partner.tolist() == (a @ b.T).argmax(0).tolist()


def test_an_opposite_direction_is_the_worst_partner_not_the_best():
    row = torch.tensor([[1.0, 0.0]])
    forward, _ = best_cosines(row, torch.tensor([[-1.0, 0.0], [0.6, 0.8]]))
    assert (forward.partner.item(), forward.cosine.item()) == (1, pytest.approx(0.6))
    assert forward.runner_up.item() == -1


def test_a_single_partner_leaves_no_runner_up():
    forward, backward = best_cosines(torch.from_numpy(unit(5, 3, 0)), torch.from_numpy(unit(1, 3, 1)))
    assert torch.isneginf(forward.runner_up).all()
    assert torch.isfinite(backward.runner_up).all()
