"""SAEs of dictionary_learning (Marks et al.): `trainSAE` writes config.json and ae.pt. Follows dictionary-learning 0.1.0."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.facts import Facts, fixed, stated
from seedscope.engine.saes.importers.imported import Imported, count, imported, read_json, seed_of, transposed, vector
from seedscope.engine.saes.importers.processing import recorded_processing
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import shown, text

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
# {class: {its name of a tensor: the convention's}}; names that are not here are the same.
_NAMES: dict[str, dict[str, str]] = {
    "AutoEncoder": {**_LINEAR, "bias": "b_dec"},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "b_dec"},
    "AutoEncoderTopK": _LINEAR,
    "BatchTopKSAE": _LINEAR,
    "MatryoshkaBatchTopKSAE": {},
    "JumpReluAutoEncoder": {},
    "GatedAutoEncoder": {**_LINEAR, "decoder_bias": "b_dec", "gate_bias": "b_enc", "mag_bias": "b_mag"},
}
_ARCHITECTURES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}
# Settings of a config without a class that say: no plain ReLU.
_SPARSE = frozenset({"k", "top_k", "topk", "activation", "activation_fn", "threshold", "architecture", "sae_type"})
_CENTRED = frozenset(_NAMES) - {"AutoEncoderNew", "JumpReluAutoEncoder"}
# `submodule_name` is free text, in which some scripts write a site and a layer instead of a module's path.
_SITE = re.compile(r"(resid_pre|resid_post|attn_out|mlp_out)_layer_(\d+)")


def is_state(value: Any) -> bool:
    """Whether a `torch.save` file's content looks like one of this library's state dicts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    if "latent_bias" in value or any(name.startswith("dictionary.") for name in value):
        return False
    return {"encoder.weight", "decoder.weight"} <= value.keys() or {"W_enc", "W_dec", "threshold"} <= value.keys()


def read(path: Path) -> Imported:
    """The SAE in a trainer's folder, or in one state dict such as `checkpoints/ae_500.pt` of such a folder.

    Activations are those of the stored weights: the library's own loader rescales AutoEncoder's decoder rows to unit norm.
    Raises ValueError for classes that are not known, and for TopK and BatchTopK files without a config: their tensors
    have the same names.
    """
    file = path / WEIGHTS if path.is_dir() else path
    step = file.parent.name == "checkpoints"
    folder = file.parent.parent if step else file.parent
    state = unpickle.read(file)
    if not is_state(state) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        names = (
            ", ".join(sorted(state)) if isinstance(state, Mapping) else unpickle.named(state) or type(state).__name__
        )
        raise ValueError(f"{file} holds {names}, expected a state dict of dictionary_learning")
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    trainer = config["trainer"] if isinstance(config.get("trainer"), dict) else config
    stated_class = text(trainer, "dict_class", folder / CONFIG)
    name = stated_class or _by_keys(state, file, trainer)
    if (
        stated_class is None
        and (sparse := sorted(_SPARSE & trainer.keys()))
        and name in ("AutoEncoder", "AutoEncoderNew")
    ):
        said = ", ".join(f"{key} = {shown(trainer[key])}" for key in sparse)
        raise ValueError(
            f"{file} has the tensors of a plain ReLU SAE ({', '.join(sorted(state))}), and {folder / CONFIG} says {said} and no "
            'dict_class: which activations count is not known. Write the class into it, such as {"trainer": {"dict_class": '
            '"AutoEncoderTopK"}}, if dictionary_learning wrote the file; or save its tensors with a JSON file that says how it '
            "encodes"
        )
    if name not in _NAMES:
        raise ValueError(f"{folder / CONFIG} has dict_class = {shown(name)}, expected one of {', '.join(_NAMES)}")
    tensors = {_NAMES[name].get(key, key): tensor for key, tensor in state.items()}
    for matrix, linear in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
        if linear in state:  # a Linear's weight is (out, in)
            tensors |= transposed(tensors, matrix)
    remarks = _remarks(name, tensors) + recorded_processing(config, folder / CONFIG)
    if trainer.get("layer") is not None and not trainer.get("submodule_name"):
        remarks.append(f"its {CONFIG} says layer {trainer['layer']}, and not where in it")
    if name != "AutoEncoderTopK" and "b_enc" in tensors:
        tensors |= vector(tensors, "threshold", "b_enc")
    k = count(state.get("k", trainer.get("k")), "k", file) if name == "AutoEncoderTopK" else 0
    return imported(
        path,
        tensors,
        Convention(_ARCHITECTURES[name], k=k, subtract_b_dec=name in _CENTRED),
        seed=seed_of(trainer.get("seed")),
        source={
            "format": "dictionary_learning",
            "library": "dictionary-learning",
            "architecture": name,
            "model": trainer.get("lm_name"),
            "hookpoint": _hookpoint(text(trainer, "submodule_name", folder / CONFIG)),
            "run": folder if step else None,
        },
        weights=file,
        sizes=(trainer.get("activation_dim"), trainer.get("dict_size")),
        remarks=remarks,
        settings=recorded(config) | (_steps(file) if step else {}),
        facts=_facts(config, state, file),
    )


def _facts(config: Mapping[str, Any], state: Mapping[str, Tensor], file: Path) -> Facts:
    within = "trainer." if isinstance(config.get("trainer"), dict) else ""
    facts = fixed("format dictionary_learning", "library", "normalisation", "scale")
    facts |= fixed(f"{file.name}: names of the tensors", "forward pass", "b_dec")
    facts |= stated(config, CONFIG, {"forward pass": f"{within}dict_class", "b_dec": f"{within}dict_class"})
    keys = {"hook point": "submodule_name", "model": "lm_name", "seed": "seed"}
    facts |= stated(config, CONFIG, {fact: within + key for fact, key in keys.items()})
    penalties = ("k", "l1_penalty", "sparsity_penalty")
    facts |= stated(config, CONFIG, {"k or l1": [within + key for key in penalties]})
    return facts | (
        {"k or l1": ("", f"{file.name}: k")} if facts["forward pass"][0] == "AutoEncoderTopK" and "k" in state else {}
    )


def _steps(file: Path) -> dict[str, str]:
    """The number of steps in the name of a checkpoint such as `ae_500.pt`."""
    match = re.search(r"\d+$", file.stem)
    return {"steps of the checkpoint": match[0]} if match else {}


def _hookpoint(submodule: str | None) -> str | None:
    """TransformerLens' name where the text is a site and a layer, else the text."""
    match = _SITE.fullmatch(submodule or "")
    return f"blocks.{match[2]}.hook_{match[1]}" if match else submodule


def _by_keys(state: Mapping[str, Tensor], file: Path, config: Mapping[str, Any]) -> str:
    """The class of a file without config, from the names of its tensors; raises ValueError where several have these names."""
    keys = state.keys()
    if "gate_bias" in keys:
        return "GatedAutoEncoder"
    if "group_sizes" in keys:
        return "MatryoshkaBatchTopKSAE"
    if {"W_enc", "threshold"} <= keys and state["threshold"].ndim == 1:
        return "JumpReluAutoEncoder"
    if "decoder.bias" in keys:
        return "AutoEncoderNew"
    if {"encoder.weight", "bias"} <= keys:
        return "AutoEncoder"
    example = '{"trainer": {"dict_class": "AutoEncoderTopK"}}'
    kinds = "AutoEncoderTopK and BatchTopKSAE have these same tensors" if "k" in keys else "no class has these tensors"
    says = ", ".join(f"{key} = {shown(value)}" for key, value in list(config.items())[:8])
    beside = f" (the one beside it says {says})" if says else ""
    raise ValueError(
        f"{file} holds {', '.join(sorted(keys))} without a {CONFIG} that names its dict_class{beside}: {kinds}. Copy the {CONFIG} "
        f"that the trainer wrote beside it, or write one such as {example}"
    )


def _remarks(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    remarks = []
    if "BatchTopK" in name:
        remarks.append(f"trained with {'Matryoshka ' if 'Matryoshka' in name else ''}BatchTopK")
        threshold = tensors.get("threshold")
        if threshold is not None and threshold.numel() == 1 and threshold.item() < 0:
            remarks.append("its threshold was never set, as training was short: every positive activation passes")
    if name == "AutoEncoder" and "W_dec" in tensors and tensors["W_dec"].ndim == 2:
        norms = tensors["W_dec"].float().norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
            remarks.append(
                "decoder rows are not of unit norm; the library's load_dictionary rescales them, this does not"
            )
    if name == "JumpReluAutoEncoder":
        remarks.append("the library's JumpReLU trainer ignores the seed that it records")
    return remarks
