"""Conventions: what has to be known beside an SAE's tensors to compute its activations and reconstructions."""

from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURES = ("relu", "topk", "groupmax", "jumprelu", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "centre")
# Tensors that every SAE has, in SAELens orientation.
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
# Tensors that only some architectures have, each (d_sae,).
MORE_TENSORS: dict[str, tuple[str, ...]] = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}
SKIP = "W_skip"  # of transcoders with a skip connection, (d_in, d_out)
# Fields that only transcoders have: left out of metadata and digests of others, which are older than these fields.
_OF_TRANSCODERS = ("transcoder", "skip")


@dataclass(frozen=True)
class Convention:
    """The forward pass of an SAE or a transcoder. Raises ValueError for an unknown architecture or normalization, a missing k,
    and for what transcoders do not have.

    x' = normalize(x * input_scale); pre = (x' - b_dec, or x') @ W_enc + b_enc; f by architecture; reconstruction
    x_hat = unnormalize(f @ W_dec + b_dec) / input_scale.

    relu: f = relu(pre). topk: f = relu of the k largest pre. groupmax: f = relu of the largest pre of each of k groups of
    d_sae / k neighbours. jumprelu: f = relu(pre) where pre > threshold (>= if `inclusive`), else 0; BatchTopK at inference
    is this with one threshold for all features. gated: f = relu((x' [- b_dec]) @ (W_enc * exp(r_mag)) + b_mag) where pre > 0.
    With `rescale_by_decoder_norm` topk ranks and returns pre * ||W_dec_i||, and decoding divides by the norm.

    A `transcoder` reads x at one hook point and predicts y at another: y_hat = f @ W_dec + b_dec, plus x @ W_skip with `skip`.
    Its inputs are normalised, its outputs are in the units of y as they are, and b_dec belongs to y: it is not subtracted.
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
    transcoder: bool = False
    skip: bool = False  # transcoders: a linear map of the input is added to the output

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize is {self.normalize!r}, expected one of {', '.join(NORMALIZATIONS)}")
        if self.architecture in ("topk", "groupmax") and self.k < 1:
            raise ValueError(f"k is {self.k}, expected at least 1 for {self.architecture}")
        if self.transcoder and self.subtract_b_dec:
            raise ValueError(
                "subtract_b_dec is true, expected false: the b_dec of a transcoder belongs to what it predicts"
            )
        if self.skip and not self.transcoder:
            raise ValueError(
                "skip is true, expected it of transcoders alone: past an SAE's features nothing is reconstructed"
            )

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that this architecture needs."""
        return TENSORS + MORE_TENSORS.get(self.architecture, ()) + (SKIP,) * self.skip

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, for metadata and digests; those of transcoders alone only where they are set."""
        return {name: value for name, value in asdict(self).items() if value or name not in _OF_TRANSCODERS}
