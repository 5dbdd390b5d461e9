"""Conventions: what has to be known beside an SAE's tensors to compute its activations and reconstructions."""

from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURES = ("relu", "topk", "groupmax", "jumprelu", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "centre")
# Tensors that every SAE has, in SAELens orientation.
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
# Tensors that only some architectures have, each (d_sae,).
MORE_TENSORS: dict[str, tuple[str, ...]] = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}


@dataclass(frozen=True)
class Convention:
    """The forward pass of an SAE. Raises ValueError for an unknown architecture or normalization, and a missing k.

    x' = normalize(x * input_scale); pre = (x' - b_dec, or x') @ W_enc + b_enc; f by architecture; reconstruction
    x_hat = unnormalize(f @ W_dec + b_dec) / input_scale.

    relu: f = relu(pre). topk: f = relu of the k largest pre. groupmax: f = relu of the largest pre of each of k groups of
    d_sae / k neighbours. jumprelu: f = relu(pre) where pre > threshold (>= if `inclusive`), else 0; BatchTopK at inference
    is this with one threshold for all features. gated: f = relu((x' [- b_dec]) @ (W_enc * exp(r_mag)) + b_mag) where pre > 0.
    With `rescale_by_decoder_norm` topk ranks and returns pre * ||W_dec_i||, and decoding divides by the norm.
    """

    architecture: str = "topk"
    k: int = 0  # topk, groupmax: active features per token
    subtract_b_dec: bool = True
    # layer_norm: mean 0, unbiased std + 1e-5; constant_norm_rescale: ||x|| becomes sqrt(d_in); centre: mean 0
    normalize: str = "none"
    layer_norm_eps_out: bool = False  # the reconstruction is multiplied by std + 1e-5 instead of std
    input_scale: float = 1.0
    inclusive: bool = False
    rescale_by_decoder_norm: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize is {self.normalize!r}, expected one of {', '.join(NORMALIZATIONS)}")
        if self.architecture in ("topk", "groupmax") and self.k < 1:
            raise ValueError(f"k is {self.k}, expected at least 1 for {self.architecture}")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that this architecture needs."""
        return TENSORS + MORE_TENSORS.get(self.architecture, ())

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, for metadata and digests."""
        return asdict(self)
