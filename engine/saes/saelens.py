"""Writing an SAE in the layout of SAELens: a folder with a config and weights that SAELens loads."""

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
    """Why the forward pass of a convention is not written for SAELens, as a sentence; None where it is."""
    if c.transcoder:
        return "it is a transcoder, of which SAELens' own files are the ones to keep"
    if c.architecture not in _ARCHITECTURES:
        return f"it has no {c.architecture}, which takes the largest of each group of features"
    if not (math.isfinite(c.input_scale) and c.input_scale > 0):
        return f"its input_scale is {c.input_scale}, expected a positive number"
    if c.normalize == "centre":
        return "it takes the mean over d_model out of its inputs, which SAELens leaves to the weights of the model"
    if c.normalize == "layer_norm" and c.layer_norm_eps_out:
        return "its reconstruction is multiplied by std + 1e-5, which is std alone in SAELens"
    if c.normalize == "layer_norm" and c.input_scale != 1:
        return f"inputs are scaled by {c.input_scale} before layer_norm, and the 1e-5 that SAELens adds to std is not"
    return None


def as_saelens(c: Convention, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors with which SAELens computes the same activations and reconstructions.

    - A scale s of inputs that are not normalised: W_enc * s, W_dec / s, b_dec / s. constant_norm_rescale cancels it.
    - `inclusive`: thresholds one floating-point number lower.
    - rescale_by_decoder_norm beside a scale, or with a row that is zero (where SAELens divides by it): the norms go into
      the encoder, the rows become unit ones.
    SAELens' constant_norm_rescale gives NaN for an input of zeros, this project zeros.
    """
    t = {name: tensor.double() for name, tensor in tensors.items()}
    s = c.input_scale if c.normalize == "none" else 1.0
    norms = t["W_dec"].norm(dim=-1)
    if c.rescale_by_decoder_norm and (s != 1 or not norms.all()):
        t["W_enc"], t["b_enc"] = t["W_enc"] * norms, t["b_enc"] * norms
        t["W_dec"] = t["W_dec"] / torch.where(norms > 0, norms, 1)[:, None]
    if s != 1:
        t["W_enc"] = t["W_enc"] * s
        t["W_dec"], t["b_dec"] = t["W_dec"] / s, t["b_dec"] / s
    t = {name: tensor.float().contiguous() for name, tensor in t.items()}
    if c.architecture == "jumprelu" and c.inclusive:
        t["threshold"] = torch.nextafter(t["threshold"], torch.tensor(-math.inf))
    if c.architecture == "gated":
        t["b_gate"] = t.pop("b_enc")
    return settings(c, has_zero_rows=not bool(norms.all())), t


def settings(c: Convention, *, has_zero_rows: bool) -> dict[str, Any]:
    """The settings that `as_saelens` gives an SAE; `has_zero_rows`: some decoder row is zero."""
    s = c.input_scale if c.normalize == "none" else 1.0
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES[c.architecture],
        "apply_b_dec_to_input": c.subtract_b_dec,
        "normalize_activations": c.normalize,
    }
    if c.architecture == "topk":
        rescale = c.rescale_by_decoder_norm and s == 1 and not has_zero_rows
        config |= {"k": c.k, "rescale_acts_by_decoder_norm": rescale}
    return config


def save(member: sae.SAE, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write one SAE into a new folder as SAELens' own `save_model` does; values of `metadata` that are None are left out."""
    own, tensors = as_saelens(member.convention, member.member_tensors(0))
    metadata = {name: value for name, value in metadata.items() if value is not None}
    config = own | {
        "d_in": member.d_in,
        "d_sae": member.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "reshape_activations": "hook_z" if str(metadata.get("hook_name")).endswith("hook_z") else "none",
        "metadata": {"sae_lens_version": LAYOUT} | metadata,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, allow_nan=False))
    runner = {name: metadata[name] for name in ("seed", "model_name", "hook_name") if name in metadata}
    (folder / RUNNER).write_text(json.dumps(runner))
