"""AuxK: count for how long features have been silent, and let those silent for long reconstruct the residual of the others."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.gradients import gradient


def count(silent_tokens: Int[Tensor, "members d_sae"], fired: Bool[Tensor, "members d_sae"], n_tokens: int) -> None:
    """Add a batch to how many tokens each feature has been silent for, in place."""
    silent_tokens += n_tokens
    silent_tokens.masked_fill_(fired, 0)


@torch.no_grad()
def add_aux(
    sae: SAE,
    rows: Tensor,
    silent: Bool[Tensor, "members d_sae"],
    residual: Float[Tensor, "tokens members d_in"],
    aux_k: int,
    coefficient: float,
) -> None:
    """Add the gradient of AuxK, times its coefficient, to those that `sae` has already.

    AuxK (Gao et al. 2024, appendix A.2) is the share of the residual that the top aux_k silent features leave unexplained,
    summed over members: ||r - f D||^2 / ||r - mean r||^2. Silent features are few, so theirs alone are multiplied again,
    padded to the most that any member has. Written out, for autograd takes twice as long over as little.
    """
    n = silent.sum(1)
    width = int(n.max())
    if not width:
        return
    which = silent.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
    at = torch.arange(len(which), device=which.device)[:, None], which
    encoder, decoder = sae.W_enc.transpose(1, 2)[at], sae.W_dec[at]
    bias = sae.b_enc[at] - torch.bmm(encoder, sae.b_dec[:, :, None])[:, :, 0]
    x = (rows[:, None].expand(-1, len(which), -1) if rows.ndim == 2 else rows).transpose(0, 1)
    codes = torch.baddbmm(bias[:, None], x, encoder.transpose(1, 2))
    padded = torch.arange(width, device=n.device) >= n[:, None]
    codes.masked_fill_(padded[:, None], -torch.inf)
    if width > aux_k:
        codes.masked_fill_(codes < codes.topk(aux_k, dim=-1).values[..., -1:], 0.0)
    codes.relu_()
    left = residual.transpose(0, 1)
    size = left.pow(2).sum((1, 2)) - left.mean(1).pow(2).sum(1) * left.shape[1]
    scale = (-2 * coefficient * (n > 0) / size)[:, None, None]
    rest = torch.baddbmm(left, codes, decoder, alpha=-1)
    to_codes = torch.bmm(rest, decoder.transpose(1, 2)).mul_(scale).mul_(codes > 0)  # the gradient of codes
    to_bias = to_codes.sum(1)
    gradient(sae.W_dec)[at] += torch.bmm(codes.transpose(1, 2), rest) * scale
    gradient(sae.W_enc).transpose(1, 2)[at] += (
        torch.bmm(to_codes.transpose(1, 2), x) - to_bias[:, :, None] * sae.b_dec[:, None]
    )
    gradient(sae.b_enc)[at] += to_bias
    if sae.b_dec.grad is not None:
        sae.b_dec.grad -= torch.bmm(to_bias[:, None], encoder)[:, 0]
