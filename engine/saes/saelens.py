"""SAELens' layout of one SAE on disk: a folder with a config and weights that SAELens loads."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers.saelens import CONFIG, WEIGHTS

LAYOUT = "6.0.0"  # the first version of SAELens that reads these files as they are meant
RUNNER = "runner_cfg.json"
_ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}


def refusal(c: Convention) -> str | None:
    """Why SAELens cannot compute what a convention says, None where it can."""
    if c.architecture not in _ARCHITECTURES:
        return f"it has no {c.architecture}, which takes the largest of each group of features"
    if not (math.isfinite(c.input_scale) and c.input_scale > 0):
        return f"its input_scale is {c.input_scale}, expected a positive number"
    if c.normalize == "layer_norm" and c.layer_norm_eps_out:
        return "its reconstruction is multiplied by std + 1e-5, which is std alone in SAELens"
    if c.normalize == "layer_norm" and c.input_scale != 1:
        return f"inputs are scaled by {c.input_scale} before layer_norm, and the 1e-5 that SAELens adds to std is not"
    return None


def as_saelens(c: Convention, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors with which SAELens computes the same activations and reconstructions.

    - A scale s of inputs that are not normalised: W_enc * s, W_dec / s, b_dec / s. constant_norm_rescale undoes it itself.
    - `inclusive`: thresholds one floating-point number lower.
    - rescale_by_decoder_norm beside a scale, or with a row that is zero (where SAELens divides by it): the norms go into
      the encoder, the rows become unit ones.
    SAELens' constant_norm_rescale gives NaN for an input of zeros, this project zeros.
    """
    held = {name: tensor.double() for name, tensor in tensors.items()}
    s = c.input_scale if c.normalize == "none" else 1.0
    rescale, norms = c.rescale_by_decoder_norm, held["W_dec"].norm(dim=-1)
    if rescale and (s != 1 or not norms.all()):
        held["W_enc"], held["b_enc"] = held["W_enc"] * norms, held["b_enc"] * norms
        held["W_dec"] = held["W_dec"] / torch.where(norms > 0, norms, 1)[:, None]
        rescale = False
    if s != 1:
        held["W_enc"] = held["W_enc"] * s
        held["W_dec"], held["b_dec"] = held["W_dec"] / s, held["b_dec"] / s
    held = {name: tensor.float().contiguous() for name, tensor in held.items()}
    if c.architecture == "jumprelu" and c.inclusive:
        held["threshold"] = torch.nextafter(held["threshold"], torch.tensor(-math.inf))
    if c.architecture == "gated":
        held["b_gate"] = held.pop("b_enc")
    settings: dict[str, Any] = {
        "architecture": _ARCHITECTURES[c.architecture],
        "apply_b_dec_to_input": c.subtract_b_dec,
        "normalize_activations": c.normalize,
    }
    if c.architecture == "topk":
        settings |= {"k": c.k, "rescale_acts_by_decoder_norm": rescale}
    return settings, held


def save(member: sae.SAE, folder: Path, told: Mapping[str, Any]) -> None:
    """Write one SAE as SAELens' own `save_model` does; `told` is its metadata, without what is None."""
    settings, tensors = as_saelens(member.convention, member.member_tensors(0))
    told = {name: value for name, value in told.items() if value is not None}
    config = settings | {
        "d_in": member.d_in,
        "d_sae": member.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "reshape_activations": "hook_z" if str(told.get("hook_name")).endswith("hook_z") else "none",
        "metadata": {"sae_lens_version": LAYOUT} | told,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, allow_nan=False))
    runner = {name: told[name] for name in ("seed", "model_name", "hook_name") if name in told}
    (folder / RUNNER).write_text(json.dumps(runner))
