"""The nearest rows against a stable sort of the whole matrix of cosines."""

import numpy as np
import pytest
import torch

from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.matching.nearest_rows import nearest_rows


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("block", [7, 64, 1536])
def test_the_nearest_rows_are_those_of_the_whole_matrix(block):
    a, b = unit(50, 12, 0), unit(33, 12, 1)
    forward, backward = nearest_rows(a, b, 8, block=block)
    cosines = (a.double() @ b.double().T).numpy()
    for found, whole in ((forward, cosines), (backward, cosines.T)):
        order = np.argsort(-whole, axis=1, kind="stable")[:, :8]
        np.testing.assert_array_equal(found.row, order)
        np.testing.assert_allclose(found.cosine, np.take_along_axis(whole, order, 1), atol=2e-6)


def test_of_equal_rows_the_lowest_index_comes_first():
    b = unit(5, 12, 1)
    many = torch.cat([b, b, b])
    found, _ = nearest_rows(b, many, 3, block=4)
    assert found.row.tolist() == [[i, i + 5, i + 10] for i in range(5)]


def test_rows_without_a_direction_are_nobodys_neighbours():
    a, b = unit(4, 6, 0), unit(3, 6, 1)
    a[1], b[2] = 0, 0
    forward, backward = nearest_rows(a, b, 5)
    assert set(forward.row[0].tolist()) == {0, 1, -1}
    assert (forward.row[1] == -1).all()
    assert (forward.cosine[1] == NO_MATCH).all()
    assert (backward.row[2] == -1).all()
    assert 1 not in backward.row


def test_none_of_the_nearest_is_refused():
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        nearest_rows(unit(2, 3, 0), unit(2, 3, 1), 0)
