"""The k largest entries of every row, faster than `torch.topk` on a CPU."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOPK_GROUP = 8  # neighbouring entries whose maximum is searched first


def topk(pre: Float[Tensor, "*batch d_sae"], k: int) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """The k largest entries of every row, unsorted, with their indices; as `torch.topk`, in about half its time on a CPU.

    They lie in the k groups with the largest maxima, so two searches among few entries replace one among many.
    """
    n = pre.shape[-1]
    if pre.is_cuda or n % TOPK_GROUP or n < 4 * k * TOPK_GROUP / 3:
        values, indices = pre.topk(k, dim=-1, sorted=False)
        return values, indices
    groups = torch.unflatten(pre, -1, (-1, TOPK_GROUP))
    chosen = groups.detach().amax(-1).topk(k, dim=-1, sorted=False).indices
    inside = (chosen[..., None] * TOPK_GROUP + torch.arange(TOPK_GROUP, device=pre.device)).flatten(-2)
    values, at = pre.gather(-1, inside).topk(k, dim=-1, sorted=False)
    return values, inside.gather(-1, at)
