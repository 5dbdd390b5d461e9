"""Sparse codes of any width in training: chosen entries of dense pre-activations, and the reconstruction from them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# Above this share of entries one dense product is faster than a row at a time.
DENSE_SHARE = 1 / 6


class Entries(NamedTuple):
    """Some (token, member, feature) triples in ascending order, with their activations."""

    flat: Int[Tensor, " n"]  # (token * members + member) * d_sae + feature
    values: Float[Tensor, " n"]
    shape: tuple[int, int, int]  # tokens, members, d_sae

    @classmethod
    def of(
        cls, dense: Float[Tensor, "tokens members d_sae"], flat: Int[Tensor, " n"], values: Float[Tensor, " n"]
    ) -> "Entries":
        """Entries at the positions `flat` of an array shaped like `dense`."""
        n_tokens, n_members, d_sae = dense.shape
        return cls(flat, values, (n_tokens, n_members, d_sae))

    @property
    def row(self) -> Int[Tensor, " n"]:
        """Which of the rows of all members, one member below the other."""
        return self.flat % (self.shape[1] * self.shape[2])

    @property
    def member(self) -> Int[Tensor, " n"]:
        return self.row // self.shape[2]

    def fired(self) -> Bool[Tensor, "members d_sae"]:
        """Which features are active on any token."""
        fired = torch.zeros(self.shape[1] * self.shape[2], dtype=torch.bool, device=self.flat.device)
        fired[self.row[self.values > 0]] = True
        return fired.view(self.shape[1:])

    def per_token(self, values: Float[Tensor, " n"]) -> Float[Tensor, " members"]:
        """The sum of one number per entry for every member, per token; differentiable."""
        return values.new_zeros(self.shape[1]).index_add(0, self.member, values) / self.shape[0]


def positions(mask: Bool[Tensor, "tokens members d_sae"]) -> Int[Tensor, " n"]:
    """Where a mask is true, as `Entries.flat`."""
    return mask.reshape(-1).nonzero()[:, 0]


def values_at(dense: Float[Tensor, "tokens members d_sae"], flat: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The values at these positions; differentiable."""
    return dense.reshape(-1).index_select(0, flat)


def decoded(
    entries: Entries, W_dec: Float[Tensor, "members d_sae d_in"], groups: tuple[int, ...] | None = None
) -> Tensor:
    """What the entries reconstruct, without bias: (tokens, members, d_in).

    With `groups`, sizes of consecutive groups of features, each group's share by itself: (tokens, members, groups, d_in).
    Cost: d_in per entry, or one dense product where there are many.
    """
    n_tokens, n_members, d_sae = entries.shape
    if groups is None and len(entries.flat) > DENSE_SHARE * n_tokens * n_members * d_sae:
        dense = entries.values.new_zeros(n_tokens * n_members * d_sae).scatter(0, entries.flat, entries.values)
        return torch.bmm(dense.view(entries.shape).transpose(0, 1), W_dec).transpose(0, 1)
    first = torch.arange(n_tokens * n_members, device=entries.flat.device)[:, None] * d_sae
    if groups is not None:
        first = first + torch.tensor((0, *groups[:-1]), device=entries.flat.device).cumsum(0)
    out = nn.functional.embedding_bag(
        entries.row,
        W_dec.reshape(-1, W_dec.shape[-1]),
        torch.searchsorted(entries.flat, first.reshape(-1)),
        per_sample_weights=entries.values,
        mode="sum",
    )
    return out.view(n_tokens, n_members, *(() if groups is None else (len(groups),)), W_dec.shape[-1])


def largest_of_batch(
    pre: Float[Tensor, "tokens members d_sae"], k: int, bound: Float[Tensor, " members"]
) -> Int[Tensor, " n"]:
    """Where each member's k * tokens largest positive pre-activations stand, fewer where fewer are positive.

    `bound` is a guess that lies below them: a good one leaves little to search, the result never depends on it.
    """
    n_tokens, n_members, d_sae = pre.shape
    wanted = k * n_tokens
    for least in (bound.clamp_min(0), torch.zeros_like(bound)):
        flat = positions(pre > least[:, None])
        member = flat // d_sae % n_members
        counts = member.bincount(minlength=n_members)
        if (counts >= wanted).all():
            break
    values = values_at(pre, flat)
    keep = torch.ones_like(flat, dtype=torch.bool)
    for own in member.argsort(stable=True).split(counts.tolist()):
        if len(own) > wanted:
            keep[own] = False
            keep[own[values[own].topk(wanted, sorted=False).indices]] = True
    return flat[keep]
