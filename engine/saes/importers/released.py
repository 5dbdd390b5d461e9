"""SAEs in the layouts of single code bases and releases: BatchTopK (Bussmann et al. 2024), Llama Scope (He et al. 2024), Goodfire.

BatchTopK: a folder with sae.pt and config.json. Llama Scope: hyperparams.json and checkpoints/final.safetensors. Goodfire: a
state dict of encoder_linear and decoder_linear.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.facts import fixed, stated
from seedscope.engine.saes.importers.imported import (
    Imported,
    imported,
    read_json,
    read_safetensors,
    seed_of,
    vector,
    whole,
)
from seedscope.engine.saes.importers.settings import recorded

BATCH_TOPK, LLAMA_SCOPE = "sae.pt", "hyperparams.json"
_LLAMA_WEIGHTS = Path("checkpoints") / "final.safetensors"
_GOODFIRE = {
    "encoder_linear.weight": "W_enc",
    "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec",
    "decoder_linear.bias": "b_dec",
}
_LINEAR = {name.replace("_linear", ""): ours for name, ours in _GOODFIRE.items()}


def read_batch_topk(path: Path) -> Imported:
    """The SAE in a folder with sae.pt and config.json, as its code base runs it in evaluation.

    vanilla: relu((x - b_dec) @ W_enc + b_enc). topk: the k largest of relu((x - b_dec) @ W_enc), without b_enc. batchtopk: the
    same above the stored threshold. With input_unit_norm every token is standardised first. Raises ValueError for other types,
    and for batchtopk without a threshold: which activations count then depends on the batch.
    """
    file = path / BATCH_TOPK if path.is_dir() else path
    config = read_json(file.parent / "config.json")
    state = unpickle.read(file)
    weights = dict(state) if isinstance(state, Mapping) else {}
    kind, remarks, k = str(config.get("sae_type")), [], 0
    if kind == "topk":
        k = whole(config.get("top_k"), "top_k", file.parent / "config.json")
    elif kind == "batchtopk":
        if "threshold" not in weights:
            raise ValueError(
                f"{file} was trained with BatchTopK and holds no threshold: which activations count depends on the batch. Add the "
                "smallest activation that passed, averaged over batches, to its state dict as a tensor `threshold`"
            )
        remarks.append("trained with BatchTopK")
    elif kind != "vanilla":
        raise ValueError(f"{file.parent / 'config.json'} has sae_type = {kind!r}, expected vanilla, topk or batchtopk")
    if kind != "vanilla" and isinstance(bias := weights.get("b_enc"), Tensor) and bias.any():
        raise ValueError(
            f"{file} has a b_enc that is not zero, which this code base's {kind} does not use; set it to zero"
        )
    convention = Convention(
        {"vanilla": "relu", "topk": "topk", "batchtopk": "jumprelu"}[kind],
        k=k,
        normalize="layer_norm" if config.get("input_unit_norm") else "none",
    )
    return imported(
        path,
        weights | vector(weights, "threshold", "b_enc"),
        convention,
        seed=seed_of(config.get("seed")),
        source={
            "format": "batch_topk",
            "library": "bartbussmann/BatchTopK",
            "architecture": kind,
            "model": config.get("model_name"),
            "hookpoint": config.get("hook_point"),
        },
        remarks=remarks,
        facts=fixed("format batch_topk", "library", "scale", "b_dec")
        | {"normalisation": ("", "config.json: input_unit_norm")}
        | stated(
            config,
            "config.json",
            {
                "forward pass": "sae_type", "threshold": "sae_type", "k or l1": "top_k", "hook point": "hook_point",
                "model": "model_name", "dataset": "dataset_path", "seed": "seed",
            },
        ),
        settings=recorded(config),
        weights=file,
    )  # fmt: skip


def read_llama_scope(folder: Path) -> Imported:
    """The SAE in a folder with hyperparams.json: JumpReLU of inputs that are scaled to a mean norm of sqrt(d_in).

    The scale is folded into the weights. Where `sparsity_include_decoder_norm`, the threshold is one of f_i * ||W_dec_i||.
    Transcoders predict activations that are scaled in the same way. Raises ValueError for other activation functions and other
    normalisations.
    """
    where, config = folder / LLAMA_SCOPE, read_json(folder / LLAMA_SCOPE)
    inside, outside = config.get("hook_point_in"), config.get("hook_point_out")
    transcoder = inside != outside
    for name, expected in (
        ("act_fn", ("jumprelu",)),
        ("norm_activation", ("dataset-wise",)),
        ("use_glu_encoder", (None, False)),
    ):
        if config.get(name) not in expected:
            raise ValueError(f"{where} has {name} = {config.get(name)!r}, expected {expected[-1]!r}")
    stored, _ = read_safetensors(folder / _LLAMA_WEIGHTS)
    weights = {ours: stored[name].double() for name, ours in _LINEAR.items() if name in stored}
    norms = config.get("dataset_average_activation_norm") or {}
    threshold: Any = config.get("jump_relu_threshold")
    if not all(
        isinstance(value, int | float) and value > 0 for value in (norms.get("in"), norms.get("out"), threshold)
    ):
        raise ValueError(
            f"{where} has dataset_average_activation_norm = {norms!r} and jump_relu_threshold = {threshold!r}, expected positive "
            "numbers: inputs are scaled by them"
        )
    if {"W_enc", "b_enc", "W_dec"} <= weights.keys():
        weights["W_enc"], weights["W_dec"] = weights["W_enc"].T, weights["W_dec"].T
        d_in = weights["W_dec"].shape[1]
        weights.setdefault("b_dec", torch.zeros(d_in, dtype=torch.float64))
        length = (
            weights["W_dec"].norm(dim=1)
            if config.get("sparsity_include_decoder_norm")
            else torch.ones(len(weights["W_dec"]))
        )
        weights["threshold"] = threshold / length.double()
        scale_in, scale_out = d_in**0.5 / norms["in"], d_in**0.5 / norms["out"]
        if config.get("apply_decoder_bias_to_pre_encoder"):
            if transcoder:
                raise ValueError(
                    f"{where} has apply_decoder_bias_to_pre_encoder = true, expected false of a transcoder ({inside} to "
                    f"{outside}): its decoder's bias belongs to what it predicts"
                )
            weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
        weights["W_enc"] = weights["W_enc"] * scale_in
        weights["W_dec"], weights["b_dec"] = weights["W_dec"] / scale_out, weights["b_dec"] / scale_out
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()} - {"float32"}
    return imported(
        folder,
        {name: tensor.float() for name, tensor in weights.items()},
        Convention("jumprelu", subtract_b_dec=False, transcoder=transcoder),
        source={
            "format": "llama_scope",
            "library": "Llama Scope",
            "hookpoint": inside,
            "hookpoint_out": outside if transcoder else None,
        },
        remarks=[
            f"the scale of its inputs, sqrt(d_in) / {norms['in']:g}, folded into the weights",
            *(f"weights cast from {name}" for name in sorted(types)),
        ],
        facts=fixed("format llama_scope", "library", "b_dec", "normalisation")
        | stated(
            config,
            LLAMA_SCOPE,
            {
                "forward pass": "act_fn",
                "threshold": "jump_relu_threshold",
                "scale": "dataset_average_activation_norm",
                "hook point": "hook_point_in",
                "output hook point": "hook_point_out",
                "dtype": "dtype",
            },
        ),
        settings=recorded(config),
        weights=folder / _LLAMA_WEIGHTS,
    )


def is_goodfire(value: Any) -> bool:
    """Whether a `torch.save` file's content looks like Goodfire's state dict."""
    return isinstance(value, Mapping) and _GOODFIRE.keys() <= value.keys()


def read_goodfire(path: Path) -> Imported:
    """The SAE in a state dict of Goodfire: relu(x @ W_enc + b_enc), without centring."""
    value = unpickle.read(path)
    if not is_goodfire(value):
        raise ValueError(f"{path} holds no state dict of Goodfire, expected {', '.join(_GOODFIRE)}")
    weights = {ours: value[name] for name, ours in _GOODFIRE.items()}
    weights |= {name: weights[name].T for name in ("W_enc", "W_dec")}  # Linear weights are (out, in)
    source = {"format": "goodfire", "library": "Goodfire"}
    return imported(path, weights, Convention("relu", subtract_b_dec=False), source=source)


def _is_batch_topk(folder: Path) -> bool:
    """Whether the config beside a sae.pt, a name that others use as well, is this code base's."""
    config = folder / "config.json"
    return config.is_file() and "sae_type" in read_json(config)


def _is_llama_scope(folder: Path) -> bool:
    """Whether weights lie where this release has them."""
    return (folder / _LLAMA_WEIGHTS).is_file()


# {format whose file's name others use as well: whether a folder is of it}.
CONFIRMED = {"batch_topk": _is_batch_topk, "llama_scope": _is_llama_scope}
