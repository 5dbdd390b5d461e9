"""One-to-one matching: scipy's optimum on small cases, and a bound that holds on sparse candidates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from seedscope.engine.matching import assignment
from seedscope.engine.matching.assignment import hungarian


def related(n: int, m: int, d: int, shared: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows of which a share come back, noisy and in another order."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, d, generator=generator) for rows in (n, m))
    count = int(shared * min(n, m))
    b[:count] = a[:count] + 0.5 * torch.randn(count, d, generator=generator)
    b = b[torch.randperm(m, generator=generator)]
    return normalize(a, dim=1), normalize(b, dim=1)


def check(a: torch.Tensor, b: torch.Tensor, *, gap: float = 1e-5, **options) -> assignment.Assignment:
    """`hungarian`, held against scipy's optimum of the dense matrix."""
    cosines = (a @ b.T).double().numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    optimum, rounding = cosines[rows, columns].sum(), 1e-6 * min(cosines.shape)
    found = hungarian(a, b, **options)

    assert len(found.partner) == len(found.cosine) == len(a)
    mine = np.flatnonzero(found.partner >= 0)
    assert len(mine) == len(np.unique(found.partner[mine])) == min(cosines.shape)
    assert np.isnan(found.cosine[found.partner < 0]).all()
    assert found.cosine[mine] == pytest.approx(cosines[mine, found.partner[mine]], abs=1e-6)
    assert found.value == pytest.approx(found.cosine[mine].sum(), abs=rounding)
    assert found.value <= optimum + rounding
    assert found.bound >= optimum - rounding
    assert found.gap >= 0
    assert found.gap <= gap or found.bound - found.value <= rounding  # a value near 0 has no relative gap
    return found


@pytest.mark.parametrize("dense_up_to", [0, 4096], ids=["sparse", "dense"])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 50), (40, 40), (300, 300), (300, 301), (310, 300), (120, 200), (200, 120), (30, 1000)]
)
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_matching_is_scipys_optimum_within_its_proven_gap(n, m, shared, dense_up_to):
    check(*related(n, m, 16, shared, seed=n + m), dense_up_to=dense_up_to)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 90),
    m=st.integers(1, 90),
    d=st.integers(1, 12),
    shared=st.sampled_from([0.0, 0.5, 1.0]),
    n_candidates=st.integers(1, 20),
    kinds=st.integers(1, 90),
    n_zero=st.integers(0, 20),
    seed=st.integers(0, 10_000),
)
def test_no_matching_exceeds_the_bound_whatever_the_rows(n, m, d, shared, n_candidates, kinds, n_zero, seed):
    a, b = related(n, m, d, shared, seed)
    a = a[torch.arange(n) % kinds]  # some rows come several times
    a[:n_zero] = 0
    for max_rounds in (0, 1, 40):  # one round need not reach the gap, but must not claim it
        gap = 1e-5 if max_rounds == 40 else 1e30
        check(a, b, gap=gap, n_candidates=n_candidates, dense_up_to=0, max_rounds=max_rounds)


def test_few_candidates_are_widened_until_the_gap_is_proven():
    a, b = related(400, 400, 12, 0.3, seed=3)
    assert check(a, b, gap=1, n_candidates=1, dense_up_to=0, max_rounds=1).gap > 1e-5
    check(a, b, n_candidates=1, dense_up_to=0, max_rounds=30)


def test_a_permutation_is_found_exactly():
    a, _ = related(500, 500, 32, 0, seed=1)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    found = hungarian(a, a[order], dense_up_to=0)
    assert (order[torch.from_numpy(found.partner)] == torch.arange(500)).all()
    assert found.value == pytest.approx(500, rel=1e-6)
    assert found.gap <= 1e-7


def test_rows_without_a_counterpart_take_what_is_left():
    a, b = related(700, 700, 32, 0.5, seed=5)
    zeros = torch.zeros(70, 32)
    check(torch.cat([zeros, a[70:]]), b, dense_up_to=0)
    check(torch.cat([zeros, a[70:]]), torch.cat([b[:-35], zeros[:35]]), dense_up_to=0)
    check(a, -a, dense_up_to=0)  # every row's own counterpart is its worst
    check(torch.cat([a, zeros]), b, dense_up_to=0)
    assert hungarian(zeros, zeros, dense_up_to=0)[2:] == (0, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_that_are_all_equal_match_in_any_order(sign):
    rows = normalize(torch.ones(3000, 8), dim=1)
    found = hungarian(rows, sign * rows, dense_up_to=0)
    assert len(np.unique(found.partner)) == 3000
    assert found.value == pytest.approx(sign * 3000, rel=1e-6)
    assert found.gap <= 1e-6


@pytest.mark.parametrize(("kinds_a", "kinds_b"), [(7, 5), (60, 50), (6, 600)])
def test_many_equal_rows_share_out_their_counterparts(kinds_a, kinds_b):
    a, _ = related(900, 1, 24, 0, seed=6)
    check(a[torch.arange(900) % kinds_a], a[torch.arange(900) % kinds_b], dense_up_to=0)


def test_clustered_features_are_proven_too():
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(20, 24, generator=generator)
    a, b = (
        normalize(
            centres[torch.randint(20, (800,), generator=generator)] + 0.4 * torch.randn(800, 24, generator=generator),
            dim=1,
        )
        for _ in range(2)
    )
    check(a, b, dense_up_to=0)


def test_the_value_does_not_depend_on_the_order_of_rows_or_on_sides():
    a, b = related(600, 500, 16, 0.5, seed=8)
    found = hungarian(a, b, dense_up_to=0)
    shuffled = hungarian(a.flip(0), b[torch.randperm(500, generator=torch.Generator().manual_seed(1))], dense_up_to=0)
    assert shuffled.value == pytest.approx(found.value, rel=1e-5)
    assert hungarian(b, a, dense_up_to=0).value == pytest.approx(found.value, rel=1e-5)


def test_the_same_input_gives_the_same_result():
    a, b = related(2049, 2049, 32, 0.5, seed=9)  # just above the dense limit
    first, again = hungarian(a, b), hungarian(a, b)
    assert (first.partner == again.partner).all()
    assert first[2:] == again[2:]
    assert first.gap <= 1e-5
    assert first.value == pytest.approx(hungarian(a, b, dense_up_to=2049).value, rel=1e-5)


def test_blocks_of_any_size_give_the_same_matching(monkeypatch):
    a, b = related(333, 345, 16, 0.5, seed=10)
    whole = check(a, b, n_candidates=8, dense_up_to=0)
    for rows in (1, 50, 64):
        monkeypatch.setattr(assignment, "_step", lambda n_columns, rows=rows: rows)
        assert check(a, b, n_candidates=8, dense_up_to=0).value == pytest.approx(whole.value, rel=2e-5)


@pytest.mark.parametrize(("n", "k"), [(5000, 20), (1024, 64), (30, 29), (30, 30), (30, 64), (1, 1)])
def test_candidates_are_the_best_pairs_of_every_row_and_limit_all_others(n, k):
    a, b = related(200, n, 16, 0.5, seed=11)
    rows, columns, cosines, limits = assignment._candidates(a, b, k)
    assert (torch.diff(rows * n + columns) > 0).all()  # in order, each once
    exact = a @ b.T
    assert exact[rows, columns].numpy() == pytest.approx(cosines.numpy(), abs=1e-6)
    exact[rows, columns] = -torch.inf
    assert (exact.amax(1) <= limits + 1e-6).all()
    counts = torch.bincount(rows, minlength=200)
    assert counts.min() >= min(n, k)
    assert counts.double().mean() <= 1.2 * k


def test_columns_that_hardly_any_row_chose_get_candidates_of_their_own():
    a, _ = related(1000, 1, 16, 0, seed=12)
    b = normalize(torch.cat([a[:500], a[500:] - 3 * a.mean(0) - 1]), dim=1)  # half lie away from all rows
    columns = assignment._candidates(a, b, 20)[1]
    chosen = torch.bincount(columns, minlength=1000)
    more = assignment._neglected(a, b, columns, 20)
    assert (np.unique(more[1]) == np.flatnonzero(chosen.numpy() < 5)).all()
    best = (a @ b.T).topk(10, dim=0).values.amin(0).numpy()
    assert (more[2] >= best[more[1]] - 1e-6).all()
    check(a, b, n_candidates=20, dense_up_to=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_on_the_gpu():
    a, b = related(3000, 3000, 32, 0.5, seed=12)
    found = hungarian(a.cuda(), b.cuda(), dense_up_to=0)
    assert found.gap <= 1e-5
    assert found.value == pytest.approx(hungarian(a, b, dense_up_to=0).value, rel=1e-4)


@pytest.mark.parametrize("dense_up_to", [0, 10_000])
def test_absolute_matching_is_scipys_on_the_absolute_cosines(dense_up_to):
    a, b = (normalize(torch.randn(n, 12, generator=torch.Generator().manual_seed(n)), dim=1) for n in (150, 170))
    b[:60] = -a[:60]
    found = hungarian(a, b, dense_up_to=dense_up_to, absolute=True)
    cosines = np.abs(a.double().numpy() @ b.double().numpy().T)
    best = cosines[linear_sum_assignment(cosines, maximize=True)].sum()
    assert found.value == pytest.approx(best, rel=1e-5)
    assert found.bound >= best - 1e-4
    assert found.partner[:60].tolist() == list(range(60))
    np.testing.assert_allclose(found.cosine[:60], 1, atol=1e-5)
