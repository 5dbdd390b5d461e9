"""Encoders of overcomplete as one affine map: a linear layer with its BatchNorm folded in, or the dictionary's transpose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LINEAR, _NORM = "encoder.final_block.0", "encoder.final_block.1"


def linear_encoder(
    tensors: Mapping[str, Tensor],
    attributes: Mapping[str, Any],
    kinds: Mapping[str, str],
    W_dec: Tensor,
    path: Path,
) -> tuple[Tensor, Tensor]:
    """W_enc (d_in, d_sae) and b_enc (d_sae,); raises ValueError where the encoder is not affine followed by a ReLU."""
    kind = kinds.get("encoder", "")
    tied = any(name.startswith("encoder.tied_to.") for name in tensors)
    if kind == "TieableEncoder" or (not kind and ("encoder.weight" in tensors or tied)):
        weight = _matrix(
            tensors.get("encoder.weight", W_dec), path
        )  # without one of its own it is tied to the dictionary
        return weight.T, tensors.get("encoder.bias", torch.zeros(len(weight)))
    if kind not in ("", "MLPEncoder") or f"{_LINEAR}.weight" not in tensors:
        raise ValueError(f"{path} has the encoder {kind or 'of an unknown kind'}, expected a linear one")
    if deeper := [
        name for name in tensors if name.startswith(("encoder.mlp_blocks", "encoder.attention", "encoder.resnet"))
    ]:
        raise ValueError(f"{path} has an encoder of several layers ({deeper[0]}), expected a linear one")
    activation = kinds.get("encoder.final_activation", "ReLU")
    if activation != "ReLU":
        raise ValueError(f"{path} has an encoder that ends in {activation}, expected ReLU")
    weight = _matrix(tensors[f"{_LINEAR}.weight"], path)
    bias = tensors.get(f"{_LINEAR}.bias", torch.zeros(len(weight)))
    norm = kinds.get(_NORM, "BatchNorm1d" if f"{_NORM}.running_mean" in tensors else "Identity")
    if norm == "Identity" and f"{_NORM}.weight" not in tensors:
        return weight.T, bias
    if norm != "BatchNorm1d" or f"{_NORM}.running_mean" not in tensors:
        raise ValueError(
            f"{path} normalises its pre-activations with {norm}, expected BatchNorm1d with running statistics"
        )
    mean, variance = tensors[f"{_NORM}.running_mean"].double(), tensors[f"{_NORM}.running_var"].double()
    gain = (variance + float(attributes.get(f"{_NORM}.eps", 1e-5))).rsqrt()
    if f"{_NORM}.weight" in tensors:
        gain = gain * tensors[f"{_NORM}.weight"]
    shift = tensors.get(f"{_NORM}.bias", torch.zeros(len(weight)))
    return (weight.T * gain).float(), ((bias - mean) * gain + shift).float()


def _matrix(weight: Tensor, path: Path) -> Tensor:
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{path} has an encoder of shape {tuple(weight.shape)} and type {weight.dtype}, expected (d_sae, d_in), floating point"
        )
    return weight
