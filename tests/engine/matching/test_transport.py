"""Entropic transport against Sinkhorn on the whole matrix in float64, written out plainly here."""

import warnings

import numpy as np
import pytest
import torch

from seedscope.engine.matching import transport as blocks
from seedscope.engine.matching.transport import Transport, partners_between, transport
from support.golden import plan_of, unit_rows


def drawn(n: int, d_in: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, d_in))).astype(np.float32)


def halves(n: int, d_in: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two dictionaries; the first half of the second are copies of the first with noise of many sizes."""
    rng = np.random.default_rng(seed)
    a, b, half = drawn(n, d_in, seed + 1), drawn(n, d_in, seed + 2), n // 2
    b[:half] = unit_rows(a[:half] + 1.5 * rng.random((half, 1)) * rng.standard_normal((half, d_in)) / d_in**0.5)
    return a, b


def found_for(a: np.ndarray, b: np.ndarray, **options: float) -> Transport:
    return transport(torch.from_numpy(a), torch.from_numpy(b), **options)


@pytest.mark.parametrize(("n_a", "n_b"), [(60, 60), (40, 75), (75, 40), (1, 9)])
@pytest.mark.parametrize("epsilon", [0.2, 0.05])
def test_the_plan_is_that_of_plain_sinkhorn(n_a, n_b, epsilon):
    a, b = drawn(n_a, 24, 0), drawn(n_b, 24, 1)
    n_shared = min(n_a, n_b) // 2
    b[:n_shared] = unit_rows(a[:n_shared] + 0.1 * drawn(n_shared, 24, 2)) if n_shared else b[:n_shared]
    found = found_for(a, b, epsilon=epsilon, tolerance=2e-5)
    plan = plan_of(a @ b.T, epsilon)
    assert found.marginal_gap <= 2e-5
    for side, share, cosines in (
        (found.forward, plan / plan.sum(1, keepdims=True), a @ b.T),
        (found.backward, (plan / plan.sum(0)).T, b @ a.T),
    ):
        np.testing.assert_allclose(side.confidence, share.max(1), atol=2e-3)
        clear = np.diff(np.sort(share, 1)[:, -2:], axis=1)[:, -1] if share.shape[1] > 1 else np.ones(len(share))
        sure = clear > 5e-3
        assert (side.partner.numpy() == share.argmax(1))[sure].all()
        np.testing.assert_allclose(side.cosine, cosines[np.arange(len(share)), side.partner], atol=1e-6)


def test_the_gap_that_is_stated_is_that_of_the_plans_marginals():
    a, b = halves(200, 48)
    for max_passes in (1, 4, 200):
        found = found_for(a, b, max_passes=max_passes)
        plan = np.exp(
            ((a.astype(float) @ b.T.astype(float)) + found.f.numpy()[:, None] + found.g.numpy()) / found.epsilon
        )
        assert np.abs(plan.sum(1) - 1 / 200).sum() < 1e-5
        assert np.abs(plan.sum(0) - 1 / 200).sum() == pytest.approx(found.marginal_gap, abs=1e-5)
        assert found.n_passes <= max_passes
    assert found.marginal_gap <= 1e-3
    assert 0 < found.forward.confidence.min() <= found.forward.confidence.max() <= 1


def test_blocks_change_nothing(monkeypatch):
    a, b = halves(300, 32)
    whole = found_for(a, b, max_passes=12)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 1)
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", 7)
    pieces = found_for(a, b, max_passes=12)
    assert whole.forward.partner.tolist() == pieces.forward.partner.tolist()
    assert whole.backward.partner.tolist() == pieces.backward.partner.tolist()
    np.testing.assert_allclose(whole.forward.confidence, pieces.forward.confidence, atol=1e-3)


def test_tens_of_passes_do_what_takes_plain_sinkhorn_many_more(monkeypatch):
    a, b = halves(600, 96)
    combined = found_for(a, b).n_passes
    monkeypatch.setattr(blocks, "_PLAIN", 10**6)
    assert combined < found_for(a, b).n_passes / 2


def test_copies_in_another_order_are_found_with_confidence():
    a, order = drawn(150, 64, 0), np.random.default_rng(1).permutation(150)
    found = found_for(a, a[order])
    assert (order[found.forward.partner] == np.arange(150)).all()
    assert found.forward.confidence.min() > 0.9


def test_a_row_that_many_come_near_to_is_no_longer_everybodys():
    """A hub: one row of `b` near a mean direction that all rows of `a` share. argmax sends half of them there, transport few."""
    rng = np.random.default_rng(0)
    mean = unit_rows(rng.standard_normal((1, 64)))
    a = unit_rows(0.8 * mean + unit_rows(rng.standard_normal((100, 64))))
    b = unit_rows(np.concatenate([mean, a[1:] + 1.3 * unit_rows(rng.standard_normal((99, 64)))])).astype(np.float32)
    a = a.astype(np.float32)
    to_hub = (a @ b.T).argmax(1) == 0
    assert to_hub.mean() > 0.3
    assert (found_for(a, b).forward.partner.numpy() == 0).mean() < 0.1


def test_the_plan_is_that_of_pot():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ot = pytest.importorskip("ot")
    a, b = halves(80, 32)
    plan = ot.bregman.sinkhorn_log(
        np.full(80, 1 / 80), np.full(80, 1 / 80), 1 - a.astype(float) @ b.T, 0.05, numItermax=5000, stopThr=1e-8
    )
    found = found_for(a, b, tolerance=2e-5)
    np.testing.assert_allclose(found.forward.confidence, (plan * 80).max(1), atol=2e-3)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_an_epsilon_without_a_plan_is_refused(epsilon):
    with pytest.raises(ValueError, match="expected a number above 0"):
        found_for(drawn(3, 4, 0), drawn(3, 4, 1), epsilon=epsilon)


def test_a_side_without_rows_is_refused():
    with pytest.raises(ValueError, match="3 and 0 rows have a direction"):
        found_for(drawn(3, 4, 0), np.zeros((0, 4), np.float32))


def test_rows_without_a_direction_have_no_partner_and_are_nobodys():
    a, b = halves(40, 16)
    with_zeros_a, with_zeros_b = np.insert(a, [0, 7], 0, axis=0), np.insert(b, [3, 40], 0, axis=0)
    between = partners_between(torch.from_numpy(with_zeros_a), torch.from_numpy(with_zeros_b))
    plan = plan_of(a @ b.T, between.epsilon)
    of_rows, of_columns = plan / plan.sum(1, keepdims=True), (plan / plan.sum(0)).T
    for found, shares, own, other in (
        (between.forward, of_rows, with_zeros_a, with_zeros_b), (between.backward, of_columns, with_zeros_b, with_zeros_a),
    ):  # fmt: skip
        here, there = (np.flatnonzero(rows.any(1)) for rows in (own, other))
        assert (found[~own.any(1)] == -1).all()
        second, first = np.sort(shares, 1)[:, -2:].T
        sure = first - second > 0.01
        assert (found[here][sure] == there[shares.argmax(1)][sure]).all()
    assert between.share == pytest.approx(np.mean([of_rows.max(1), of_columns.max(1)]), abs=5e-3)
    assert between.marginal_gap <= 1e-3
