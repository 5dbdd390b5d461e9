"""A checkpoint of every format, as its library writes it or as its publisher's files are, in a folder of the caller's."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.studies.import_ensemble import as_sae
from support.importer_checks import CHECKPOINTS
from support.mutations import copied

D_IN, D_SAE = 8, 24


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    random = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return random | {"threshold": np.abs(rng.normal(size=D_SAE)).astype(np.float32)}


def as_torch(named: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in named.items()}


def linear(suffix: str) -> dict[str, torch.Tensor]:
    t = tensors()
    names = {f"encoder{suffix}.weight": t["W_enc"].T, f"encoder{suffix}.bias": t["b_enc"]}
    return as_torch(names | {f"decoder{suffix}.weight": t["W_dec"].T, f"decoder{suffix}.bias": t["b_dec"]})


def library(*names: str) -> list[Callable[[Path], Path]]:
    """Writers of copies of checkpoints that a library wrote."""

    def writer(name: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            copied(CHECKPOINTS / name, folder / "sae")
            return folder / "sae"

        return write

    return [writer(name) for name in names]


def overcomplete_state(name: str, beside: dict[str, object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        shutil.copy(CHECKPOINTS / "overcomplete" / f"{name}.pt", folder / "sae.pt")
        (folder / "sae.json").write_text(json.dumps(beside))
        return folder / "sae.pt"

    return write


def overcomplete_module(folder: Path) -> Path:
    return Path(shutil.copy(CHECKPOINTS / "overcomplete" / "ra_topk_seed0.pt", folder / "sae.pt"))


def gemma_scope(folder: Path) -> Path:
    np.savez(folder / "params.npz", **tensors())
    return folder


def gemma_scope_2(folder: Path) -> Path:
    named = as_torch({name.replace("W", "w"): array for name, array in tensors().items()})
    save_file(named, folder / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-3",
        "l0": 60,
        "affine_connection": False,
        "width": D_SAE,
    }
    hooks = {"hf_hook_point_in": "model.layers.7.output", "hf_hook_point_out": "model.layers.7.output"}
    (folder / "config.json").write_text(json.dumps(config | hooks))
    return folder


def openai(activation: dict[str, object], *, tied: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        t = tensors()
        named = {"pre_bias": t["b_dec"], "latent_bias": t["b_enc"], "encoder.weight": t["W_enc"].T}
        named |= {} if tied else {"decoder.weight": t["W_dec"].T}
        torch.save(as_torch(named) | activation, folder / "0.pt")
        return folder / "0.pt"

    return write


def batch_topk(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        t = tensors()
        if kind in ("topk", "batchtopk"):
            t["b_enc"] = np.zeros_like(t["b_enc"])
        t["jumprelu.log_threshold"] = np.log(t["threshold"])
        del t["jumprelu.log_threshold" if kind != "jumprelu" else "threshold"]
        if kind != "batchtopk":
            t.pop("threshold", None)
        torch.save(as_torch(t), folder / "sae.pt")
        config = {
            "sae_type": kind,
            "top_k": 3,
            "input_unit_norm": True,
            "seed": 5,
            "act_size": D_IN,
            "dict_size": D_SAE,
        }
        hook = {"hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"}
        (folder / "config.json").write_text(json.dumps(config | hook))
        return folder

    return write


def llama_scope(act: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "checkpoints").mkdir()
        save_file(linear(""), folder / "checkpoints" / "final.safetensors")
        config = {
            "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "act_fn": act,
            "norm_activation": "dataset-wise", "jump_relu_threshold": 0.5, "top_k": 3, "use_glu_encoder": False,
            "dataset_average_activation_norm": {"in": 2.5, "out": 2.5}, "sparsity_include_decoder_norm": True,
            "apply_decoder_bias_to_pre_encoder": True, "d_model": D_IN, "d_sae": D_SAE,
        }  # fmt: skip
        (folder / "hyperparams.json").write_text(json.dumps(config))
        return folder

    return write


def goodfire(folder: Path) -> Path:
    torch.save(linear("_linear"), folder / "l19.pth")
    return folder / "l19.pth"


def bare(folder: Path) -> Path:
    t = {name: array for name, array in tensors().items() if name != "threshold"}
    save_file(as_torch(t), folder / "bare.safetensors")
    settings = {"architecture": "topk", "k": 3, "subtract_b_dec": True, "hookpoint": "blocks.2.hook_resid_post"}
    (folder / "bare.json").write_text(json.dumps(settings))
    return folder / "bare.safetensors"


def own(folder: Path) -> Path:
    member = as_sae(replace(read(CHECKPOINTS / "saelens" / "jumprelu"), seed=0))
    member.save(folder)
    return folder / "seed-0.safetensors"


SPECIMENS: dict[str, list[Callable[[Path], Path]]] = {
    "saelens": library(*(f"saelens/{name}" for name in (
        "topk_rescaled", "gated", "jumprelu", "layer_norm", "constant_norm", "standard_uncentred", "checkpoint_topk",
        "checkpoint_batchtopk", "checkpoint_gated_whitened", "checkpoint_topk_whitened", "trained_matryoshka",
    )), "saelens_3/topk", "saelens_3/finetuned"),
    "sparsify": library("sparsify/topk/layers.3", "sparsify/groupmax/h.1", "sparsify/expansion/layers.3"),
    "dictionary_learning": library(*(f"dictionary_learning/{name}/trainer_0" for name in (
        "standard", "new", "topk", "batchtopk", "jumprelu", "gated", "matryoshka",
    ))),
    "overcomplete": [
        overcomplete_state("state_topk", {"class": "TopKSAE", "top_k": 3, "normalization": "l2"}),
        overcomplete_state("state_jump", {"class": "JumpSAE", "normalization": "l2"}),
        overcomplete_state("state_ra_topk", {"class": "RATopKSAE", "top_k": 3, "delta": 0.4}),
        overcomplete_module,
    ],
    "gemma_scope": [gemma_scope, gemma_scope_2],
    "openai": [
        openai({"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}),
        openai({"activation": "ReLU"}), openai({}, tied=True),
    ],
    "batch_topk": [batch_topk(kind) for kind in ("vanilla", "topk", "batchtopk", "jumprelu")],
    "llama_scope": [llama_scope(act) for act in ("jumprelu", "topk", "relu")],
    "goodfire": [goodfire],
    "safetensors": [bare],
    "seedscope": [own],
}  # fmt: skip
