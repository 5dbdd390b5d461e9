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


EARLIER = {"activation": "relu", "tied_weights": False, "use_encoder_bias": False}  # bartbussmann/BatchTopK, 3ce6538


OPTIONS = ({}, EARLIER, EARLIER | {"use_encoder_bias": True, "tied_weights": True})
KINDS = [(kind, options) for kind in ("vanilla", "topk", "batchtopk") for options in OPTIONS] + [("jumprelu", {})]


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize(("kind", "earlier"), KINDS)
def test_batch_topk(kind, unit_norm, earlier, tensors, x, tmp_path):
    """As sae.py of the code base computes it, versions b454c16 and 3ce6538."""
    biased = kind in ("vanilla", "jumprelu") or earlier.get("use_encoder_bias")
    t = tensors if biased else tensors | {"b_enc": np.zeros(20, np.float32)}
    state = as_torch(t) | ({"threshold": torch.tensor(0.7)} if kind == "batchtopk" else {})
    logarithms = np.linspace(-2, 1, 20, dtype=np.float32)
    state |= as_torch({"jumprelu.log_threshold": logarithms}) if kind == "jumprelu" else {}
    torch.save(state, tmp_path / "sae.pt")
    config = {
        "sae_type": kind,
        "top_k": 3,
        "input_unit_norm": unit_norm,
        "seed": 5,
        "hook_point": "blocks.8.hook_resid_pre",
    }
    (tmp_path / "config.json").write_text(json.dumps(config | earlier | {"model_name": "gpt2-small"}))
    standardised = unit_norm and not (earlier and kind == "vanilla")
    mean, std = (x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)) if standardised else (0.0, 1.0)
    inside = (x - mean) / (std + 1e-5 * standardised)
    acts = np.maximum((inside - t["b_dec"] * (kind != "jumprelu")) @ t["W_enc"] + t["b_enc"], 0)
    if kind == "topk":
        np.put_along_axis(acts, np.argsort(-acts, axis=1)[:, 3:], 0, axis=1)
    elif kind != "vanilla":
        acts = acts * (acts > (0.7 if kind == "batchtopk" else np.exp(logarithms)))
    decoder = t["W_enc"].T if earlier.get("tied_weights") and kind != "vanilla" else t["W_dec"]
    (found,) = recognise(tmp_path)
    member = read(tmp_path)
    assert (found.format, member.seed, member.source["hookpoint"]) == ("batch_topk", 5, "blocks.8.hook_resid_pre")
    assert_same(member, {"x": x, "acts": acts, "out": (acts @ decoder + t["b_dec"]) * std + mean})
    assert any("adds the standardised input" in remark for remark in member.remarks) == bool(earlier and standardised)


def test_batch_topk_that_cannot_be_evaluated(tensors, tmp_path):
    torch.save(as_torch(tensors), tmp_path / "sae.pt")
    for config, message in (
        ({"sae_type": "batchtopk"}, "holds no threshold"),
        ({"sae_type": "topk", "top_k": 3}, "b_enc that is not zero"),
        ({"sae_type": "jumprelu"}, "lacks threshold"),
        ({"sae_type": "quantile"}, "sae_type = 'quantile', expected vanilla, topk, batchtopk or jumprelu"),
        ({"sae_type": "topk", "top_k": 3, "activation": "abs"}, "activation = 'abs', expected 'relu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


HYPERPARAMS = {
    "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "act_fn": "jumprelu",
    "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise", "jump_relu_threshold": 0.5,
    "dataset_average_activation_norm": {"in": 7.9, "out": 7.9}, "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
}  # fmt: skip


def write_llama_scope(folder: Path, tensors: dict[str, np.ndarray], settings: dict[str, object]) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    save_file(linear(tensors), folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(settings))


def lm_saes(t: dict[str, np.ndarray], settings: dict[str, object], x: np.ndarray) -> dict[str, np.ndarray]:
    """lm_saes' encode and decode; its threshold is found after the scale of the inputs is folded into the weights."""
    norms = settings["dataset_average_activation_norm"]
    wise = settings["norm_activation"] == "dataset-wise"
    scale_in, scale_out = (6**0.5 / norms[end] if wise else 1.0 for end in ("in", "out"))
    inside = x * scale_in - t["b_dec"] * settings["apply_decoder_bias_to_pre_encoder"]
    pre = inside @ t["W_enc"] + t["b_enc"]
    length = np.linalg.norm(t["W_dec"], axis=1) if settings["sparsity_include_decoder_norm"] else np.ones(20)
    scores = np.maximum(pre * length, 0)
    decoder = t["W_dec"]
    if settings["act_fn"] == "topk":
        acts = np.where(scores >= np.sort(scores, axis=1)[:, -3:][:, :1], scores, 0)
        decoder = decoder / length[:, None]
    elif settings["act_fn"] == "relu":
        acts = np.maximum(pre, 0)
    else:
        acts = pre * (scores > settings["jump_relu_threshold"] * scale_out)
    return {"x": x, "acts": acts.astype(np.float32), "out": (acts @ decoder + t["b_dec"]) / scale_out}


@pytest.mark.parametrize(
    "changes", [
        {}, {"sparsity_include_decoder_norm": False}, {"apply_decoder_bias_to_pre_encoder": True},
        {"norm_activation": "inference"}, {"dataset_average_activation_norm": {"in": 2.5, "out": 1.25}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("act", ["jumprelu", "topk", "relu"])
def test_llama_scope(act, changes, tensors, x, tmp_path):
    settings = HYPERPARAMS | changes | {"act_fn": act, "top_k": 3}
    write_llama_scope(tmp_path, tensors, settings)
    member = read(tmp_path)
    assert [sae.path for sae in recognise(tmp_path)] == [tmp_path]
    assert (member.source["format"], member.source["hookpoint"]) == ("llama_scope", "blocks.15.hook_resid_post")
    assert_same(member, lm_saes(tensors, settings, x))
    assert any("SAELens' loader" in remark for remark in member.remarks) == (
        act == "jumprelu" and settings["sparsity_include_decoder_norm"]
    )


def test_llama_scope_says_which_types_its_tensors_had(tensors, tmp_path):
    write_llama_scope(tmp_path, tensors, HYPERPARAMS)
    half = {name: tensor.bfloat16() for name, tensor in linear(tensors).items()}
    save_file(half, tmp_path / "checkpoints" / "final.safetensors")
    assert read(tmp_path).facts["dtype"] == ("bfloat16", "final.safetensors: tensors")


def test_llama_scope_that_is_not_known(tensors, tmp_path):
    for name, value, message in (
        ("act_fn", "batchtopk", "has act_fn = 'batchtopk', expected jumprelu or topk or relu"),
        ("norm_activation", "token-wise", "has norm_activation = 'token-wise', expected dataset-wise or inference"),
        ("use_glu_encoder", True, "has use_glu_encoder = True"),
        ("jump_relu_threshold", None, "has jump_relu_threshold = None, expected a positive number"),
        ("dataset_average_activation_norm", {"in": 7.9}, r"dataset_average_activation_norm.out = None, expected"),
    ):
        write_llama_scope(tmp_path, tensors, HYPERPARAMS | {name: value})
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    settings = HYPERPARAMS | {"hook_point_out": "blocks.15.hook_mlp_out", "apply_decoder_bias_to_pre_encoder": True}
    write_llama_scope(tmp_path, tensors, settings)
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
