"""SAEs and transcoders that were released without a library's format: Gemma Scope, Gemma Scope 2, OpenAI.

Gemma Scope: Lieberum et al. 2024, params.npz. Gemma Scope 2: params.safetensors with config.json. OpenAI: Gao et al. 2024,
`Autoencoder.state_dict()` of openai/sparse_autoencoder.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.saes.convention import SKIP, Convention
from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.facts import FOLDER_NAME, fixed, stated
from seedscope.engine.saes.importers.files import require_file, require_honest
from seedscope.engine.saes.importers.imported import (
    Imported,
    as_given,
    count,
    imported,
    read_json,
    read_safetensors,
    transposed,
    vector,
)
from seedscope.engine.saes.importers.processing import recorded_processing
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import flag, shown, subsettings, text

GEMMA_SCOPE, GEMMA_SCOPE_2 = "params.npz", "params.safetensors"
# Folders of both releases; the hub's local copy has the repository's name two levels further up than the repository has it.
_RELEASE = re.compile(
    r"(?:/(?:models--[^/]+--)?(?P<model>gemma-scope-[^/]+)(?:/snapshots/[^/]+)?(?:/[a-z_]+)?)?"
    r"/(?P<site>(?:layer_\d+|embedding)(?:(?!_?width_)[^/])*)[/_]width_(?P<width>[^/_]+)"
    r"(?:/(?:average_l0_(?P<l0>\d+)[^/]*|[^/]+)|_l0_[a-z]+)?$"
)
# affine_skip_connection is stored as (d_in, d_out).
_GEMMA = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": SKIP}
_TRANSCODER_FOLDER = re.compile(r"transcoders?(_all)?")  # of the second release
# Where transcoders read and predict: in the first release behind the norm without its gain, in the second behind all of it.
_GEMMA_HOOKS = "blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"
_GEMMA_2_HOOKS = (
    "model.layers.{}.pre_feedforward_layernorm.output", "model.layers.{}.post_feedforward_layernorm.output",
)  # fmt: skip
_OPENAI = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec", "latent_bias": "b_enc"}


def read_gemma_scope(path: Path) -> Imported:
    """The SAE or transcoder of either Gemma Scope release in a folder or file: JumpReLU without centring.

    The path names model, layer and L0. Embedding SAEs were trained on embeddings before the model multiplies them by
    sqrt(d_in), so their weights are rescaled. Raises ValueError for cross-layer transcoders and crosscoders.
    """
    file = path
    if path.is_dir():
        file = path / (GEMMA_SCOPE if (path / GEMMA_SCOPE).is_file() else GEMMA_SCOPE_2)
    weights = _read_npz(file) if file.suffix == ".npz" else read_safetensors(file)[0]
    weights = {_GEMMA.get(name, name): tensor for name, tensor in weights.items()}
    places = _places(file)
    beside = file.parent / "config.json"
    config = read_json(beside) if file.suffix != ".npz" and beside.is_file() else {}
    _refuse_many_layers(weights, config, path)
    hook_in, hook_out, told_by = _hooks(file, places, weights, config)
    remarks = recorded_processing(config, beside)
    if file.suffix != ".npz" and not config:
        remarks.append("without the config.json that belongs to it")
    if str(places.get("site")).startswith("embedding"):
        if {"W_enc", "W_dec", "b_dec"} <= weights.keys():
            scale = weights["b_dec"].numel() ** 0.5
            weights["W_enc"], weights["W_dec"] = weights["W_enc"] / scale, weights["W_dec"] * scale
        remarks.append("an embedding SAE, rescaled to embeddings that are multiplied by sqrt(d_in)")
    return imported(
        path,
        weights | vector(weights, "threshold", "b_enc"),
        Convention("jumprelu", subtract_b_dec=False, transcoder=bool(told_by), skip=bool(told_by) and SKIP in weights),
        source={
            "format": "gemma_scope",
            "library": "Gemma Scope" if file.suffix == ".npz" else "Gemma Scope 2",
            "model": config.get("model_name") or places.get("model"),
            "hookpoint": hook_in,
            "hookpoint_out": hook_out,
            "width": places.get("width"),
            "l0": config.get("l0") or places.get("l0"),
        },
        remarks=remarks,
        facts=fixed("format gemma_scope", "library", "forward pass", "normalisation", "scale", "b_dec")
        | fixed(FOLDER_NAME, "model", "hook point", "output hook point")
        | ({"forward pass": ("", told_by)} if told_by else {})
        | ({"recorded L0": (places["l0"], FOLDER_NAME)} if places.get("l0") else {})
        | stated(
            config,
            "config.json",
            {"model": "model_name", "hook point": "hf_hook_point_in", "output hook point": "hf_hook_point_out"},
        ),
        weights=file,
        # In this release "l0" is what training aimed at.
        settings=recorded({"target_l0" if name == "l0" else name: value for name, value in config.items()}),
    )


def _hooks(
    file: Path, places: Mapping[str, str], weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[str | None, str | None, str]:
    """(input hook point, output hook point, what says that it is a transcoder): the last two None and "" for an SAE."""
    where = file.parent / "config.json"
    inside, outside = text(config, "hf_hook_point_in", where), text(config, "hf_hook_point_out", where)
    first_release = file.suffix == ".npz"
    told_by = ""
    if inside and outside and inside != outside:
        told_by = "config.json: hf_hook_point_out"
    elif flag(config, "affine_connection", where):
        told_by = "config.json: affine_connection"
    elif SKIP in weights:
        told_by = f"{file.name}: affine_skip_connection"
    elif not config and (
        (not first_release and any(map(_TRANSCODER_FOLDER.fullmatch, as_given(file).parts[-3:-1])))
        or places.get("model", "").endswith("-transcoders")
    ):
        told_by = FOLDER_NAME
    if not told_by:
        return inside or places.get("site"), None, ""
    layer = re.search(r"layer_(\d+)", places.get("site") or as_given(file).parent.name)
    named_in, named_out = (
        hook.format(layer[1]) if layer else None for hook in (_GEMMA_HOOKS if first_release else _GEMMA_2_HOOKS)
    )
    return inside or named_in, outside or named_out, told_by


def _refuse_many_layers(weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    inside = config.get("hf_hook_point_in")
    if isinstance(inside, list) or ("W_enc" in weights and weights["W_enc"].ndim == 3):
        raise ValueError(
            f"{path} is a crosscoder: it reads several sites at once and has a decoder for each, so a feature has no one "
            "direction. Import SAEs or transcoders of single layers"
        )
    if "W_dec" in weights and weights["W_dec"].ndim == 3:
        raise ValueError(
            f"{path} is a cross-layer transcoder (W_dec has the shape {tuple(weights['W_dec'].shape)}): a feature has a decoder "
            "for every layer above it, so it has no one direction. Import transcoders of single layers"
        )
    if (architecture := config.get("architecture", "jump_relu")) not in ("jump_relu", "jumprelu"):
        raise ValueError(f"{path} has architecture = {shown(architecture)} in config.json, expected jump_relu")


def _places(file: Path) -> dict[str, str]:
    """What the names of the release's own folders say, {} in other folders: `<model>/<site>/width_<width>/average_l0_<l0>`.

    Only names that stand in this order directly above the file count, so that no other folder's name is taken for one of them.
    """
    match = _RELEASE.search(as_given(file).parent.as_posix())
    return {name: value for name, value in match.groupdict().items() if value} if match else {}


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        require_file(file)
        with zipfile.ZipFile(file) as archive:
            require_honest(archive, file)
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as weights:
            return {name: torch.from_numpy(weights[name]) for name in weights.files}
    except FileNotFoundError:
        raise ValueError(f"found no file {file}, expected the SAE's weights") from None
    except Exception as error:  # NumPy and zipfile fail in many ways on damaged archives
        raise ValueError(
            f"{file} is not a complete .npz file of numbers ({str(error)[:200]}); download it again"
        ) from None


def is_openai(value: Any) -> bool:
    """Whether a `torch.save` file's content looks like OpenAI's state dict."""
    return isinstance(value, Mapping) and {"pre_bias", "latent_bias"} <= value.keys()


def read_openai(path: Path) -> Imported:
    """The SAE in a state dict of OpenAI; TopK models normalise every token and undo it, ReLU models (and files
    that name no activation) do not.

    Raises ValueError for activations other than these two.
    """
    value = unpickle.read(path)
    if not is_openai(value):
        content = (
            sorted(map(str, value)) if isinstance(value, Mapping) else unpickle.named(value) or type(value).__name__
        )
        raise ValueError(
            f"{path} holds {content}, expected pre_bias, latent_bias, encoder.weight, decoder.weight, activation"
        )
    # As the library's `from_state_dict` reads it: without an activation it is ReLU, and TopK normalises its input.
    activation, state = value.get("activation", "ReLU"), subsettings(value, "activation_state_dict", path)
    if activation not in ("TopK", "ReLU"):
        raise ValueError(f"{path} has activation = {shown(activation)}, expected 'TopK' or 'ReLU'")
    remarks = []
    if activation == "TopK":
        if (after := state.get("postact_fn", "ReLU")) not in ("ReLU", "Identity"):
            raise ValueError(f"{path} applies {shown(after)} after its top-k, expected 'ReLU' or 'Identity'")
        if after == "Identity":
            remarks.append(
                "top-k without a ReLU after it: activations below zero, where fewer than k are positive, count as zero"
            )
        convention = Convention(
            "topk", k=count(state.get("k"), "activation_state_dict.k", path), normalize="layer_norm"
        )
    else:
        convention = Convention("relu")
    weights = {_OPENAI.get(name, name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    weights |= transposed(weights, "W_enc", "W_dec")  # Linear weights are (out, in)
    if "decoder.weight" not in value:  # the library's tied decoder: the encoder's weights, without its own
        weights |= {"W_dec": weights["W_enc"].T} if transposed(weights, "W_enc") else {}
        remarks.append("the decoder is tied to the encoder")
    source = {"format": "openai", "library": "openai/sparse_autoencoder", "architecture": activation}
    facts = fixed("format openai", "library", "normalisation", "scale", "b_dec")
    facts |= {"forward pass": ("", f"{path.name}: activation")}
    facts |= {"k or l1": ("", f"{path.name}: activation_state_dict.k")} if convention.k else {}
    return imported(path, weights, convention, source=source, remarks=remarks, facts=facts)
