"""Importers of formats without a library: files written here by their layout, expected values from plain formulas."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers.ensemble import read, read_many
from seedscope.engine.saes.importers.recognise import recognise
from support.importer_checks import assert_same

RNG_SHAPES = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,), "threshold": (20,)}


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    held = {name: rng.normal(size=shape).astype(np.float32) for name, shape in RNG_SHAPES.items()}
    return held | {"threshold": np.abs(held["threshold"])}


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(4).normal(size=(24, 6)) * 2 + 0.3).astype(np.float32)


def jumprelu(t: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    pre = x @ t["W_enc"] + t["b_enc"]
    acts = np.where(pre > t["threshold"], np.maximum(pre, 0), 0)
    return {"x": x, "acts": acts, "out": acts @ t["W_dec"] + t["b_dec"]}


@pytest.mark.parametrize("rename", [False, True])
def test_gemma_scope(tensors, x, rename, tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name.replace("W", "w") if rename else name: t for name, t in tensors.items()})
    (found,) = recognise(tmp_path)
    member = read(folder)
    assert (found.format, found.number, member.seed) == ("gemma_scope", None, None)
    assert_same(member, jumprelu(tensors, x))
    expected = {"model": "gemma-scope-2b-pt-res", "hookpoint": "layer_12", "width": "16k", "l0": "82"}
    assert expected.items() <= member.source.items()


def test_gemma_scope_embedding_saes_are_rescaled(tensors, x, tmp_path):
    folder = tmp_path / "embedding" / "width_4k" / "average_l0_6"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **tensors)
    scaled = tensors | {"W_enc": tensors["W_enc"] / 6**0.5, "W_dec": tensors["W_dec"] * 6**0.5}
    assert_same(read(folder), jumprelu(scaled, x))


def test_gemma_scope_2(tensors, x, tmp_path):
    held = {name.replace("W", "w"): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    save_file(held, tmp_path / "params.safetensors")
    member = read(tmp_path)
    assert_same(member, jumprelu(tensors, x))
    assert member.remarks == ("without the config.json that belongs to it",)
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "l0": 60}
    hooks = {"hf_hook_point_in": "model.layers.7.output", "hf_hook_point_out": "model.layers.7.output"}
    (tmp_path / "config.json").write_text(json.dumps(config | hooks))
    member = read(tmp_path)
    assert (member.source["model"], member.source["hookpoint"]) == ("google/gemma-3-1b-pt", "model.layers.7.output")
    (tmp_path / "config.json").write_text(
        json.dumps(config | hooks | {"hf_hook_point_out": "model.layers.7.mlp.output"})
    )
    assert read(tmp_path).convention.transcoder


@pytest.mark.parametrize("kind", ["no activation", "tied", "TopK without ReLU"])
def test_openai_files_as_the_library_reads_them(tensors, x, kind, tmp_path):
    """Without an activation it is ReLU of the input as it is; a tied decoder has the encoder's rows."""
    state = {"pre_bias": tensors["b_dec"], "latent_bias": tensors["b_enc"], "encoder.weight": tensors["W_enc"].T}
    W_dec, mean, std = tensors["W_dec"], 0.0, 1.0
    if kind == "tied":
        state |= {"decoder.linear.weight": tensors["W_enc"].T}
        W_dec = tensors["W_enc"].T
    else:
        state |= {"decoder.weight": W_dec.T}
    saved = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in state.items()}
    if kind == "TopK without ReLU":
        saved |= {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "Identity"}}
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    elif kind == "tied":
        saved |= {"activation": "ReLU", "activation_state_dict": {}}
    torch.save(saved, tmp_path / "0.pt")
    pre = ((x - mean) / (std + 1e-5 * (kind == "TopK without ReLU")) - tensors["b_dec"]) @ tensors["W_enc"] + tensors[
        "b_enc"
    ]
    acts = np.maximum(pre, 0)
    if kind == "TopK without ReLU":
        np.put_along_axis(acts, np.argsort(-pre, axis=1)[:, 4:], 0, axis=1)
    (found,) = recognise(tmp_path)
    member = read(tmp_path)
    assert found.format == "openai"
    assert_same(member, {"x": x, "acts": acts, "out": (acts @ W_dec + tensors["b_dec"]) * std + mean})
    said = {"no activation": (), "tied": ("the decoder is tied to the encoder",)}.get(kind)
    assert member.remarks == said if said is not None else "without a ReLU" in member.remarks[0]


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai(tensors, x, activation, tmp_path):
    held = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    state = {
        "pre_bias": held["b_dec"],
        "latent_bias": held["b_enc"],
        "encoder.weight": held["W_enc"].T.contiguous(),
        "decoder.weight": held["W_dec"].T,
        "stats_last_nonzero": torch.zeros(20, dtype=torch.int64),
        "activation": activation,
        "activation_state_dict": {"k": 4, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }
    torch.save(state, tmp_path / "8.pt")
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    inside = (x - mean) / (std + 1e-5) if activation == "TopK" else x
    pre = (inside - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    acts = np.maximum(pre, 0)
    if activation == "TopK":
        acts[pre < np.sort(pre, 1)[:, -4:-3]] = 0
    out = acts @ tensors["W_dec"] + tensors["b_dec"]
    out = out * std + mean if activation == "TopK" else out
    member = read(tmp_path)
    assert_same(member, {"x": x, "acts": acts, "out": out})
    assert member.source["format"] == "openai"
    with pytest.raises(ValueError, match="activation = 'Identity', expected 'TopK' or 'ReLU'"):
        read_openai(state | {"activation": "Identity"}, tmp_path)


def read_openai(state, folder):
    torch.save(state, folder / "8.pt")
    return read(folder / "8.pt")


def test_own_files(make_sae, x, tmp_path):
    ensemble = make_sae(members=2, dtype=np.float32)
    ensemble.save(tmp_path, provenance={"model": "pythia-70m"})
    found = recognise(tmp_path)
    assert [(one.format, one.path.name) for one in found] == [
        ("seedscope", "seed-0.safetensors"),
        ("seedscope", "seed-1.safetensors"),
    ]
    members = read_many([tmp_path])
    assert [member.seed for member in members] == [0, 1]
    for i, member in enumerate(members):
        assert member.convention.architecture == "topk"
        assert member.source["model"] == "pythia-70m"
        codes = ensemble.encode(torch.from_numpy(x))
        acts = torch.zeros(len(x), ensemble.d_sae).scatter_(1, codes.indices[:, i], codes.values[:, i]).detach()
        out = ensemble.decode(codes)[:, i].detach()
        assert_same(member, {"x": x, "acts": acts.numpy(), "out": out.numpy()})


@pytest.mark.parametrize("beside", ["sae_3.json", "cfg.json", "metadata"])
def test_bare_files(tensors, x, beside, tmp_path):
    held = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    settings = {"architecture": "jumprelu", "subtract_b_dec": False, "model": "gpt2"}
    metadata = {name: str(value) for name, value in settings.items()} if beside == "metadata" else None
    save_file(held, tmp_path / "sae_3.safetensors", metadata)
    if not metadata:
        with pytest.raises(ValueError, match=r"nothing that says how .*sae_3.safetensors is used.*Write .*sae_3\.json"):
            read(tmp_path)
        (tmp_path / beside).write_text(json.dumps(settings))
    (found,) = recognise(tmp_path)
    assert (found.format, found.number) == ("safetensors", 3)
    member = read(tmp_path)
    assert_same(member, jumprelu(tensors, x))
    assert (member.convention, member.source["model"]) == (Convention("jumprelu", subtract_b_dec=False), "gpt2")


def test_orientation_comes_from_the_biases_and_not_from_the_names(tensors, x, tmp_path):
    turned = {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T}
    held = {name: torch.from_numpy(tensor).contiguous() for name, tensor in (tensors | turned).items()}
    save_file(held, tmp_path / "a.safetensors", {"architecture": "jumprelu", "subtract_b_dec": "false"})
    member = read(tmp_path)
    assert_same(member, jumprelu(tensors, x))
    assert sum("transposed" in remark for remark in member.remarks) == 2


def test_a_bare_file_may_have_the_name_that_sparsify_uses(tensors, x, tmp_path):
    held = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    save_file(held, tmp_path / "sae.safetensors")
    (tmp_path / "sae.json").write_text(json.dumps({"architecture": "jumprelu", "subtract_b_dec": False}))
    for path in (tmp_path, tmp_path / "sae.safetensors"):
        assert_same(read(path), jumprelu(tensors, x))
