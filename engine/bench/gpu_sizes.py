"""Sizes of the work that `seedscope bench gpu` measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuSizes:
    """The defaults are those of a study of GPT-2: SAEs of 16,384 features at width 768. Fields name what they count."""

    rows: int = 16_384  # of each of two dictionaries that are compared
    d_in: int = 768
    pairs: int = 12  # pairs of dictionaries that are compared one behind the other
    assigned_rows: int = 4_096  # one to one; the optimum of more is found on the processor for minutes
    resident_members: int = 96  # whose rows lie on the device for neighbours
    queries: int = 32  # at once
    d_sae: int = 16_384  # of members in training and at inference
    k: int = 32
    trained_members: int = 16
    batch: int = 2_048  # tokens of a training step
    layers: int = 8  # of a model of GPT-2's shape; activations are read at the last one's input
    heads: int = 12
    vocabulary: int = 50_257
    windows: int = 512
    n_ctx: int = 128
    span_members: int = 24
    span_rows: int = 1_000  # of the set of each member
    projected_members: int = 8
    projected_features: int = 4_096  # of each member; one in eight is in the set
