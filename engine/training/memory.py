"""Predict the peak memory of a training before it starts, and the groups of members that fit."""

from itertools import pairwise
from typing import NamedTuple

import torch

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.machine import GIB
from seedscope.engine.training.variants import RECIPES

SAFETY = 0.9  # of what is free: others allocate as well


class OutOfMemoryError(MemoryError, RuntimeError):
    """Training does not fit; the message says the largest group of members that would."""


class Need(NamedTuple):
    """Bytes at the peak above what the process holds already."""

    shared: int  # whatever the number of members is
    member: int  # for each member that is trained at once

    def of(self, members: int) -> int:
        """The whole of it for so many members."""
        return self.shared + members * self.member

    def fits(self, available: int) -> int:
        """The largest number of members that this many bytes hold."""
        return max(int((SAFETY * available - self.shared) // self.member), 0)


def predicted(config: TrainConfig, d_in: int, *, dtype: torch.dtype, sample_rows: int, keeps: bool) -> Need:
    """What training takes; `keeps` where checkpoints are written.

    Per member: the weights, their gradient and Adam's two moments; the batch's pre-activations, their gradient and what
    the variant makes of them, all features active in the worst case of those whose width is free; reconstructions and
    residuals. Shared: the sample of rows and the libraries' own buffers.
    """
    item = dtype.itemsize
    weights = n_weights(config, d_in)
    if RECIPES[config.variant].archetypal:
        weights += config.d_sae * (config.d_sae + 2 * d_in)
    per_weight = (5 if keeps else 4) * item  # a checkpoint is copied before it is written
    entries = config.batch * config.d_sae
    per_entry = _PER_ENTRY[config.variant] * item / 4
    groups = len(config.group_fracs) if config.variant == "matryoshka" else 1
    batch = 6 * config.batch * d_in * item * groups
    chosen = 12 * config.batch * config.k * item if "k" in config.uses else 0
    start = 3 * 2 * d_in * config.d_sae * item  # drawing the start holds copies, before the moments exist
    member = max(weights * per_weight + int(entries * per_entry) + batch + chosen, start)
    return Need(shared=3 * sample_rows * d_in * item + 2**26, member=member)


def n_weights(config: TrainConfig, d_in: int) -> int:
    """Numbers that one member's file holds."""
    return 2 * d_in * config.d_sae + (len(RECIPES[config.variant].more) + 1) * config.d_sae + d_in


# Bytes per (token, member, feature) of a batch at the peak in float32, measured where half of them are active.
_PER_ENTRY = {
    "topk": 8, "archetypal": 8, "relaxed-archetypal": 8, "batchtopk": 36, "matryoshka": 36, "relu": 48, "jumprelu": 62,
    "gated": 60,
}  # fmt: skip


def in_groups(
    config: TrainConfig, d_in: int, need: Need, available: int, *, at_most: int | None = None
) -> list[tuple[int, ...]]:
    """The seeds in groups that fit, as few and as equal as possible; raises OutOfMemoryError where not even one does."""
    most = min(need.fits(available), at_most or len(config.seeds))
    if not most:
        raise OutOfMemoryError(
            f"training needs {need.of(1) / GIB:.2f} GiB for one seed of {config.d_sae:,} x {d_in} with batches of "
            f"{config.batch:,}, {available / GIB:.2f} GiB are free: the largest group that fits is 0 seeds; lower d_sae or "
            "batch, or take a machine with more memory"
        )
    n_groups = -(-len(config.seeds) // most)
    size, larger = divmod(len(config.seeds), n_groups)
    ends = [0]
    for group in range(n_groups):
        ends.append(ends[-1] + size + (group < larger))
    return [config.seeds[a:b] for a, b in pairwise(ends)]
