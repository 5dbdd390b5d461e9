"""Gradients through chosen entries of pre-activations, written out: one dense product, and all else touches entries alone.

A step needs pre-activations at the chosen entries, and the squared error of what codes there reconstruct. What a variant computes
between the two is one number per entry, which autograd differentiates at little cost. What surrounds it is written out
here for CPUs: autograd goes through gradients of all pre-activations, as large as the product itself. Where many
entries are chosen, products are faster than sums over entries, and take their place. Other devices take autograd's way.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.sparse_codes import Entries, Positions, decoded, values_at


def dense_pre_activations(sae: SAE, rows: Tensor) -> Float[Tensor, "tokens members d_sae"]:
    """Pre-activations of all features; differentiable where `activations_at` needs it."""
    with torch.set_grad_enabled(rows.device.type != "cpu"):
        return sae.pre_activations(rows)


def activations_at(
    sae: SAE, rows: Tensor, pre: Float[Tensor, "tokens members d_sae"], places: Positions
) -> Float[Tensor, " n"]:
    """The pre-activations at these places, differentiable by encoder and biases.

    `rows` are (tokens, d_in) or (tokens, members, d_in); `pre` is what `dense_pre_activations` made of them.
    """
    if pre.device.type != "cpu":
        return values_at(pre, places.flat)
    return _Activations.apply(places, rows, pre, sae.W_enc, sae.b_enc, sae.b_dec)


def unexplained(
    entries: Entries, rows: Tensor, W_dec: Float[Tensor, "members d_sae d_in"], b_dec: Float[Tensor, "members d_in"]
) -> tuple[Float[Tensor, " members"], Float[Tensor, "tokens members d_in"]]:
    """Squared error per token, differentiable by values, decoder and bias; and the residual, which is not."""
    targets = rows[:, None] if rows.ndim == 2 else rows
    if W_dec.device.type == "cpu":
        return _Unexplained.apply(entries.places, targets, entries.values, W_dec, b_dec)
    residual = targets - (decoded(entries, W_dec) + b_dec)
    return residual.pow(2).sum(-1).mean(0), residual.detach()


def unexplained_by_prefixes(
    entries: Entries,
    groups: tuple[int, ...],
    rows: Tensor,
    W_dec: Float[Tensor, "members d_sae d_in"],
    b_dec: Float[Tensor, "members d_in"],
) -> tuple[Float[Tensor, "members groups"], Float[Tensor, "tokens members d_in"]]:
    """As `unexplained` for every prefix of `groups`, sizes of consecutive groups of features; the residual is that of all."""
    targets = rows[:, None] if rows.ndim == 2 else rows
    if W_dec.device.type == "cpu":
        return _UnexplainedByPrefixes.apply(entries.places, groups, targets, entries.values, W_dec, b_dec)
    residuals = targets[:, :, None] - (decoded(entries, W_dec, groups).cumsum(2) + b_dec[:, None])
    return residuals.pow(2).sum(-1).mean(0), residuals[:, :, -1].detach()


class ByFeature:
    """Sums of weighted rows over the entries of every feature."""

    def __init__(self, index: ndarray, n_features: int) -> None:
        small = index.astype(np.uint16) if n_features <= 2**16 else index  # few bits are sorted by counting
        self._order = np.argsort(small, kind="stable")
        counts = np.bincount(index, minlength=n_features)
        self._first = torch.from_numpy(np.cumsum(counts) - counts)

    def of(self, table: Float[Tensor, "n d_in"], rows: ndarray, weights: Float[Tensor, " entries"]) -> Tensor:
        """(features, d_in): for every feature the sum of weight times `table[row]` over its entries."""
        return nn.functional.embedding_bag(
            torch.from_numpy(rows[self._order]), table, self._first, mode="sum",
            per_sample_weights=weights.index_select(0, torch.from_numpy(self._order)),
        )  # fmt: skip


def _by_feature(places: Positions) -> ByFeature:
    """Made once for all sums of a step."""
    if places.by_feature is None:
        _, n_members, d_sae = places.shape
        places.by_feature = ByFeature(places.feature.numpy(), n_members * d_sae)
    return places.by_feature


class _Activations(torch.autograd.Function):
    """`activations_at` between tensors."""

    @staticmethod
    def forward(
        ctx: Any, places: Positions, rows: Tensor, pre: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor
    ) -> Tensor:
        ctx.places = places
        ctx.save_for_backward(rows, W_enc, b_dec)
        return values_at(pre, places.flat)

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        (rows, W_enc, b_dec), places = ctx.saved_tensors, ctx.places
        n_tokens, n_members, d_sae = places.shape
        d_in = rows.shape[-1]
        if places.are_many:
            dense = places.dense(by_value)
            if rows.ndim == 2:
                encoder = torch.mm(dense.view(n_tokens, -1).t(), rows).view(n_members, d_sae, d_in)
            else:
                encoder = torch.bmm(dense.permute(1, 2, 0), rows.transpose(0, 1))
            b_enc = dense.sum(0)
        else:
            b_enc = by_value.new_zeros(n_members * d_sae).index_add_(0, places.feature, by_value)
            b_enc = b_enc.view(n_members, d_sae)
            row = places.row.numpy()
            token = row // n_members if rows.ndim == 2 else row
            encoder = _by_feature(places).of(rows.reshape(-1, d_in), token, by_value).view(n_members, d_sae, d_in)
        encoder.baddbmm_(b_enc[:, :, None], b_dec[:, None], alpha=-1)  # the input is x - b_dec
        centre = torch.bmm(b_enc[:, None], W_enc.transpose(1, 2))[:, 0].neg_() if ctx.needs_input_grad[5] else None
        return None, None, None, encoder.transpose(1, 2), b_enc, centre


class _Unexplained(torch.autograd.Function):
    """`unexplained` between tensors."""

    @staticmethod
    def forward(
        ctx: Any, places: Positions, targets: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor
    ) -> tuple[Tensor, Tensor]:
        n_tokens, n_members, _ = places.shape
        ctx.places = places
        if places.are_many:
            ctx.dense = places.dense(values)
            residual = torch.bmm(ctx.dense.transpose(0, 1), W_dec).transpose(0, 1)
        else:
            ctx.sums = _Sums(places.feature, places.first(), values, W_dec)
            residual = ctx.sums.out.detach().view(n_tokens, n_members, -1)  # made in its place: memory is what it costs
        residual.add_(b_dec).neg_().add_(targets)
        ctx.save_for_backward(residual, W_dec)
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)
        return residual.pow(2).sum(-1).mean(0), residual

    @staticmethod
    def backward(ctx: Any, by_error: Tensor, *others: None) -> tuple[Tensor | None, ...]:
        (residual, W_dec), places = ctx.saved_tensors, ctx.places
        back = residual * (-2 / len(residual) * by_error)[:, None]  # of the reconstruction
        decoder = None
        if places.are_many:
            of_member = back.transpose(0, 1)
            by_value = values_at(torch.bmm(of_member, W_dec.transpose(1, 2)).transpose(0, 1), places.flat)
            if ctx.needs_input_grad[3]:
                decoder = torch.bmm(ctx.dense.permute(1, 2, 0), of_member)
        else:
            flat_back = back.view(-1, back.shape[-1])
            by_value = ctx.sums.by_value(flat_back)
            if ctx.needs_input_grad[3]:
                decoder = _by_feature(places).of(flat_back, places.row.numpy(), ctx.sums.values).view(W_dec.shape)
        return None, None, by_value, decoder, back.sum(0) if ctx.needs_input_grad[4] else None


class _UnexplainedByPrefixes(torch.autograd.Function):
    """`unexplained_by_prefixes` between tensors: every entry is summed once, prefixes are sums of groups."""

    @staticmethod
    def forward(
        ctx: Any,
        places: Positions,
        groups: tuple[int, ...],
        targets: Tensor,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
    ) -> tuple[Tensor, Tensor]:
        n_tokens, n_members, _ = places.shape
        first = places.first(groups)
        ctx.places = places
        ctx.sums = _Sums(places.feature, first, values, W_dec)
        # Which (token, member, group) an entry is summed in.
        ctx.bag = np.repeat(np.arange(len(first)), np.diff(first.numpy(), append=len(values)))
        residuals = ctx.sums.out.detach().view(n_tokens, n_members, len(groups), -1)  # made in its place
        residuals[:, :, 0] += b_dec - targets
        for group in range(1, len(groups)):
            residuals[:, :, group] += residuals[:, :, group - 1]
        ctx.save_for_backward(residuals, W_dec)  # with the other sign
        residual = residuals[:, :, -1].neg()
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)
        return torch.linalg.vector_norm(residuals, dim=-1).square_().mean(0), residual

    @staticmethod
    def backward(ctx: Any, by_error: Tensor, *others: None) -> tuple[Tensor | None, ...]:
        (residuals, W_dec), places = ctx.saved_tensors, ctx.places
        back = residuals * (2 / len(residuals) * by_error)[:, :, None]
        for group in reversed(range(back.shape[2] - 1)):
            back[:, :, group] += back[:, :, group + 1]  # a group is part of all prefixes from its own on
        flat_back = back.view(-1, back.shape[-1])
        by_value = ctx.sums.by_value(flat_back)
        decoder = _by_feature(places).of(flat_back, ctx.bag, ctx.sums.values).view(W_dec.shape)
        return None, None, None, by_value, decoder, back[:, :, 0].sum(0) if ctx.needs_input_grad[5] else None


class _Sums:
    """Sums of weighted decoder rows over runs of entries, and the gradient of the weights."""

    def __init__(self, feature: Tensor, first: Tensor, values: Tensor, W_dec: Tensor) -> None:
        with torch.enable_grad():  # for the gradient of the values alone
            self._values = values.detach().requires_grad_()
            self.out = nn.functional.embedding_bag(
                feature, W_dec.detach().view(-1, W_dec.shape[-1]), first, per_sample_weights=self._values, mode="sum"
            )

    @property
    def values(self) -> Tensor:
        return self._values.detach()

    def by_value(self, by_sum: Float[Tensor, "runs d_in"]) -> Float[Tensor, " n"]:
        """The gradient of the values from that of the sums."""
        return torch.autograd.grad(self.out, self._values, by_sum)[0]
