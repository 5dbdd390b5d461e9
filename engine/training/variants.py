"""The training variants: how each makes codes from pre-activations, and the loss that it minimises.

Every variant ends as an SAE of a plain convention, so that whatever reads SAEs reads them. Inputs have unit mean square
norm. METHOD's names: x rows, f codes, x_hat reconstruction, all with a leading member axis behind the tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seedscope.engine.contract.recipe import TrainConfig, Variant
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.entry_gradients import (
    activations_at,
    dense_pre_activations,
    unexplained,
    unexplained_by_prefixes,
)
from seedscope.engine.training.sparse_codes import Entries, Positions, decoded, largest_of_batch, values_at, where
from seedscope.engine.training.topk_step import sparse_step, topk_step

THRESHOLD_STEPS = 100  # batches that a batchtopk's threshold is averaged over; SAELens takes as many
FIRST_THRESHOLD = 0.001  # of jumprelu, dictionary_learning's


class Step(NamedTuple):
    """One batch through all members."""

    loss: Float[Tensor, " members"]  # what each minimises, without AuxK
    error: Float[Tensor, " members"]  # squared error per token
    residual: Float[Tensor, "tokens members d_in"]
    fired: Bool[Tensor, "members d_sae"]


class TrainingMoment(NamedTuple):
    """Where training stands."""

    step: int
    sparsity: float  # share of the sparsity term that counts already, in [0, 1]


@dataclass(frozen=True)
class VariantRecipe:
    """A variant: the convention it ends as, the tensors beside an SAE's four, and its step."""

    convention: Callable[[TrainConfig], Convention]
    run: Callable[[SAE, Tensor, TrainConfig, TrainingMoment], Step]
    more: dict[str, float] = field(default_factory=dict)  # further tensors (members, d_sae) and what they begin as
    fixed: tuple[str, ...] = ()  # of those, what no gradient moves
    sparsity: bool = (
        False  # whether a sparsity term rises; its first gradients are thousands of times those that follow
    )
    archetypal: bool = False  # decoder rows are combinations of centroids; else they are free unit vectors


def _topk(sae: SAE, rows: Tensor, config: TrainConfig, moment: TrainingMoment) -> Step:
    """The k largest of every token (Gao et al. 2024, section 2.3); loss: ||x - x_hat||^2."""
    if rows.device.type == "cpu":
        error, residual, fired = topk_step(sae, rows)
        return Step(error, error, residual, fired)
    codes = sae.activate(sae.pre_activations(rows))
    residual = _targets(rows) - sae.decode(codes)
    fired = torch.zeros(sae.n_members, sae.d_sae, dtype=torch.bool, device=rows.device)
    active = codes.indices + torch.arange(sae.n_members, device=rows.device)[:, None] * sae.d_sae
    fired.view(-1)[active[codes.values > 0]] = True
    error = residual.pow(2).sum(-1).mean(0)
    return Step(error, error, residual, fired)


def _batchtopk(sae: SAE, rows: Tensor, config: TrainConfig, moment: TrainingMoment) -> Step:
    """The k * tokens largest of a batch (Bussmann et al. 2024), of each member; loss: ||x - x_hat||^2."""
    if rows.device.type == "cpu":
        with torch.no_grad():
            pre = sae.pre_activations(rows)
        error, residual, fired = sparse_step(sae, rows, pre, _largest_of_batch(sae, pre, config, moment).numpy())
        return Step(error, error, residual, fired)
    pre = sae.pre_activations(rows)
    flat = _largest_of_batch(sae, pre, config, moment)
    entries = Entries(Positions.of(pre, flat), values_at(pre, flat))
    residual = _targets(rows) - (decoded(entries, sae.W_dec) + sae.b_dec)
    error = residual.pow(2).sum(-1).mean(0)
    return Step(error, error, residual, entries.fired())


def _matryoshka(sae: SAE, rows: Tensor, config: TrainConfig, moment: TrainingMoment) -> Step:
    """Codes of batchtopk; loss: the mean of ||x - x_hat_g||^2 over prefixes g of the groups (Bussmann et al. 2025)."""
    pre = dense_pre_activations(sae, rows)
    places = Positions.of(pre, _largest_of_batch(sae, pre, config, moment))
    entries = Entries(places, activations_at(sae, rows, pre, places))
    errors, residual = unexplained_by_prefixes(entries, config.group_sizes, rows, sae.W_dec, sae.b_dec)
    return Step(errors.mean(-1), errors[:, -1], residual, entries.fired())


@torch.no_grad()
def _largest_of_batch(sae: SAE, pre: Tensor, config: TrainConfig, moment: TrainingMoment) -> Int[Tensor, " n"]:
    """Where the codes of batchtopk stand; moves the threshold that stands for the batch at inference.

    It is the smallest activation that was among the largest of its batch, averaged over the last THRESHOLD_STEPS batches.
    """
    thresholds = sae.get_parameter("threshold")
    threshold = thresholds[:, 0]
    flat = largest_of_batch(pre, config.k, 0.8 * threshold)
    member = Positions.of(pre, flat).member
    least = torch.full_like(threshold, torch.inf).scatter_reduce(0, member, values_at(pre, flat), "amin")
    least = torch.where(least.isfinite(), least, threshold)
    thresholds.lerp_(least[:, None].expand_as(thresholds), 1 / min(moment.step + 1, THRESHOLD_STEPS))
    return flat


def _relu(sae: SAE, rows: Tensor, config: TrainConfig, moment: TrainingMoment) -> Step:
    """All positive ones (Bricken et al. 2023; Cunningham et al. 2023); loss: ||x - x_hat||^2 + l1 sum f."""
    pre = dense_pre_activations(sae, rows)
    places = where(pre > 0)
    entries = Entries(places, activations_at(sae, rows, pre, places))
    error, residual = unexplained(entries, rows, sae.W_dec, sae.b_dec)
    loss = error + config.l1 * moment.sparsity * places.per_token(entries.values)
    return Step(loss, error, residual, entries.fired())


def _jumprelu(sae: SAE, rows: Tensor, config: TrainConfig, moment: TrainingMoment) -> Step:
    """Those above their feature's learned threshold (Rajamanoharan et al. 2024b).

    Loss: ||x - x_hat||^2 + l0_coefficient (L0 / k - 1)^2, the paper's sparsity term with a target, its equation 17. A
    threshold moves by the pre-activations within half a bandwidth of it: straight-through, its equations 11 and 12.
    """
    pre = dense_pre_activations(sae, rows)
    thresholds = sae.get_parameter("threshold")
    places = where(pre.detach() > thresholds.detach() - config.bandwidth / 2)
    own = activations_at(sae, rows, pre, places)
    threshold = thresholds.reshape(-1).index_select(0, places.feature)
    near = ((own - threshold).detach().abs() < config.bandwidth / 2).to(own.dtype) / config.bandwidth
    active = (own > threshold).detach().to(own.dtype)
    moved = near * (threshold - threshold.detach())  # zero, with the gradient of minus the step function
    entries = Entries(places, own * active - threshold.detach() * moved)
    error, residual = unexplained(entries, rows, sae.W_dec, sae.b_dec)
    off = places.per_token(active - moved) / config.k - 1
    loss = error + config.l0_coefficient * moment.sparsity * off.pow(2)
    return Step(loss, error, residual, entries.fired())


def _gated(sae: SAE, rows: Tensor, config: TrainConfig, moment: TrainingMoment) -> Step:
    """A gate decides, a magnitude with shared directions says how much (Rajamanoharan et al. 2024a, equation 8).

    Loss: ||x - x_hat||^2 + l1 sum relu(gate) + ||x - relu(gate) W_dec - b_dec||^2, the last with the decoder held fixed.
    """
    pre = dense_pre_activations(sae, rows)
    places = where(pre > 0)
    gate = activations_at(sae, rows, pre, places)
    tensors = sae.get_parameter("r_mag").exp(), sae.b_enc, sae.get_parameter("b_mag")
    gain, b_enc, b_mag = (t.reshape(-1).index_select(0, places.feature) for t in tensors)
    entries = Entries(places, ((gate - b_enc) * gain + b_mag).relu())
    error, residual = unexplained(entries, rows, sae.W_dec, sae.b_dec)
    by_gates, _ = unexplained(Entries(places, gate), rows, sae.W_dec.detach(), sae.b_dec.detach())
    sparsity = config.l1 * moment.sparsity * places.per_token(gate)
    return Step(error + sparsity + by_gates, error, residual, entries.fired())


def _targets(rows: Tensor) -> Tensor:
    return rows[:, None] if rows.ndim == 2 else rows


def _plain_topk(config: TrainConfig) -> Convention:
    return Convention("topk", k=config.k)


RECIPES: dict[Variant, VariantRecipe] = {
    "topk": VariantRecipe(_plain_topk, _topk),
    "batchtopk": VariantRecipe(lambda _: Convention("jumprelu"), _batchtopk, {"threshold": 0.0}, fixed=("threshold",)),
    "matryoshka": VariantRecipe(
        lambda _: Convention("jumprelu"), _matryoshka, {"threshold": 0.0}, fixed=("threshold",)
    ),
    "relu": VariantRecipe(lambda _: Convention("relu"), _relu, sparsity=True),
    "jumprelu": VariantRecipe(
        lambda _: Convention("jumprelu"), _jumprelu, {"threshold": FIRST_THRESHOLD}, sparsity=True
    ),
    "gated": VariantRecipe(lambda _: Convention("gated"), _gated, {"r_mag": 0.0, "b_mag": 0.0}, sparsity=True),
    "archetypal": VariantRecipe(_plain_topk, _topk, archetypal=True),
    "relaxed-archetypal": VariantRecipe(_plain_topk, _topk, archetypal=True),
}
