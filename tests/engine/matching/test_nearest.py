"""Nearest rows by bounds of short rows: those of the whole product, whether or not the bounds leave anything out."""

import numpy as np
import pytest
import torch

from seedscope.engine.matching import nearest as rooms
from seedscope.engine.matching.nearest import nearest
from support.golden import unit_rows

D_IN, HEAD = 48, 16


def drawn(n: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, D_IN)))


def copies(rows: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return unit_rows(rows + noise * np.random.default_rng(seed).standard_normal(rows.shape) / D_IN**0.5)


def check(a: np.ndarray, b: np.ndarray, **options: int) -> None:
    forward, backward = nearest(*(torch.from_numpy(each).float() for each in (a, b)), **options)
    for found, cosines in ((forward, a @ b.T), (backward, b @ a.T)):
        assert found.partner.tolist() == cosines.argmax(1).tolist()
        np.testing.assert_allclose(found.cosine, cosines.max(1), atol=1e-6)


@pytest.mark.parametrize("noise", [0.05, 0.5, 1.5])
@pytest.mark.parametrize(("n_a", "n_b"), [(1700, 1300), (900, 2000), (1, 700), (513, 1)])
def test_partners_and_cosines_are_those_of_the_whole_product(noise, n_a, n_b):
    both = min(n_a, n_b)
    a = drawn(n_a, 0)
    b = np.concatenate([copies(a[:both], noise, 1), drawn(n_b - both, 2)])[np.random.default_rng(3).permutation(n_b)]
    check(a, b, head=HEAD)


def test_rows_without_a_near_partner_are_multiplied_whole():
    a = drawn(1500, 0)
    b = np.concatenate([copies(a[:1400], 0.1, 1), drawn(100, 2)])
    check(a, b, head=HEAD)
    check(a, drawn(1500, 5), head=HEAD)  # nothing is near: both are multiplied whole


def test_anisotropic_rows_and_narrow_ones():
    shared = unit_rows(drawn(1200, 0) + 2 * drawn(1, 9))
    check(shared, copies(shared, 0.1, 1), head=HEAD)
    check(shared, copies(shared, 0.1, 1), head=D_IN)


def test_of_equal_rows_the_first_is_the_partner(monkeypatch):
    monkeypatch.setattr(rooms, "ROWS_AT_ONCE", 1536)
    rows = drawn(800, 0)
    twice = torch.from_numpy(np.concatenate([rows, rows, rows])).float()
    for head in (HEAD, D_IN):
        for found in nearest(twice, twice, head=head):
            assert found.partner.tolist() == 3 * list(range(800))


def test_chunks_of_rows_change_nothing(monkeypatch):
    monkeypatch.setattr(rooms, "ROWS_AT_ONCE", 1536)
    a = drawn(3300, 0)
    check(a, copies(a, 0.2, 1), head=HEAD)
    check(a, drawn(1700, 3), head=HEAD)
