"""Layouts of single code bases and releases, written here by their layout; expected values from plain formulas in NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.importers.recognise import recognise
from support.importer_checks import assert_same

SHAPES = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(4).normal(size=(24, 6)) * 2 + 0.3).astype(np.float32)


def as_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(tensor, np.float32)) for name, tensor in tensors.items()}


def linear(t: dict[str, np.ndarray], suffix: str = "") -> dict[str, torch.Tensor]:
    names = {f"encoder{suffix}.weight": t["W_enc"].T, f"encoder{suffix}.bias": t["b_enc"]}
    return as_torch(names | {f"decoder{suffix}.weight": t["W_dec"].T, f"decoder{suffix}.bias": t["b_dec"]})


@pytest.mark.parametrize("kind", ["vanilla", "topk", "batchtopk"])
@pytest.mark.parametrize("unit_norm", [True, False])
def test_batch_topk(kind, unit_norm, tensors, x, tmp_path):
    t = tensors if kind == "vanilla" else tensors | {"b_enc": np.zeros(20, np.float32)}
    state = as_torch(t) | ({"threshold": torch.tensor(0.7)} if kind == "batchtopk" else {})
    torch.save(state, tmp_path / "sae.pt")
    config = {
        "sae_type": kind,
        "top_k": 3,
        "input_unit_norm": unit_norm,
        "seed": 5,
        "hook_point": "blocks.8.hook_resid_pre",
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_name": "gpt2-small"}))
    mean, std = (x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)) if unit_norm else (0.0, 1.0)
    inside = (x - mean) / (std + 1e-5 * unit_norm)
    acts = np.maximum((inside - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    if kind == "topk":
        np.put_along_axis(acts, np.argsort(-acts, axis=1)[:, 3:], 0, axis=1)
    elif kind == "batchtopk":
        acts = acts * (acts > 0.7)
    (found,) = recognise(tmp_path)
    member = read(tmp_path)
    assert (found.format, member.seed, member.source["hookpoint"]) == ("batch_topk", 5, "blocks.8.hook_resid_pre")
    assert_same(member, {"x": x, "acts": acts, "out": (acts @ t["W_dec"] + t["b_dec"]) * std + mean})


def test_batch_topk_that_cannot_be_evaluated(tensors, tmp_path):
    torch.save(as_torch(tensors), tmp_path / "sae.pt")
    for config, message in (
        ({"sae_type": "batchtopk"}, "holds no threshold"),
        ({"sae_type": "topk", "top_k": 3}, "b_enc that is not zero"),
        ({"sae_type": "jumprelu"}, "sae_type = 'jumprelu', expected vanilla, topk or batchtopk"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


HYPERPARAMS = {
    "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "act_fn": "jumprelu",
    "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise", "jump_relu_threshold": 0.5,
    "dataset_average_activation_norm": {"in": 7.9, "out": 7.9}, "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{}, {"sparsity_include_decoder_norm": False}, {"apply_decoder_bias_to_pre_encoder": True}]
)
def test_llama_scope(changes, tensors, x, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_file(linear(tensors), tmp_path / "checkpoints" / "final.safetensors")
    settings = HYPERPARAMS | changes
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    scale = 6**0.5 / 7.9
    inside = x * scale - tensors["b_dec"] * settings["apply_decoder_bias_to_pre_encoder"]
    pre = inside @ tensors["W_enc"] + tensors["b_enc"]
    norms = np.linalg.norm(tensors["W_dec"], axis=1) if settings["sparsity_include_decoder_norm"] else 1.0
    acts = pre * (pre * norms > 0.5)
    member = read(tmp_path)
    assert [sae.path for sae in recognise(tmp_path)] == [tmp_path]
    assert (member.source["format"], member.source["hookpoint"]) == ("llama_scope", "blocks.15.hook_resid_post")
    assert_same(member, {"x": x, "acts": acts, "out": (acts @ tensors["W_dec"] + tensors["b_dec"]) / scale})
    for name, value in (("act_fn", "topk"), ("norm_activation", "token-wise"), ("use_glu_encoder", True)):
        (tmp_path / "hyperparams.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(ValueError, match=f"has {name} = "):
            read(tmp_path)
    settings |= {"hook_point_out": "blocks.15.hook_mlp_out", "apply_decoder_bias_to_pre_encoder": True}
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="expected false of a transcoder"):
        read(tmp_path)


def relu(t: dict[str, np.ndarray], x: np.ndarray, centre: bool) -> dict[str, np.ndarray]:
    acts = np.maximum((x - t["b_dec"] * centre) @ t["W_enc"] + t["b_enc"], 0)
    return {"x": x, "acts": acts, "out": acts @ t["W_dec"] + t["b_dec"]}


def test_goodfire(tensors, x, tmp_path):
    torch.save(linear(tensors, "_linear"), tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth")
    (found,) = recognise(tmp_path)
    assert (found.format, found.number) == ("goodfire", None)
    assert_same(read(tmp_path), relu(tensors, x, centre=False))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_compiled_and_parallel_modules(prefix, tensors, x, tmp_path):
    state = linear(tensors)
    state["bias"] = state.pop("decoder.bias")
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder", "seed": 1}}))
    assert_same(read(tmp_path), relu(tensors, x, centre=True))


def test_safetensors_in_parts(tensors, x, tmp_path):
    parts = [{"W_enc", "b_enc"}, {"W_dec", "b_dec"}]
    weight_map = {}
    for at, names in enumerate(parts, 1):
        file = f"sae_weights-{at:05d}-of-00002.safetensors"
        save_file({name: tensor for name, tensor in as_torch(tensors).items() if name in names}, tmp_path / file)
        weight_map |= dict.fromkeys(names, file)
    (tmp_path / "sae_weights.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard", "apply_b_dec_to_input": True}))
    assert_same(read(tmp_path), relu(tensors, x, centre=True))
    (tmp_path / "sae_weights-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"found no file .*00002-of-00002"):
        read(tmp_path)


# -- layouts that are not read -------------------------------------------------------------------------------------


def test_an_old_pickle_is_not_called_damaged(tensors, tmp_path):
    torch.save(linear(tensors), tmp_path / "ae.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before PyTorch 1\.6.*save it again: torch\.save") as refusal:
        read(tmp_path)
    assert "Copy it again" not in str(refusal.value)


@pytest.mark.parametrize(
    "inside", [lambda t: {"cfg": {}, "state_dict": t}, lambda t: [({"encoder": t["W_dec"]}, {"l1": 1})]]
)
def test_other_files_are_refused_with_the_names_and_shapes_of_their_tensors(inside, tensors, tmp_path):
    file: Path = tmp_path / "run_0" / "learned.pt"
    file.parent.mkdir()
    torch.save(inside(as_torch(tensors)), file)
    named = r"(state_dict.W_enc \(6, 20\)|encoder \(20, 6\))"
    for path in (tmp_path, file):
        with pytest.raises(ValueError, match=rf"holds no SAE: .*{named}.*W_enc \(d_in, d_sae\)"):
            recognise(path)


def test_a_file_of_that_name_without_that_config_is_told_by_its_content(tensors, x, tmp_path):
    torch.save(linear(tensors, "_linear"), tmp_path / "sae.pt")
    assert_same(read(tmp_path), relu(tensors, x, centre=False))
