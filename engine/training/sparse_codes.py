"""Sparse codes of any width in training: chosen entries of dense pre-activations, and the reconstruction from them."""

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

# Above this share of entries one dense product is faster than a row at a time.
DENSE_SHARE = 1 / 6


class Positions:
    """Some (token, member, feature) triples in ascending order, and what is derived from them once for a whole step."""

    def __init__(self, flat: Int[Tensor, " n"], shape: tuple[int, int, int]) -> None:
        self.flat = flat  # (token * members + member) * d_sae + feature
        self.shape = shape  # tokens, members, d_sae
        self.by_feature: Any = None  # the order of features, for whoever sums in it

    @classmethod
    def of(cls, dense: Shaped[Tensor, "tokens members d_sae"], flat: Int[Tensor, " n"]) -> "Positions":
        """The positions `flat` in an array of this shape."""
        n_tokens, n_members, d_sae = dense.shape
        return cls(flat, (n_tokens, n_members, d_sae))

    @property
    def are_many(self) -> bool:
        """Whether dense products are faster than a row at a time."""
        return len(self.flat) > DENSE_SHARE * math.prod(self.shape)

    @cached_property
    def row(self) -> Int[Tensor, " n"]:
        """token * members + member."""
        return self._quotient(self.shape[2])

    @cached_property
    def feature(self) -> Int[Tensor, " n"]:
        """Which of the features of all members, one member's behind the other's."""
        n = self.shape[1] * self.shape[2]
        return self.flat - self._quotient(n) * n

    @cached_property
    def member(self) -> Int[Tensor, " n"]:
        return self.row % self.shape[1]

    def _quotient(self, divisor: int) -> Int[Tensor, " n"]:
        if self.flat.device.type != "cpu":
            return self.flat // divisor
        return torch.from_numpy(self.flat.numpy() // divisor)  # several times as fast

    def first(self, groups: tuple[int, ...] | None = None) -> Int[Tensor, " runs"]:
        """At which place each (token, member) begins, or each (token, member, group) of consecutive features."""
        n_tokens, n_members, d_sae = self.shape
        first = torch.arange(n_tokens * n_members, device=self.flat.device)[:, None] * d_sae
        if groups is not None:
            first = first + torch.tensor((0, *groups[:-1]), device=self.flat.device).cumsum(0)
        return torch.searchsorted(self.flat, first.reshape(-1))

    def dense(self, values: Float[Tensor, " n"]) -> Float[Tensor, "tokens members d_sae"]:
        """One number per place, and zero everywhere else; differentiable."""
        return values.new_zeros(math.prod(self.shape)).scatter(0, self.flat, values).view(self.shape)

    def per_token(self, values: Float[Tensor, " n"]) -> Float[Tensor, " members"]:
        """The sum of one number per place for every member, per token; differentiable."""
        return values.new_zeros(self.shape[1]).index_add(0, self.member, values) / self.shape[0]


class Entries(NamedTuple):
    """Positions with their activations."""

    places: Positions
    values: Float[Tensor, " n"]

    def fired(self) -> Bool[Tensor, "members d_sae"]:
        """Which features are active on any token."""
        _, n_members, d_sae = self.places.shape
        fired = torch.zeros(n_members * d_sae, dtype=torch.bool, device=self.values.device)
        fired[self.places.feature[self.values > 0]] = True
        return fired.view(n_members, d_sae)


def where(mask: Bool[Tensor, "tokens members d_sae"]) -> Positions:
    """Where a mask is true."""
    if mask.device.type == "cpu":
        return Positions.of(mask, torch.from_numpy(np.flatnonzero(mask.numpy())))
    return Positions.of(mask, mask.reshape(-1).nonzero()[:, 0])


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
    places, values = entries
    n_tokens, n_members, _ = places.shape
    if groups is None and places.are_many:
        return torch.bmm(places.dense(values).transpose(0, 1), W_dec).transpose(0, 1)
    out = nn.functional.embedding_bag(
        places.feature,
        W_dec.reshape(-1, W_dec.shape[-1]),
        places.first(groups),
        per_sample_weights=values,
        mode="sum",
    )
    return out.view(n_tokens, n_members, *(() if groups is None else (len(groups),)), W_dec.shape[-1])


def largest_of_batch(
    pre: Float[Tensor, "tokens members d_sae"], k: int, bound: Float[Tensor, " members"]
) -> Int[Tensor, " n"]:
    """Where each member's k * tokens largest positive pre-activations stand, fewer where fewer are positive.

    `bound` is a guess that lies below them: a good one leaves little to search, the result never depends on it.
    """
    n_tokens, n_members, _ = pre.shape
    wanted = k * n_tokens
    for least in (bound.clamp_min(0), torch.zeros_like(bound)):
        places = where(pre > least[:, None])
        flat, member = places.flat, places.member
        counts = member.bincount(minlength=n_members)
        if (counts >= wanted).all():
            break
    values = values_at(pre, flat)
    keep = torch.ones_like(flat, dtype=torch.bool)
    for each in (counts > wanted).nonzero()[:, 0].tolist():
        own = (member == each).nonzero()[:, 0]
        keep[own] = False
        keep[own[values[own].topk(wanted, sorted=False).indices]] = True
    return flat[keep]
