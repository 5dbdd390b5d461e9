"""Laying one model's activations over another's: the rotation, judged on rows that it was not fitted to."""

import numpy as np
import pytest
import scipy.linalg
import torch

from seedscope.engine.geometry.procrustes import BLOCK, EVERY, align


def spaces(noise: float, n: int = 10 * BLOCK, d: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, the same rows turned, scaled, moved and with noise, the rotation)."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, d)) * np.linspace(1, 4, d) + 3
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rows, 0.5 * rows @ turn + rng.normal(size=d) + noise * rng.normal(size=(n, d)), turn


def test_a_rotated_scaled_and_moved_space_is_found_again_exactly():
    rows, onto, turn = spaces(0)
    found = align(rows, onto)
    np.testing.assert_allclose(found.rotation.numpy(), turn, atol=1e-5)
    assert found.scale == pytest.approx(0.5, abs=1e-9)
    assert found.r2 == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.apply(torch.from_numpy(rows).float()).numpy(), onto, atol=1e-4)


def test_rotation_scale_and_r2_are_those_of_scipy_on_the_blocks_that_were_fitted_and_left_out():
    rows, onto, _ = spaces(1.0)
    found = align(rows, onto)
    left_out = np.arange(len(rows)) // BLOCK % EVERY == EVERY - 1
    mean, target = rows[~left_out].mean(0), onto[~left_out].mean(0)
    a, b = rows[~left_out] - mean, onto[~left_out] - target
    rotation, total = scipy.linalg.orthogonal_procrustes(a, b)
    scale = total / (a**2).sum()
    np.testing.assert_allclose(found.rotation.numpy(), rotation, atol=1e-5)
    assert found.scale == pytest.approx(scale, rel=1e-9)
    judged = onto[left_out] - target
    missed = judged - scale * (rows[left_out] - mean) @ rotation
    assert found.r2 == pytest.approx(1 - (missed**2).sum() / (judged**2).sum(), abs=1e-9)


def test_rows_of_other_tokens_explain_nothing():
    rows, onto, _ = spaces(0.1)
    assert abs(align(rows, onto).r2_shuffled) < 0.02
    unrelated = np.random.default_rng(1).normal(size=rows.shape)
    assert align(unrelated, onto).r2 < 0.02


@pytest.mark.parametrize(
    ("rows", "onto", "says"),
    [
        (np.zeros((10, 4)), np.zeros((10, 5)), "the same width"),
        (np.zeros((100, 4)), np.zeros((100, 4)), "expected at least 4,097 to align models"),
    ],
)
def test_spaces_that_cannot_be_compared_are_refused(rows, onto, says):
    with pytest.raises(ValueError, match=says):
        align(rows, onto)
