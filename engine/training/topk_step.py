"""A step of TopK or BatchTopK with its gradient written out: one dense product, and all else touches the chosen entries alone.

Of every (token, member) about k features are active, so what leads through codes is sparse: a reconstruction sums k rows per
token, the gradients of decoder and encoder sum, for every feature, over the tokens that chose it. Both are the same sum of
weighted rows, once in the order of tokens and once in the order of features. Autograd would go through dense gradients of
pre-activations instead, as large as the product itself.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.entry_gradients import ByFeature

GROUPS_PER_K = 6  # fewer: more candidates per row; more: more maxima to search


def topk_step(sae: SAE, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`sparse_step` with the k largest of every (token, member)."""
    with torch.no_grad():
        pre = sae.pre_activations(rows)
        flat = largest(pre.reshape(-1, sae.d_sae), sae.k)
    return sparse_step(sae, rows, pre, flat)


def sparse_step(
    sae: SAE, rows: Tensor, pre: Float[Tensor, "tokens members d_sae"], flat: Int[ndarray, " n"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error per token (members), differentiable; residual (tokens, members, d_in); which features fired. On a CPU.

    `rows` are (tokens, d_in), or (tokens, members, d_in); `flat` are ascending positions in `pre`, whose positive values
    there are the codes. The decoder's bias is subtracted from the input.
    """
    return _Step.apply(rows, pre.detach().reshape(-1, sae.d_sae), flat, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)


def largest(pre: Float[Tensor, "rows d_sae"], k: int) -> Int[ndarray, " n"]:
    """Where the k largest of every row stand, as ascending positions in all rows one behind the other.

    The k-th largest maximum of groups of features is a bound that at least k, and few more, of a row's entries reach: a
    search among few instead of among d_sae.
    """
    n, d_sae = pre.shape
    groups = d_sae
    while groups % 2 == 0 and groups // 2 >= GROUPS_PER_K * k:
        groups //= 2
    bound = _kth_largest(pre.view(n, -1, groups).amax(1).numpy(), k)
    flat = np.flatnonzero((pre >= torch.from_numpy(bound)[:, None]).numpy())
    row, values = flat // d_sae, pre.view(-1).numpy()[flat]
    counts = np.bincount(row, minlength=n)
    padded = np.full((n, max(int(counts.max()), k)), -np.inf, values.dtype)
    padded[row, np.arange(len(flat)) - (np.cumsum(counts) - counts)[row]] = values
    flat = flat[values >= _kth_largest(padded, k)[row]]
    if len(flat) != n * k:  # equal ones at the k-th place, or no numbers at all
        chosen = pre.topk(k, sorted=False).indices.sort(1).values.numpy()
        flat = (chosen + np.arange(n)[:, None] * d_sae).reshape(-1)
    return flat


def _kth_largest(values: ndarray, k: int) -> ndarray:
    """The k-th largest of every row."""
    at = values.shape[1] - k
    return np.ascontiguousarray(np.partition(values, at, axis=1)[:, at])


class _Step(torch.autograd.Function):
    """`sparse_step` between tensors."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, pre: Tensor, flat: ndarray, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor
    ) -> tuple[Float[Tensor, " members"], Tensor, Bool[Tensor, "members d_sae"]]:
        n_members, d_sae, d_in = W_dec.shape
        index = torch.from_numpy(flat % (n_members * d_sae))  # among the features of all members
        values = pre.view(-1)[torch.from_numpy(flat)].relu_()
        first = torch.from_numpy(np.searchsorted(flat, np.arange(len(pre)) * d_sae))
        with torch.enable_grad():  # for the gradient of the values alone
            ctx.values = values.requires_grad_()
            ctx.out = nn.functional.embedding_bag(
                index, W_dec.detach().view(-1, d_in), first, per_sample_weights=ctx.values, mode="sum"
            )
        residual = ctx.out.detach().view(-1, n_members, d_in)  # made in its place: memory is what it costs
        residual.add_(b_dec).neg_().add_(rows[:, None] if rows.ndim == 2 else rows)
        is_active = np.zeros(n_members * d_sae, np.bool_)
        is_active[index.numpy()[values.detach().numpy() > 0]] = True
        fired = torch.from_numpy(is_active).view(n_members, d_sae)
        ctx.row = flat // d_sae
        ctx.save_for_backward(rows, index, residual, W_enc, b_dec)
        ctx.mark_non_differentiable(residual, fired)
        ctx.set_materialize_grads(False)
        return residual.pow(2).sum(-1).mean(0), residual, fired

    @staticmethod
    def backward(ctx: Any, error: Tensor, *others: None) -> tuple[Tensor | None, ...]:
        rows, index, residual, W_enc, b_dec = ctx.saved_tensors
        n_members, d_in, d_sae = W_enc.shape
        back = residual * (-2 / len(rows) * error)[:, None]  # of the reconstruction
        flat_back, values = back.view(-1, d_in), ctx.values.detach()
        (own,) = torch.autograd.grad(ctx.out, ctx.values, flat_back)
        own = own * (values > 0)
        sums = ByFeature(index.numpy(), n_members * d_sae)
        row = ctx.row
        b_enc = torch.zeros(n_members * d_sae, dtype=own.dtype, device=own.device).index_add_(0, index, own)
        b_enc = b_enc.view(n_members, d_sae)
        W_dec = sums.of(flat_back, row, values).view(n_members, d_sae, d_in)
        token = row // n_members if rows.ndim == 2 else row
        encoder = sums.of(rows.reshape(-1, d_in), token, own).view(n_members, d_sae, d_in)
        encoder.baddbmm_(b_enc[:, :, None], b_dec[:, None], alpha=-1)  # the input is x - b_dec
        centre = back.sum(0) - torch.bmm(b_enc[:, None], W_enc.transpose(1, 2))[:, 0]
        return None, None, None, encoder.transpose(1, 2), b_enc, W_dec, centre
