"""SAEs in every library's layout on disk, one folder or file per seed.

Settings and names of tensors are those of the files in engine/checkpoints, which the libraries wrote themselves; sizes and
tensors are the caller's. Formats without a library follow their publishers' files.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from support.golden import jumprelu_codes, topk_codes
from support.paths import CHECKPOINTS

HOOKPOINT = "blocks.2.hook_resid_post"
LAYER_NORM_EPS = 1e-5

Tensors = Mapping[str, np.ndarray]
Run = Mapping[int, Tensors]  # {seed: W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_in), b_dec}


class Layout(NamedTuple):
    """How a library lays out the seeds of a TopK SAE, and what of it differs."""

    write: Callable[[Path, Run, int], None]
    """write(folder, run, k): everything that the library leaves in a folder of this run."""
    format: str
    library: str | None
    codes: Callable[[np.ndarray, Tensors, int], np.ndarray]
    """Activations (tokens, d_sae) of inputs, by the format's own forward pass in plain NumPy."""
    knows_seeds: bool = True
    """False: neither files nor names say which seeds these are."""
    hookpoint: str | None = None
    """As the files name it."""


# -- libraries -----------------------------------------------------------------------------------------------------


def write_saelens(folder: Path, run: Run, k: int, *, fixture: str = "saelens/topk") -> None:
    """`SAE.save_model` of SAELens: `<folder>/seed_N/{cfg.json, sae_weights.safetensors}`."""
    settings = _settings(CHECKPOINTS / fixture / "cfg.json")
    for seed, tensors in run.items():
        d_in, d_sae = tensors["W_enc"].shape
        top = {"activation_fn_kwargs": {"k": k}} if "activation_fn_kwargs" in settings else {"k": k}
        here = folder / f"seed_{seed}"
        _write_json(here / "cfg.json", settings | {"d_in": d_in, "d_sae": d_sae} | top)
        save_file(_torch(tensors), here / "sae_weights.safetensors")


def write_saelens_3(folder: Path, run: Run, k: int) -> None:
    """SAELens 3: a flat cfg.json in which TopK is an activation function."""
    write_saelens(folder, run, k, fixture="saelens_3/topk")


def write_sparsify(folder: Path, run: Run, k: int) -> None:
    """A run of sparsify with several init_seeds: `<folder>/{config.json, <hookpoint>/seedN/..}`."""
    settings = _settings(CHECKPOINTS / "sparsify/several/layers.3/seed0/cfg.json")
    several = {"hookpoints": ["layers.2"], "init_seeds": list(run)}
    _write_json(folder / "config.json", _settings(CHECKPOINTS / "sparsify/several/config.json") | several)
    for seed, tensors in run.items():
        d_in, d_sae = tensors["W_enc"].shape
        here = folder / "layers.2" / f"seed{seed}"
        _write_json(here / "cfg.json", settings | {"d_in": d_in, "num_latents": d_sae, "k": k})
        names = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
        save_file(_torch(names | {name: tensors[name] for name in ("W_dec", "b_dec")}), here / "sae.safetensors")


def write_dictionary_learning(folder: Path, run: Run, k: int) -> None:
    """`trainSAE` of dictionary_learning with one trainer per seed: `<folder>/trainer_I/{config.json, ae.pt}`."""
    settings = _settings(CHECKPOINTS / "dictionary_learning/topk/trainer_0/config.json")["trainer"]
    for index, (seed, tensors) in enumerate(run.items()):
        d_in, d_sae = tensors["W_enc"].shape
        here = folder / f"trainer_{index}"
        mine = {"seed": seed, "activation_dim": d_in, "dict_size": d_sae, "k": k}
        _write_json(here / "config.json", {"trainer": settings | mine})
        names = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
        names |= {"decoder.weight": tensors["W_dec"].T, "b_dec": tensors["b_dec"]}
        numbers = {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        torch.save(_torch(names) | numbers, here / "ae.pt")


def write_overcomplete(folder: Path, run: Run, k: int) -> None:
    """State dicts of overcomplete's TopKSAE with the attributes that they do not record beside them.

    The library neither subtracts nor adds a decoder bias: what subtracting does to the codes is in the encoder's bias.
    """
    for seed, tensors in run.items():
        bias = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
        block = "encoder.final_block.0"
        names = {f"{block}.weight": tensors["W_enc"].T, f"{block}.bias": bias, "dictionary._weights": tensors["W_dec"]}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(_torch(names) | {"dictionary.multiplier": torch.tensor(0.0)}, folder / f"seed_{seed}.pt")
        beside = {"class": "TopKSAE", "top_k": k, "normalization": "identity"}
        _write_json(folder / f"seed_{seed}.json", beside)


# -- files without a library ---------------------------------------------------------------------------------------


def write_gemma_scope(folder: Path, run: Run, k: int) -> None:
    """Gemma Scope's params.npz: JumpReLU that does not subtract b_dec; nothing says the seed."""
    for index, tensors in enumerate(run.values()):
        here = folder / f"run_{'abcdefgh'[index]}"
        here.mkdir(parents=True, exist_ok=True)
        np.savez(here / "params.npz", **tensors, threshold=thresholds(tensors))


def thresholds(tensors: Tensors) -> np.ndarray:
    """(d_sae,) thresholds that some activations reach and others do not."""
    return np.linspace(0.5, 4, len(tensors["b_enc"]), dtype=np.float32)


def write_openai(folder: Path, run: Run, k: int) -> None:
    """OpenAI's state dict; its TopK models standardise every token first."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, tensors in run.items():
        names = {"pre_bias": tensors["b_dec"], "latent_bias": tensors["b_enc"]}
        names |= {"encoder.weight": tensors["W_enc"].T, "decoder.weight": tensors["W_dec"].T}
        state = {"activation": "TopK", "activation_state_dict": {"k": k, "postact_fn": "ReLU"}}
        never = {"stats_last_nonzero": torch.zeros(len(tensors["b_enc"]), dtype=torch.int64)}
        torch.save(_torch(names) | never | state, folder / f"seed{seed}.pt")


def write_bare(folder: Path, run: Run, k: int) -> None:
    """Bare safetensors files with a JSON file of settings beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, tensors in run.items():
        save_file(_torch(tensors), folder / f"sae_seed{seed}.safetensors")
        settings = {"architecture": "topk", "k": k, "subtract_b_dec": True, "hookpoint": HOOKPOINT}
        _write_json(folder / f"sae_seed{seed}.json", settings)


# -- their forward passes ------------------------------------------------------------------------------------------


def _centred_topk(x: np.ndarray, t: Tensors, k: int) -> np.ndarray:
    return topk_codes(x, t["W_enc"], t["b_enc"], t["b_dec"], k)


def _standardised_topk(x: np.ndarray, t: Tensors, k: int) -> np.ndarray:
    inside = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + LAYER_NORM_EPS)
    return _centred_topk(inside, t, k)


def _jumprelu(x: np.ndarray, t: Tensors, k: int) -> np.ndarray:
    return jumprelu_codes(x @ t["W_enc"] + t["b_enc"], thresholds(t), inclusive=False)


LAYOUTS: dict[str, Layout] = {
    "saelens": Layout(write_saelens, "saelens", "sae-lens 6.54.12", _centred_topk, hookpoint=HOOKPOINT),
    "saelens-3": Layout(write_saelens_3, "saelens", "sae-lens 3.23.4", _centred_topk, hookpoint=HOOKPOINT),
    "sparsify": Layout(write_sparsify, "sparsify", "eai-sparsify", _centred_topk, hookpoint="layers.2"),
    "dictionary-learning": Layout(
        write_dictionary_learning, "dictionary_learning", "dictionary-learning", _centred_topk, hookpoint=HOOKPOINT
    ),
    "overcomplete": Layout(write_overcomplete, "overcomplete", "overcomplete", _centred_topk),
    "gemma-scope": Layout(write_gemma_scope, "gemma_scope", "Gemma Scope", _jumprelu, knows_seeds=False),
    "openai": Layout(write_openai, "openai", "openai/sparse_autoencoder", _standardised_topk),
    "safetensors": Layout(write_bare, "safetensors", None, _centred_topk, hookpoint=HOOKPOINT),
}  # fmt: skip


def _settings(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _torch(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(tensor, np.float32)) for name, tensor in tensors.items()}
