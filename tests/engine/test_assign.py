"""One-to-one matching: optimal on small cases, and a bound that holds on sparse candidates."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from engine.assign import hungarian


def related(n: int, m: int, d: int, shared: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows of which a share come back, noisy and in another order."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, d, generator=generator) for rows in (n, m))
    count = int(shared * min(n, m))
    b[:count] = a[:count] + 0.5 * torch.randn(count, d, generator=generator)
    b = b[torch.randperm(m, generator=generator)]
    return torch.nn.functional.normalize(a, dim=1), torch.nn.functional.normalize(b, dim=1)


@pytest.mark.parametrize("dense_up_to", [0, 4096], ids=["sparse", "dense"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 40), (300, 300), (120, 200), (200, 120)])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_matching_is_scipys_optimum_within_its_proven_gap(n, m, shared, dense_up_to):
    a, b = related(n, m, 16, shared, seed=n + m)
    cosines = (a @ b.T).double().numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    optimum = cosines[rows, columns].sum()
    found = hungarian(a, b, dense_up_to=dense_up_to)

    assert found.value <= optimum + 1e-5 * n
    assert found.bound >= optimum - 1e-5 * n
    assert found.gap <= 1e-5
    assert found.value == pytest.approx(optimum, abs=2e-5 * abs(optimum) + 1e-4)
    matched = found.partner[found.partner >= 0]
    assert len(matched) == len(set(matched.tolist())) == min(n, m)
    mine = np.flatnonzero(found.partner >= 0)
    assert cosines[mine, found.partner[mine]] == pytest.approx(found.cosine[mine], abs=1e-6)


def test_few_candidates_are_widened_until_the_gap_is_proven():
    a, b = related(400, 400, 12, 0.3, seed=3)
    assert hungarian(a, b, n_candidates=1, dense_up_to=0, max_rounds=30).gap <= 1e-5


def test_a_permutation_is_found_exactly():
    a, _ = related(500, 500, 32, 0, seed=1)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    found = hungarian(a, a[order], dense_up_to=0)
    assert (order[torch.from_numpy(found.partner)] == torch.arange(500)).all()
    assert found.value == pytest.approx(500, rel=1e-6)
