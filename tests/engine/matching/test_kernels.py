"""Blockwise best cosines against the whole matrix in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seedscope.engine.matching.kernels import best_cosines
from support.golden import unit_rows

EQUAL = 1e-6  # what float32 may change in a cosine, and how far a best must be ahead to be told from a tie
SIZES = [{}, {"block": 2, "group": 1}, {"block": 7, "group": 3}, {"block": 16, "group": 5}, {"block": 64, "group": 64}]


def unit(n: int, d: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def both_ways(a: np.ndarray, b: np.ndarray, **sizes):
    """What best_cosines finds, both directions checked against the whole matrix in float64."""
    found = best_cosines(torch.from_numpy(a), torch.from_numpy(b), **sizes)
    cosines = a.astype(np.float64) @ b.astype(np.float64).T
    for best, matrix in zip(found, (cosines, cosines.T), strict=True):
        ordered = np.sort(np.pad(matrix, ((0, 0), (1, 0)), constant_values=-np.inf), axis=1)
        cosine, runner_up = ordered[:, -1], ordered[:, -2]
        np.testing.assert_allclose(best.cosine, cosine, atol=EQUAL)
        np.testing.assert_allclose(best.runner_up, runner_up, atol=EQUAL)
        assert (best.cosine >= best.runner_up).all()
        partner = best.partner.numpy()
        np.testing.assert_allclose(matrix[np.arange(len(matrix)), partner], cosine, atol=EQUAL)
        separated = cosine - runner_up > 2 * EQUAL
        np.testing.assert_array_equal(partner[separated], matrix.argmax(1)[separated])
        tied = matrix >= cosine[:, None] - 1e-9
        assert (partner <= tied.argmax(1)).all()
    return found


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("rows_a", "rows_b"), [(33, 50), (16, 16), (2, 40), (1, 1), (1, 9), (129, 63), (128, 257), (5, 1025)]
)
def test_blocks_of_any_size_find_what_the_whole_matrix_holds_in_both_directions(rows_a, rows_b, sizes):
    both_ways(unit(rows_a, 8, seed=1), unit(rows_b, 8, seed=2), **sizes)


@given(
    rows_a=st.integers(1, 40),
    rows_b=st.integers(1, 40),
    distinct=st.integers(1, 40),
    noise=st.sampled_from([0.0, 1e-8, 1e-7, 1e-3]),
    block=st.integers(1, 50),
    group=st.integers(1, 50),
    seed=st.integers(0, 2**31),
)
def test_copies_and_near_copies_anywhere_in_either_dictionary(rows_a, rows_b, distinct, noise, block, group, seed):
    """Rows drawn from few directions: ties and near ties within and across groups, in both dictionaries."""
    rng = np.random.default_rng(seed)
    rows = unit(distinct, 12, seed)[rng.integers(distinct, size=rows_a + rows_b)]
    rows = unit_rows(rows + noise * rng.normal(size=rows.shape)).astype(np.float32)
    both_ways(rows[:rows_a], rows[rows_a:], block=block, group=group)


def test_default_sizes_find_what_the_whole_matrix_holds():
    both_ways(unit(600, 16, seed=1), unit(2500, 16, seed=2))


def test_planted_copies_at_the_width_of_a_language_model():
    a = unit(700, 768, seed=1)
    noisy = unit_rows(a[::-1] + np.random.default_rng(3).normal(size=a.shape) * 0.02).astype(np.float32)
    b = np.concatenate([unit(1500, 768, seed=2), noisy])
    forward, _ = both_ways(a, b)
    assert forward.partner.tolist() == [1500 + 699 - i for i in range(700)]


@pytest.mark.parametrize("sizes", SIZES)
def test_ties_go_to_the_lowest_index_within_and_across_blocks(sizes):
    """Rows of the identity, repeated: every row has exact copies in several blocks, and the copy is the runner-up."""
    eye = np.eye(4, dtype=np.float32)
    a, b = eye[[3, 0, 2, 1]], np.concatenate([eye, eye[::-1], eye])
    forward, backward = both_ways(a, b, **sizes)
    assert forward.partner.tolist() == [3, 0, 2, 1]
    assert forward.cosine.tolist() == forward.runner_up.tolist() == [1.0] * 4
    assert backward.partner.tolist() == (a @ b.T).argmax(0).tolist()


@pytest.mark.parametrize("d_in", [3, 100, 768])
def test_copies_tie_whatever_blocks_they_are_rounded_in(d_in):
    """Three copies of a dictionary of odd size: the last blocks are cut short and multiplied by other code."""
    a, rows = unit(37, d_in, seed=1), unit(431, d_in, seed=2)
    once, _ = best_cosines(torch.from_numpy(a), torch.from_numpy(rows))
    thrice, back = best_cosines(torch.from_numpy(a), torch.from_numpy(np.concatenate([rows] * 3)), block=256, group=64)
    assert thrice.partner.tolist() == once.partner.tolist()
    np.testing.assert_allclose(thrice.runner_up, thrice.cosine, atol=EQUAL)
    assert back.partner.reshape(3, -1).unique(dim=0).shape[0] == 1


@pytest.mark.parametrize("sizes", SIZES)
def test_equal_rows_all_have_the_first_as_their_partner(sizes):
    row = unit(1, 50, seed=1)
    for best in both_ways(row.repeat(150, axis=0), row.repeat(301, axis=0), **sizes):
        assert (best.partner == 0).all()


def test_every_row_may_want_the_same_partner():
    """More rows than a block, all nearest to one hub."""
    a = unit_rows(np.eye(8)[0] + 0.1 * np.random.default_rng(1).normal(size=(1500, 8))).astype(np.float32)
    b = np.concatenate([-np.eye(8), np.eye(8)[:1], -np.eye(8)]).astype(np.float32)
    forward, _ = both_ways(a, b)
    assert (forward.partner == 8).all()


def test_swapped_arguments_swap_the_answers():
    a, b = torch.from_numpy(unit(130, 24, seed=1)), torch.from_numpy(unit(1301, 24, seed=2))
    for best, swapped in zip(best_cosines(a, b), reversed(best_cosines(b, a)), strict=True):
        assert best.partner.tolist() == swapped.partner.tolist()
        torch.testing.assert_close(best.cosine, swapped.cosine, atol=EQUAL, rtol=0)
        torch.testing.assert_close(best.runner_up, swapped.runner_up, atol=EQUAL, rtol=0)


def test_the_inputs_are_left_as_they_were():
    a, b = torch.from_numpy(unit(20, 6, seed=1)), torch.from_numpy(unit(30, 6, seed=2))
    before = a.clone(), b.clone()
    best_cosines(a, b, block=8, group=4)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_an_opposite_direction_is_the_worst_partner_not_the_best():
    row = torch.tensor([[1.0, 0.0]])
    forward, _ = best_cosines(row, torch.tensor([[-1.0, 0.0], [0.6, 0.8]]))
    assert (forward.partner.item(), forward.cosine.item()) == (1, pytest.approx(0.6))
    assert forward.runner_up.item() == -1


def test_a_single_partner_leaves_no_runner_up():
    forward, backward = best_cosines(torch.from_numpy(unit(5, 3, 0)), torch.from_numpy(unit(1, 3, 1)))
    assert torch.isneginf(forward.runner_up).all()
    assert torch.isfinite(backward.runner_up).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_finds_what_the_processor_finds():
    a, b = torch.from_numpy(unit(300, 64, seed=1)), torch.from_numpy(unit(1100, 64, seed=2))
    for best, host in zip(best_cosines(a.cuda(), b.cuda()), best_cosines(a, b), strict=True):
        torch.testing.assert_close(best.cosine.cpu(), host.cosine, atol=EQUAL, rtol=0)
        torch.testing.assert_close(best.runner_up.cpu(), host.runner_up, atol=EQUAL, rtol=0)
        assert torch.equal(best.partner.cpu(), host.partner)
