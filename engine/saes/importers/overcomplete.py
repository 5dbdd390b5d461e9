"""SAEs of overcomplete (archetypal SAEs, Fel et al. 2025), saved with `torch.save`. Follows overcomplete 0.3.0.

The library has no format of its own. A saved module holds everything that is needed, and is read without running it. A state
dict lacks the module's plain attributes, which a JSON file beside it may supply.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.encoders import linear_encoder
from seedscope.engine.saes.importers.facts import fixed
from seedscope.engine.saes.importers.imported import Imported, count, imported, read_json, seed_of
from seedscope.engine.saes.importers.processing import recorded_processing
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import shown, text

_CLASSES = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "RATopKSAE", "RAJumpSAE")
_REFUSED = {
    "QSAE": "its activations are quantised",
    "MpSAE": "it has no encoder: its codes come from matching pursuit",
    "OMPSAE": "it has no encoder: its codes come from orthogonal matching pursuit",
}
_NEEDED = {
    "SAE": (),
    "TopKSAE": ("top_k",),
    "BatchTopKSAE": ("running_threshold",),
    "JumpSAE": (),
    "RATopKSAE": ("top_k",),
    "RAJumpSAE": (),
}
_EXAMPLES = {"top_k": "8", "running_threshold": "0.25", "delta": "1.0", "normalization": '"l2"'}
MOST_MODULES = 1000
_NORMALIZATIONS = ("l2", "max_l2", "l1", "max_l1", "identity")


@dataclass
class ModuleTensors:
    """A module's tensors under their state dict names, and its plain attributes."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # {submodule: name of its class}, as far as known


def is_state(value: Any) -> bool:
    """Whether a `torch.save` file's content is a module of this library, or looks like a state dict of one."""
    if isinstance(value, Mapping):
        return any(isinstance(name, str) and name.startswith("dictionary.") for name in value)
    return unpickle.named(value).startswith("overcomplete.")


def read(path: Path) -> Imported:
    """The SAE in a module or state dict; its dictionary is fused as `.eval()` does, BatchNorm is folded into the encoder.

    Raises ValueError for classes whose forward pass no convention describes, and for state dicts that lack attributes.
    """
    value = unpickle.read(path)
    if not is_state(value):
        name = unpickle.named(value) or type(value).__name__
        raise ValueError(f"{path} holds a {name}, expected an SAE of overcomplete or its state dict")
    parts = _from_state(value, path) if isinstance(value, Mapping) else _from_module(value)
    if parts.name in _REFUSED:
        raise ValueError(f"{path} is an overcomplete {parts.name}, which cannot be scored: {_REFUSED[parts.name]}")
    if parts.name not in _CLASSES:
        raise ValueError(f"{path} is a {parts.name}, expected one of {', '.join(_CLASSES)} of overcomplete")
    remarks: list[str] = []
    W_dec, points = _dictionary(parts, path, remarks)
    W_enc, b_enc = linear_encoder(parts.tensors, parts.attributes, parts.kinds, W_dec, path)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": torch.zeros(W_dec.shape[1])}
    convention = Convention("relu", subtract_b_dec=False)
    if "TopK" in parts.name and parts.name != "BatchTopKSAE":
        convention = Convention("topk", k=count(parts.attributes["top_k"], "top_k", path), subtract_b_dec=False)
    elif parts.name == "BatchTopKSAE":
        remarks.append("trained with BatchTopK")
        tensors["threshold"] = torch.full((len(W_dec),), _threshold(parts.attributes, path))
        convention = Convention("jumprelu", subtract_b_dec=False, inclusive=True)
    elif "Jump" in parts.name:
        if "thresholds" not in parts.tensors:
            raise ValueError(
                f"{path} lacks thresholds, expected one per feature for {parts.name}; save the module again"
            )
        tensors["threshold"] = parts.tensors["thresholds"].exp()
        convention = Convention("jumprelu", subtract_b_dec=False, inclusive=True)
    remarks += recorded_processing(parts.attributes, path.with_suffix(".json"))
    source = {"format": "overcomplete", "library": "overcomplete", "architecture": parts.name, "archetypes": points}
    where = f"{path.with_suffix('.json').name if isinstance(value, Mapping) else path.name}: "
    facts = fixed("format overcomplete", "library", "normalisation", "scale", "b_dec")
    facts |= {"forward pass": ("", f"{where}class"), "k or l1": ("", f"{where}top_k"), "seed": ("", f"{where}seed")}
    return imported(
        path, tensors, convention, seed=seed_of(parts.attributes.get("seed")), source=source, remarks=remarks,
        facts=facts if convention.k else {name: fact for name, fact in facts.items() if name != "k or l1"},
        settings=recorded(_settings(parts.attributes)),
    )  # fmt: skip


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain attributes of the module and its dictionary, without those of PyTorch's own and without tensors."""
    plain = {name.removeprefix("dictionary."): value for name, value in attributes.items()}
    return {
        name: value
        for name, value in plain.items()
        if "." not in name
        and not name.startswith("_")
        and name not in ("training", "class")
        and not isinstance(value, Tensor)
    }


def _from_module(module: Any) -> ModuleTensors:
    parts = ModuleTensors(type(module).name)
    _walk(module, "", parts, depth=8)
    return parts


def _walk(module: Any, prefix: str, parts: ModuleTensors, depth: int) -> None:
    state = module.__dict__
    parts.kinds[prefix.removesuffix(".")] = type(module).name
    for group in ("_parameters", "_buffers"):
        for name, tensor in (state.get(group) or {}).items():
            if isinstance(tensor, Tensor):
                parts.tensors[prefix + name] = tensor.detach()
    for name, value in state.items():
        if isinstance(value, type) and issubclass(value, unpickle.Stub):
            parts.attributes[prefix + name] = value.name
        elif value is None or isinstance(value, bool | int | float | str | Tensor):
            parts.attributes[prefix + name] = value
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, unpickle.Stub) and depth and len(parts.kinds) < MOST_MODULES:
            _walk(child, f"{prefix}{name}.", parts, depth - 1)


def _from_state(state: Mapping[str, Tensor], path: Path) -> ModuleTensors:
    beside = path.with_suffix(".json")
    settings = read_json(beside) if beside.is_file() else {}
    relaxed = "dictionary.C" in state
    name = text(settings, "class", beside) or ("Q" in state and "QSAE") or ("thresholds" in state and "JumpSAE")
    name = name and name.replace("JumpSAE", "RAJumpSAE" if relaxed and "RA" not in name else "JumpSAE")
    if name in _REFUSED:
        return ModuleTensors(name)
    needed = ["class"] if not name else list(_NEEDED.get(name, ()))
    needed += ["delta"] if relaxed else ["normalization"]
    if missing := [key for key in needed if key not in settings]:
        example = ", ".join(f'"{key}": {_EXAMPLES.get(key, "..")}' for key in ("top_k", *needed) if key != "class")
        raise ValueError(
            f"{path} is a state dict of overcomplete, which does not record {', '.join(missing)}. Save the whole module "
            f'instead (torch.save(model, path)), or write {beside} such as {{"class": "{name or "TopKSAE"}", {example}}}'
        )
    attributes = dict(settings)
    attributes |= {f"dictionary.{key}": settings[key] for key in ("delta", "normalization") if key in settings}
    return ModuleTensors(str(name), dict(state), attributes)


def _threshold(attributes: Mapping[str, Any], path: Path) -> float:
    value = attributes.get("running_threshold")
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{path} is a BatchTopKSAE with running_threshold = {shown(value)}, expected a number: it is set by training, so "
            "save the module after at least one forward pass in training mode"
        )
    return float(value)


def _dictionary(parts: ModuleTensors, path: Path, remarks: list[str]) -> tuple[Tensor, str | None]:
    """Decoder rows as in evaluation mode, and a digest of the archetypes' points, None without any."""
    prefix = "dictionary."
    t = {name.removeprefix(prefix): value for name, value in parts.tensors.items() if name.startswith(prefix)}
    scale = t.get("multiplier", torch.zeros(())).exp()
    if scale.numel() != 1:
        raise ValueError(f"{path}: its dictionary's multiplier has the shape {tuple(scale.shape)}, expected one number")
    scale = scale.reshape(())
    points = None
    if {"C", "W", "Relax"} <= t.keys():
        weights = t["W"].relu()
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-8)
        delta = _delta(parts.attributes.get("dictionary.delta"), path)
        if (
            not t["W"].ndim == t["C"].ndim == 2
            or t["W"].shape[1] != len(t["C"])
            or t["Relax"].shape != (len(t["W"]), t["C"].shape[1])
        ):
            shapes = ", ".join(f"{name} {tuple(t[name].shape)}" for name in ("C", "W", "Relax"))
            raise ValueError(
                f"{path}: its dictionary has {shapes}, expected C (m, d_in), W (d_sae, m), Relax (d_sae, d_in)"
            )
        relax = t["Relax"] * (delta / t["Relax"].norm(dim=-1, keepdim=True)).clamp(max=1)
        fused = (weights @ t["C"] + relax) * scale
        points = hashlib.sha256(t["C"].contiguous().numpy().tobytes()).hexdigest()[:16]
    elif "_weights" in t:
        fused = _normalized(t["_weights"], parts.attributes.get("dictionary.normalization"), path) * scale
    else:
        raise ValueError(f"{path} holds no dictionary that is known: {', '.join(sorted(t)) or 'nothing'} in it")
    stored = parts.attributes.get("dictionary._fused_dictionary")
    if isinstance(stored, Tensor) and not parts.attributes.get("dictionary.training", True):
        if stored.shape == fused.shape and torch.allclose(stored, fused, rtol=1e-4, atol=1e-5, equal_nan=True):
            fused = stored.detach()
        else:
            remarks.append("the module's fused dictionary is out of date with its weights; the weights are used")
    return fused, points


def _delta(value: Any, path: Path) -> float:
    """How far rows may lie from the archetypes' hull."""
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{path} has delta = {shown(value)}, expected a number of at least 0")
    return float(value)


def _normalized(weights: Tensor, function: Any, path: Path) -> Tensor:
    """Rows as the library's function of this name normalizes them."""
    name = str(function).removeprefix("normalize_")
    if name not in _NORMALIZATIONS:
        raise ValueError(f"{path} normalises its dictionary with {name}, expected one of {', '.join(_NORMALIZATIONS)}")
    if weights.ndim != 2 or not weights.is_floating_point():
        raise ValueError(
            f"{path}: its dictionary has the shape {tuple(weights.shape)} and type {weights.dtype}, expected (d_sae, d_in), "
            "floating point"
        )
    if name == "identity":
        return weights
    norms: Tensor = weights.norm(p=2 if name.endswith("l2") else 1, dim=1, keepdim=True)
    return weights / (norms.amax() if name.startswith("max") else norms + 1e-8)
