"""Gradients that are written out, for any width of codes, are those that autograd makes of dense definitions."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.entry_gradients import activations_at, unexplained, unexplained_by_prefixes
from seedscope.engine.training.sparse_codes import Entries, where
from seedscope.engine.training.variants import RECIPES, TrainingMoment

CONFIG = TrainConfig(
    d_sae=40, k=3, seeds=(0, 1, 2), l1=0.3, l0_coefficient=0.7, bandwidth=0.8, group_fracs=(0.1, 0.3, 0.6), n_tokens=30,
    batch=30,
)  # fmt: skip
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


class Jump(torch.autograd.Function):
    """x 1[x > t] and 1[x > t] with the derivatives that Rajamanoharan et al. 2024b give them in equations 11 and 12."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return x * (x > threshold), (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, by_code: Tensor, by_step: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold = ctx.saved_tensors
        kernel = ((x - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return by_code * (x > threshold), -(by_code * threshold + by_step) * kernel, None


def started(variant: str, shift: float = 0.0) -> SAE:
    """Three members whose every tensor is other than zero; `shift` is added to encoder biases: fewer features are active."""
    torch.manual_seed(0)
    shapes = ((3, 8, 40), (3, 40), (3, 40, 8), (3, 8))
    W_enc, b_enc, W_dec, b_dec = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    recipe = RECIPES[variant]
    more = {name: 0.3 + 0.1 * torch.rand(3, 40, dtype=torch.float64) for name in recipe.more}
    sae = SAE(
        W_enc, b_enc + shift, W_dec, b_dec, seeds=CONFIG.seeds, more=more,
        convention=recipe.convention(replace(CONFIG, variant=variant)),
    )  # fmt: skip
    for name in recipe.fixed:
        getattr(sae, name).requires_grad_(False)
    return sae


def batch(independent: bool) -> Tensor:
    return torch.randn((30, 3, 8) if independent else (30, 8), dtype=torch.float64)


def errors(x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    return (x - torch.einsum("tms,msi->tmi", codes, W_dec) - b_dec).pow(2).sum(-1).mean(0)


def by_definition(variant: str, sae: SAE, rows: Tensor) -> Tensor:
    """Each member's loss from dense codes, for autograd."""
    x = rows[:, None] if rows.ndim == 2 else rows
    pre = torch.einsum("tmi,mis->tms", x - sae.b_dec, sae.W_enc) + sae.b_enc
    if variant == "relu":
        return errors(x, pre.relu(), sae.W_dec, sae.b_dec) + CONFIG.l1 * pre.relu().sum(-1).mean(0)
    if variant == "gated":
        gate = pre.relu()
        codes = (((pre - sae.b_enc) * sae.r_mag.exp() + sae.b_mag) * (pre > 0)).relu()
        by_gates = errors(x, gate, sae.W_dec.detach(), sae.b_dec.detach())
        return errors(x, codes, sae.W_dec, sae.b_dec) + CONFIG.l1 * gate.sum(-1).mean(0) + by_gates
    if variant == "jumprelu":
        codes, steps = Jump.apply(pre, sae.threshold, CONFIG.bandwidth)
        return errors(x, codes, sae.W_dec, sae.b_dec) + CONFIG.l0_coefficient * (
            steps.sum(-1).mean(0) / CONFIG.k - 1
        ).pow(2)
    least = pre.detach().transpose(0, 1).flatten(1).topk(CONFIG.k * len(rows)).values[:, -1:]
    codes = pre.relu() * (pre >= least)
    ends = [sum(CONFIG.group_sizes[: i + 1]) for i in range(len(CONFIG.group_sizes))]
    return torch.stack([errors(x, codes[..., :end], sae.W_dec[:, :end], sae.b_dec) for end in ends]).mean(0)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("shift", [0.0, -8.0])  # half of the entries: dense products; a tenth: sums over entries
@pytest.mark.parametrize("variant", ["relu", "gated", "jumprelu", "matryoshka"])
def test_a_step_has_the_loss_and_gradients_of_its_dense_definition(variant, shift, independent):
    sae, weights = started(variant, shift), torch.tensor([1.0, 2.5, -0.5], dtype=torch.float64)
    rows = batch(independent)
    config = replace(CONFIG, variant=variant)
    expected = by_definition(variant, sae, rows)
    moved = [p for p in sae.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((weights * expected).sum(), moved)
    step = RECIPES[variant].run(sae, rows, config, TrainingMoment(0, 1.0))
    torch.testing.assert_close(step.loss, expected, **TOLERANCE)
    assert 0 < step.fired.sum() <= 3 * 40
    for found, gradient, parameter in zip(
        torch.autograd.grad((weights * step.loss).sum(), moved), gradients, moved, strict=True
    ):
        torch.testing.assert_close(found, gradient, **TOLERANCE)
        assert found.stride() == parameter.stride()  # so that none is copied


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_error_and_gradients_through_entries_are_autograds_however_many_there_are(share):
    sae, rows = started("relu"), batch(False)
    mask = torch.rand(30, 3, 40, generator=torch.Generator().manual_seed(1)) < share
    pre = sae.pre_activations(rows)
    codes, places = pre * mask, where(mask)
    assert places.are_many == (share == 0.5)
    x = rows[:, None]
    residual = x - torch.einsum("tms,msi->tmi", codes, sae.W_dec) - sae.b_dec
    expected = residual.pow(2).sum(-1).mean(0)
    entries = Entries(places, activations_at(sae, rows, pre.detach(), places))
    found, left = unexplained(entries, rows, sae.W_dec, sae.b_dec)
    torch.testing.assert_close(left, residual.detach(), **TOLERANCE)
    sides = [torch.autograd.grad(error.sum(), list(sae.parameters())) for error in (found, expected)]
    for mine, other in zip(*sides, strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCE)


def test_what_no_gradient_moves_gets_none():
    sae, rows = started("relu", -8.0), batch(False)
    sae.b_dec.requires_grad_(False)
    pre = sae.pre_activations(rows).detach()
    places = where(pre > 0)
    entries = Entries(places, activations_at(sae, rows, pre, places))
    for error, _ in (
        unexplained(entries, rows, sae.W_dec.detach(), sae.b_dec),
        unexplained_by_prefixes(entries, (4, 36), rows, sae.W_dec, sae.b_dec),
    ):
        error.sum().backward(retain_graph=True)
        assert sae.b_dec.grad is None
    assert math.isfinite(float(sae.W_dec.grad.sum()))
