"""Damaged checkpoints of every format are refused in words, or read as the files now say; a study is never half changed."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.sae import load
from seedscope.engine.store.catalogue import EnsemblePlan
from seedscope.engine.studies.import_ensemble import as_sae, enrol
from support.importer_checks import CHECKPOINTS
from support.mutations import copied, mutate, snapshot
from support.own_forward import FORWARD, Forward

D_IN, D_SAE = 8, 24
AGREES = 2e-5  # of the largest value
LONGEST = 10.0  # seconds that one file may take
MANY, FEW = 300, 12  # damaged copies per format


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


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(24, D_IN)).astype(np.float32) * 2 + 0.3


def computed(folder: Path, entry_folder: str, seed: int, x: np.ndarray) -> Forward:
    """Activations and reconstructions of the member that a study now holds."""
    member = load(folder / entry_folder, (seed,))
    with torch.no_grad():
        codes = member.encode(torch.from_numpy(x))
        dense = torch.zeros(len(x), member.d_sae).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0])
        return dense.numpy(), member.decode(codes)[:, 0].numpy()


def expected(format: str, path: Path, whole: Path, x: np.ndarray) -> Forward:
    """What the library computes with the damaged files; with the whole ones where it cannot read them at all.

    That is so where the damage is to what an archive of PyTorch holds beside its tensors.
    """
    for of in (path, whole):
        try:
            return FORWARD[format](of, x.astype(np.float64))
        except (ValueError, RuntimeError, KeyError, OSError, EOFError):
            continue
        except Exception as error:
            if "Unpickl" not in type(error).__name__:
                raise
    member = as_sae(replace(read(whole), seed=0))
    with torch.no_grad():
        codes = member.encode(torch.from_numpy(x))
        dense = torch.zeros(len(x), member.d_sae).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0])
        return dense.numpy(), member.decode(codes)[:, 0].numpy()


def compare(format: str, entry: EnsemblePlan, paths: tuple[Path, Path], study: Path, x: np.ndarray, what: str) -> None:
    """What the study holds computes what the files say."""
    d_in = load(study / entry.folder, (1,)).d_in
    if d_in != D_IN:  # its biases were swapped, which nothing contradicts
        assert any("is transposed" in remark for remark in entry.members[0].remarks), what
        x = np.random.default_rng(5).normal(size=(24, d_in)).astype(np.float32)
    for ours, theirs in zip(computed(study, entry.folder, 1, x), expected(format, *paths, x), strict=True):
        assert ours.shape == theirs.shape, what
        difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
        assert difference <= AGREES, f"{what}: {difference:.1e}: {entry.members[0].remarks}"


def check(format: str, number: int, x: np.ndarray, tmp_path: Path) -> Counter[str]:
    root, kept = tmp_path / "root", tmp_path / "kept"
    enrol(root, "study", "first", [CHECKPOINTS / "saelens" / "topk"], seeds=[0])
    shutil.copytree(root, kept)
    before, outcomes = snapshot(root), Counter[str]()
    for index in range(number):
        rng = np.random.default_rng([index, *format.encode()])
        write = SPECIMENS[format][index % len(SPECIMENS[format])]
        damaged, whole = tmp_path / f"damaged-{index}", tmp_path / f"whole-{index}"
        damaged.mkdir(), whole.mkdir()
        path, intact = write(damaged), write(whole)
        what = f"{format} {index}, {path.name}: {mutate(damaged, rng)}"
        began = time.monotonic()
        refusal, entry = "", None
        try:
            entry = enrol(root, "study", "second", [path], seeds=[1])
        except ValueError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        if entry is None:
            assert snapshot(root) == before, what
            assert str(tmp_path) in refusal, f"{what}: {refusal}"  # it names the file
            outcomes["refused"] += 1
        else:
            compare(format, entry, (path, intact), root / "study", x, what)
            outcomes["read"] += 1
            shutil.rmtree(root)
            shutil.copytree(kept, root)
        assert time.monotonic() - began < LONGEST, what
        shutil.rmtree(damaged)
        shutil.rmtree(whole)
    return outcomes


@pytest.mark.parametrize("format", SPECIMENS)
def test_a_few_damaged_checkpoints(format, x, tmp_path):
    check(format, FEW, x, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", SPECIMENS)
def test_many_damaged_checkpoints(format, x, tmp_path):
    outcomes = check(format, MANY, x, tmp_path)
    assert outcomes.total() == MANY
    assert outcomes["refused"] > MANY / 4
    assert outcomes["read"] > MANY / 20
