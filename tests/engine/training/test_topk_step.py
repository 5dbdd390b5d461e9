"""The TopK step whose gradient is written out is the step that autograd would make."""

import numpy as np
import pytest
import torch

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.auxk import add_aux
from seedscope.engine.training.starts import random_start
from seedscope.engine.training.topk_step import largest, topk_step


def members(d_sae: int, k: int, d_in: int = 8) -> SAE:
    """Three random members whose every tensor is other than zero."""
    torch.manual_seed(d_sae + k)
    shapes = ((3, d_in, d_sae), (3, d_sae), (3, d_sae, d_in), (3, d_in))
    return SAE(*(torch.randn(shape, dtype=torch.float64) for shape in shapes), seeds=(0, 1, 2), k=k)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(("d_sae", "k"), [(96, 4), (50, 7), (24, 24), (256, 1)])
def test_error_and_gradients_are_autograds(d_sae, k, independent):
    sae, weights = members(d_sae, k), torch.tensor([1.0, 2.5, -0.5], dtype=torch.float64)
    rows = torch.randn((40, 3, 8) if independent else (40, 8), dtype=torch.float64)
    codes = sae.activate(sae.pre_activations(rows))
    expected = (rows if independent else rows[:, None]) - sae.decode(codes)
    error = expected.pow(2).sum(-1).mean(0)
    gradients = torch.autograd.grad((weights * error).sum(), list(sae.parameters()))
    found, residual, fired = topk_step(sae, rows)
    torch.testing.assert_close(found, error)
    torch.testing.assert_close(residual, expected)
    dense = torch.zeros(40, 3, d_sae, dtype=torch.float64).scatter(2, codes.indices, codes.values.detach())
    assert torch.equal(fired, (dense > 0).any(0))
    mine = torch.autograd.grad((weights * found).sum(), list(sae.parameters()))
    for gradient, other, parameter in zip(mine, gradients, sae.parameters(), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
        assert gradient.stride() == parameter.stride()  # so that none is copied


@pytest.mark.parametrize(("d_sae", "k"), [(512, 10), (100, 30), (16, 16), (1024, 1), (7, 3)])
@pytest.mark.parametrize("kind", ["plain", "equal ones", "all equal", "not finite"])
def test_the_largest_of_every_row_are_found_whatever_it_holds(d_sae, k, kind):
    pre = torch.randn(60, d_sae, generator=torch.Generator().manual_seed(k))
    if kind == "equal ones":
        pre = (4 * pre).round()
    if kind == "all equal":
        pre = torch.zeros_like(pre)
    if kind == "not finite":
        pre[3, 5], pre[4, 2], pre[5] = torch.inf, -torch.inf, torch.nan
    flat = largest(pre.clone(), k)
    assert (np.diff(flat) > 0).all()
    assert (flat // d_sae).tolist() == [row for row in range(60) for _ in range(k)]
    values = pre.view(-1)[torch.from_numpy(flat)].view(60, k).sort(1, descending=True).values
    torch.testing.assert_close(values, pre.sort(1, descending=True).values[:, :k], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("independent", [False, True])
def test_the_gradient_of_auxk_is_that_of_its_definition_for_each_member(independent):
    """Member by member with all features' pre-activations: none silent, fewer than aux_k, and more."""
    start = random_start(
        (0, 1, 2), 8, 30, center=torch.randn(8, dtype=torch.float64), convention=Convention("topk", k=3)
    )
    sae = SAE(*(getattr(start, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")), seeds=(0, 1, 2), k=3)
    rows = torch.randn((50, 3, 8) if independent else (50, 8), dtype=torch.float64)
    residual = torch.randn(50, 3, 8, dtype=torch.float64)
    silent = torch.zeros(3, 30, dtype=torch.bool)
    silent[1, [4, 29]] = silent[2, 3:17] = True
    expected = torch.zeros((), dtype=torch.float64)
    for member in (1, 2):
        x = rows[:, member] if independent else rows
        pre = (x - sae.b_dec[member]) @ sae.W_enc[member] + sae.b_enc[member]
        dense = pre.masked_fill(~silent[member], -torch.inf)
        values, indices = dense.topk(5, dim=1)
        codes = torch.zeros_like(pre).scatter(1, indices, values.relu())
        left = residual[:, member]
        expected = expected + (left - codes @ sae.W_dec[member]).pow(2).sum() / (left - left.mean(0)).pow(2).sum()
    wanted = [torch.ones_like(each) + 0.25 * own for each, own in zip(
        sae.parameters(), torch.autograd.grad(expected, list(sae.parameters())), strict=True
    )]  # fmt: skip
    for each in sae.parameters():
        each.grad = torch.ones_like(each)
    add_aux(sae, rows, torch.zeros_like(silent), residual, 5, 0.25)
    assert all(bool((each.grad == 1).all()) for each in sae.parameters())
    add_aux(sae, rows, silent, residual, 5, 0.25)
    for each, own in zip(sae.parameters(), wanted, strict=True):
        torch.testing.assert_close(each.grad, own, rtol=1e-9, atol=1e-12)
    sae.b_dec.grad = None  # where no gradient moves it
    add_aux(sae, rows, silent, residual, 5, 0.25)
    assert sae.b_dec.grad is None
