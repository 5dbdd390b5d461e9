"""Transcoders of every format: forward passes against the libraries' own outputs, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.folding import fold
from seedscope.engine.saes.importers.ensemble import read, read_many
from seedscope.engine.saes.importers.facts import TRANSCODER_NAMES
from seedscope.engine.saes.importers.inspect import inspect
from seedscope.engine.saes.saelens import refusal
from support.importer_checks import as_module, assert_same, goldens
from support.layouts import thresholds
from support.paths import CHECKPOINTS

GOLDENS = goldens("transcoders")
FOLDER = CHECKPOINTS / "transcoders"
D_IN, D_OUT, D_SAE = 6, 5, 20


def edited(path: Path, **settings: object) -> None:
    """A JSON file with other settings; those that are None are left out."""
    kept = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}))


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_OUT), "b_dec": (D_OUT,)}
    rng = np.random.default_rng(3)
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"threshold": thresholds(made), "W_skip": rng.normal(size=(D_IN, D_OUT)).astype(np.float32)}


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(4).normal(size=(24, D_IN)) * 2 + 0.3).astype(np.float32)


def predicted(t: dict[str, np.ndarray], x: np.ndarray, *, skip: bool) -> dict[str, np.ndarray]:
    """JumpReLU of x, and what a transcoder predicts from it."""
    pre = x @ t["W_enc"] + t["b_enc"]
    acts = np.where(pre > t["threshold"], np.maximum(pre, 0), 0)
    return {"x": x, "acts": acts, "out": acts @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"] if skip else 0)}


def gemma(t: dict[str, np.ndarray], *, skip: bool) -> dict[str, torch.Tensor]:
    """The second release's names of the tensors."""
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "W_skip": "affine_skip_connection"}
    kept = {names.get(name, name): torch.from_numpy(tensor.copy()) for name, tensor in t.items()}
    return kept if skip else {name: tensor for name, tensor in kept.items() if "skip" not in name}


@pytest.mark.parametrize("name", sorted(GOLDENS))
def test_forward_passes_are_the_librarys(name):
    member = read(FOLDER / name)
    assert_same(member, GOLDENS[name])
    c = member.convention
    assert (c.transcoder, c.subtract_b_dec, c.skip) == (True, False, "skip" in name or "layer_norm" in name)
    assert (member.d_in, member.d_out, member.d_sae) == (8, 8 if "sparsify" in name else 6, 24)
    hooks = ("layers.3.mlp.input", "layers.3.mlp")
    if "saelens" in name:
        hooks = ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    assert (member.source["hookpoint"], member.source["hookpoint_out"]) == hooks
    assert tuple(member.facts) == TRANSCODER_NAMES
    assert member.facts["output hook point"][0] == hooks[1]
    assert "transcoder" in member.facts["forward pass"][0]
    assert member.facts["d_out"][0] == str(member.d_out)


def test_members_of_an_ensemble_encode_together_and_each_alone(tmp_path):
    members = [as_module(read(FOLDER / "saelens" / "jumprelu_skip_transcoder")) for _ in range(2)]
    tensors = {
        name: torch.cat([getattr(one, name).detach() * (1 + 0.5 * i) for i, one in enumerate(members)])
        for name in members[0].convention.tensors
    }
    together = sae.assemble(tensors, members[0].convention, (0, 1))
    x = torch.from_numpy(GOLDENS["saelens/jumprelu_skip_transcoder"]["x"])
    both = together(x)
    for i in range(2):
        torch.testing.assert_close(together.only(i)(x)[:, 0], both[:, i])
        own_rows = together(torch.stack([x, x], 1))
        torch.testing.assert_close(own_rows, both)
    without = together.decode(together.encode(x), bias=False)
    torch.testing.assert_close(both - without, together.b_dec + torch.einsum("ti,mio->tmo", x, together.W_skip))
    together.save(tmp_path)
    loaded = sae.load(tmp_path, (0, 1))
    assert [loaded.digest(0), loaded.digest(1)] == [together.digest(0), together.digest(1)]
    assert loaded.convention == together.convention
    read_again = read(tmp_path / "seed-1.safetensors")
    assert (read_again.convention, read_again.d_in, read_again.d_out) == (together.convention, 8, 6)
    plain = sae.SAE(
        together.W_enc, together.b_enc, together.W_enc.transpose(1, 2), torch.zeros(2, 8), seeds=(0, 1), k=3
    )
    assert "transcoder" not in plain.convention.as_json()


def test_what_an_sae_and_a_transcoder_cannot_have():
    with pytest.raises(ValueError, match="b_dec of a transcoder belongs to what it predicts"):
        Convention("relu", transcoder=True)
    with pytest.raises(ValueError, match="expected it of transcoders alone"):
        Convention("relu", skip=True)
    parts = torch.zeros(1, 6, 8), torch.zeros(1, 8), torch.zeros(1, 8, 5), torch.zeros(1, 5)
    with pytest.raises(ValueError, match="reads 6 numbers and gives 5"):
        sae.SAE(*parts, convention=Convention("relu"), seeds=(0,))
    module = sae.SAE(*parts, convention=Convention("relu", transcoder=True, subtract_b_dec=False), seeds=(0,))
    assert (module.d_in, module.d_out) == (6, 5)
    with pytest.raises(ValueError, match="transcoder"):
        fold(module)
    assert "transcoder" in (refusal(module.convention) or "")


# -- flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag",
    [
        {"sae": {"architecture": "transcoder"}, "hook_name_out": "blocks.1.hook_mlp_out"},
        {"is_transcoder": True, "out_hook_point": "blocks.1.hook_mlp_out"},
        {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"},
    ],
    ids=str,
)
def test_a_saelens_flag_in_the_runs_config_alone_is_read(flag, tmp_path):
    folder = tmp_path / "run" / "one"
    shutil.copytree(CHECKPOINTS / "saelens" / "standard_uncentred", folder)
    assert not read(folder).convention.transcoder
    (folder / "runner_cfg.json").write_text(json.dumps(flag))
    member = read(folder)
    assert member.convention.transcoder
    assert member.source["hookpoint_out"] == "blocks.1.hook_mlp_out"
    assert member.facts["forward pass"][1].startswith("runner_cfg.json: ")
    (folder / "runner_cfg.json").write_text(json.dumps({"is_transcoder": False, "out_hook_point": "blocks.1.mlp"}))
    assert not read(folder).convention.transcoder


def test_an_output_hook_point_that_no_file_records_is_not_stated(tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(FOLDER / "saelens" / "transcoder", folder)
    edited(folder / "cfg.json", metadata={"hook_name": "blocks.1.hook_resid_mid", "sae_lens_version": "6.54.12"})
    member = read(folder)
    assert (member.convention.transcoder, member.source.get("hookpoint_out")) == (True, None)
    assert member.facts["output hook point"] == ("not stated", "")


def test_members_with_other_output_hook_points_are_refused(tmp_path):
    for seed, site in enumerate(("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")):
        shutil.copytree(FOLDER / "saelens" / "transcoder", tmp_path / f"seed{seed}")
        edited(
            tmp_path / f"seed{seed}" / "cfg.json",
            metadata={"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": site, "sae_lens_version": "6.54.12"},
        )
    with pytest.raises(ValueError, match=r"has hookpoint_out blocks\.1.*has hookpoint_out blocks\.2"):
        read_many([tmp_path])
    shutil.copytree(CHECKPOINTS / "saelens" / "standard_uncentred", tmp_path / "sae")
    with pytest.raises(ValueError, match=r"d_out|transcoder"):
        read_many([tmp_path / "seed0", tmp_path / "sae"])


def test_inspect_shows_both_hook_points(tmp_path):
    (one,) = inspect(FOLDER / "saelens" / "skip_transcoder")
    assert one.facts["hook point"] == ("blocks.1.ln2.hook_normalized", "cfg.json: metadata.hook_name")
    assert one.facts["output hook point"] == ("blocks.1.hook_mlp_out", "cfg.json: metadata.hook_name_out")
    assert one.facts["forward pass"] == ("relu transcoder with a skip connection", "cfg.json: architecture")
    (given,) = inspect(FOLDER / "saelens" / "skip_transcoder", hookpoint_out="blocks.1.mlp")
    assert given.facts["output hook point"] == ("blocks.1.mlp", "you")


# -- releases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("config", [True, False])
def test_gemma_scope_2(tensors, x, skip, config, tmp_path):
    folder = tmp_path / "transcoder_all" / f"layer_7_width_16k_l0_small{'_affine' * skip}"
    folder.mkdir(parents=True)
    save_file(gemma(tensors, skip=skip), folder / "params.safetensors")
    hooks = ("model.layers.7.pre_feedforward_layernorm.output", "model.layers.7.post_feedforward_layernorm.output")
    if config:
        settings = {"architecture": "jump_relu", "affine_connection": skip, "model_name": "gemma-3-1b-pt"}
        settings |= {"hf_hook_point_in": hooks[0], "hf_hook_point_out": hooks[1]}
        (folder / "config.json").write_text(json.dumps(settings))
    member = read(folder)
    assert_same(member, predicted(tensors, x, skip=skip))
    assert (member.source["hookpoint"], member.source["hookpoint_out"]) == hooks
    assert (member.d_in, member.d_out) == (D_IN, D_OUT)


def test_gemma_scope_transcoders_are_told_by_the_repositorys_name(tensors, x, tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_5" / "width_16k" / "average_l0_5"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor for name, tensor in tensors.items() if name != "W_skip"})
    member = read(folder)
    assert_same(member, predicted(tensors, x, skip=False))
    hooks = ("blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out")
    assert (member.source["hookpoint"], member.source["hookpoint_out"]) == hooks


def test_llama_scope(tensors, x, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
    rng = np.random.default_rng(5)
    t = tensors | {"W_dec": rng.normal(size=(D_SAE, D_IN)), "b_dec": rng.normal(size=D_IN)}
    stored = {name: torch.from_numpy(np.ascontiguousarray(t[ours].T, np.float32)) for name, ours in names.items()}
    save_file(stored, tmp_path / "checkpoints" / "final.safetensors")
    settings = {
        "hook_point_in": "blocks.3.hook_resid_mid", "hook_point_out": "blocks.3.hook_mlp_out", "act_fn": "jumprelu",
        "norm_activation": "dataset-wise", "jump_relu_threshold": 0.5, "sparsity_include_decoder_norm": True,
        "dataset_average_activation_norm": {"in": 7.9, "out": 3.1},
    }  # fmt: skip
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    pre = x * (D_IN**0.5 / 7.9) @ t["W_enc"] + t["b_enc"]
    acts = pre * (pre * np.linalg.norm(t["W_dec"], axis=1) > 0.5 * D_IN**0.5 / 3.1)  # of activations without the scale
    out = (acts @ t["W_dec"] + t["b_dec"]) / (D_IN**0.5 / 3.1)
    member = read(tmp_path)
    assert_same(member, {"x": x, "acts": acts, "out": out})
    assert (member.source["hookpoint"], member.source["hookpoint_out"]) == (
        "blocks.3.hook_resid_mid", "blocks.3.hook_mlp_out",
    )  # fmt: skip


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("w_dec", (D_SAE, 3, D_OUT), "is a cross-layer transcoder.*no one direction"),
        ("w_enc", (3, D_IN, D_SAE), "is a crosscoder: it reads several sites"),
    ],
)
def test_what_has_no_one_output_direction_is_refused(tensors, name, shape, said, tmp_path):
    stored = gemma(tensors, skip=False) | {name: torch.ones(shape)}
    save_file(stored, tmp_path / "params.safetensors")
    with pytest.raises(ValueError, match=said) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_no_transcoder_of_saelens_has_is_refused(tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(FOLDER / "saelens" / "transcoder", folder)
    edited(folder / "cfg.json", apply_b_dec_to_input=True)
    with pytest.raises(ValueError, match="apply_b_dec_to_input = true, expected false of a transcoder"):
        read(folder)
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    centred = metadata | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    edited(folder / "cfg.json", apply_b_dec_to_input=False, metadata=centred)
    with pytest.raises(ValueError, match="center_writing_weights"):
        read(folder)
