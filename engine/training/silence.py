"""Features that have not fired for long, and AuxK, which asks them to explain what the others leave."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.sae import SAE


def count(silent_tokens: Int[Tensor, "members d_sae"], fired: Bool[Tensor, "members d_sae"], n_tokens: int) -> None:
    """Add a batch to how many tokens each feature has been silent for, in place."""
    silent_tokens += n_tokens
    silent_tokens.masked_fill_(fired, 0)


def aux_loss(
    sae: SAE,
    rows: Tensor,
    silent: Bool[Tensor, "members d_sae"],
    residual: Float[Tensor, "tokens members d_in"],
    aux_k: int,
) -> Float[Tensor, ""]:
    """AuxK (Gao et al. 2024, appendix A.2): the share of the residual that the top aux_k silent features leave unexplained.

    Silent features are few, so theirs alone are multiplied again, padded to the most that any member has: gradients through
    the pre-activations of all features cost as much as the rest of the step.
    """
    n = silent.sum(1)
    width, (n_members, d_sae) = int(n.max()), silent.shape
    if not width:
        return residual.new_zeros(())
    which = silent.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
    own = torch.arange(width, device=n.device) < n[:, None]
    flat = (which + torch.arange(n_members, device=n.device)[:, None] * d_sae).flatten()
    encoder = sae.W_enc.transpose(1, 2).reshape(-1, sae.d_in).index_select(0, flat).view(n_members, width, sae.d_in)
    decoder = sae.W_dec.reshape(-1, sae.d_in).index_select(0, flat).view(n_members, width, sae.d_in)
    bias = sae.b_enc.reshape(-1).index_select(0, flat).view(n_members, width)
    bias = bias - torch.bmm(encoder, sae.b_dec[:, :, None])[:, :, 0]
    x = (rows[:, None].expand(-1, n_members, -1) if rows.ndim == 2 else rows).transpose(0, 1)
    acts = torch.baddbmm(bias[:, None], x, encoder.transpose(1, 2)).masked_fill(~own[:, None], -torch.inf)
    if width > aux_k:
        acts = acts.masked_fill(acts < acts.topk(aux_k, dim=-1).values[..., -1:], 0.0)
    left = residual.transpose(0, 1)
    error = (left - torch.bmm(acts.relu(), decoder)).pow(2).sum((1, 2))
    return ((n > 0) * error / (left - left.mean(1, keepdim=True)).pow(2).sum((1, 2))).sum()
