"""Checkpoints of single code bases, written here by their layout; expected values from plain formulas in NumPy."""

import json

import numpy as np
import pytest
import torch

from seedscope.engine.saes.importers.ensemble import read, read_many
from seedscope.engine.saes.importers.recognise import recognise
from support.golden import topk_codes
from support.importer_checks import as_module, assert_same

CONFIG = {
    "model_name": "pythia-70m-deduped", "hook_point": "blocks.3.hook_resid_post", "d_model": 6, "expansion_factor": 4,
    "k_values": [3, 5], "tied_init": True, "auxk_coeff": 1 / 32, "normalize_decoder": True, "lr": 1e-3, "sparsity": "topk",
    "n_features": 24, "seeds": [42, 256], "device": "cuda",
}  # fmt: skip


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(4).normal(size=(40, 6)) * 2 + 0.3).astype(np.float32)


def tensors_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (6, 24), "b_enc": (24,), "W_dec": (24, 6), "b_dec": (6,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def as_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def write_arm(folder, seed: int, *, k: int = 3, tokens: int = 10**9, config=CONFIG, **more):
    """A milestone checkpoint, with the state of an optimizer that took a step."""
    state = {name: torch.nn.Parameter(tensor) for name, tensor in as_torch(tensors_of(seed)).items()}
    optimizer = torch.optim.Adam(state.values(), lr=1e-3)
    optimizer.zero_grad()
    path = folder / f"seed{seed}_k{k}_tokens{tokens}.pt"
    content = {"model_state_dict": dict(as_torch(tensors_of(seed))), "optimizer_state_dict": optimizer.state_dict()}
    content |= {
        "tokens_seen": tokens + 8_192,
        "step": 30_000,
        "seed": seed,
        "k": k,
        "config": config,
        "history": {"l0": [3.0]},
    }
    torch.save(content | more, path)
    return path


def test_a_checkpoint_with_optimizer_state_is_top_k_of_centred_activations(tmp_path, x):
    path, t = write_arm(tmp_path, 42), tensors_of(42)
    (found,) = recognise(path)
    member = read(path)
    assert (found.format, member.seed) == ("sae_stability", 42)
    assert (member.source["model"], member.source["hookpoint"]) == ("pythia-70m-deduped", "blocks.3.hook_resid_post")
    mean = x.mean(1, keepdims=True)
    acts = topk_codes(x - mean, t["W_enc"], t["b_enc"], t["b_dec"], 3)
    module = as_module(member)
    codes = module.encode(torch.from_numpy(x))
    dense = torch.zeros(len(x), 24).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0]).detach().numpy()
    np.testing.assert_allclose(dense, acts, atol=1e-4)
    np.testing.assert_allclose(
        module.decode(codes)[:, 0].detach().numpy(), acts @ t["W_dec"] + t["b_dec"] + mean, rtol=1e-4, atol=1e-4
    )
    assert any("centred" in remark for remark in member.remarks)
    assert member.facts["k or l1"] == ("k 3", f"{path.name}: k")
    assert member.facts["processing of the model"][0] == "TransformerLens' defaults"


def test_seeds_of_one_k_and_budget_are_members_and_others_are_refused(tmp_path):
    paths = [write_arm(tmp_path, seed) for seed in (42, 256)]
    assert [member.seed for member in read_many(paths)] == [42, 256]
    with pytest.raises(ValueError, match=r"has k 3, .*has k 5"):
        read_many([paths[0], write_arm(tmp_path, 256, k=5)])
    with pytest.raises(ValueError, match=r"has (million )?tokens 1000.*has (million )?tokens 50"):
        read_many([paths[0], write_arm(tmp_path, 256, tokens=50_000_000)])
    renamed = write_arm(tmp_path, 256, tokens=50_000_000).rename(tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"million tokens 1000, .*million tokens 50"):
        read_many([paths[0].rename(tmp_path / "a.pt"), renamed])


def test_runs_of_another_sparsity_and_rolling_checkpoints_are_refused(tmp_path):
    path = write_arm(tmp_path, 42, config=CONFIG | {"sparsity": "l1"})
    with pytest.raises(ValueError, match=r"sparsity = 'l1'.*forward pass of other runs"):
        read(path)
    torch.save({"config": CONFIG, "models": {(3, 42): {}}, "optimizers": {}}, tmp_path / "shared_latest_k3_seeds42.pt")
    with pytest.raises(ValueError, match=r"rolling checkpoint of several SAEs.*\(3, 42\)"):
        read(tmp_path / "shared_latest_k3_seeds42.pt")


def write_attention(folder, act_name: str, *, name: str = "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.80e+00_ds24"):
    torch.save(as_torch(tensors_of(3)), folder / f"{name}.pt")
    config = {
        "act_size": 6,
        "dict_size": 24,
        "act_name": act_name,
        "seed": 49,
        "model_name": "gpt2-small",
        "l1_coeff": 1.8,
        "lr": 1e-3,
    }
    (folder / f"{name}_cfg.json").write_text(json.dumps(config))
    return folder / f"{name}.pt"


def test_an_attention_sae_is_relu_and_its_processed_place_is_left_open(tmp_path, x):
    path, t = write_attention(tmp_path, "blocks.5.attn.hook_z"), tensors_of(3)
    (found,) = recognise(tmp_path)
    member = read(path)
    assert (found.format, member.seed, member.source.get("hookpoint")) == ("connor_rob", 49, None)
    acts = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    assert_same(member, {"x": x, "acts": acts, "out": acts @ t["W_dec"] + t["b_dec"]})
    assert any("blocks.5.attn.hook_z" in remark and "value biases" in remark for remark in member.remarks)
    assert member.facts["k or l1"] == ("l1 1.8", f"{path.stem}_cfg.json: l1_coeff")


def test_an_mlp_sae_of_the_same_code_base_keeps_its_place(tmp_path):
    member = read(write_attention(tmp_path, "blocks.0.mlp.hook_post"))
    assert (member.source["hookpoint"], member.convention.normalize) == ("blocks.0.mlp.hook_post", "none")


def test_a_config_of_other_sizes_is_refused(tmp_path):
    path = write_attention(tmp_path, "blocks.5.attn.hook_z")
    where = path.with_name(f"{path.stem}_cfg.json")
    where.write_text(where.read_text().replace('"dict_size": 24', '"dict_size": 48'))
    with pytest.raises(ValueError, match=r"b_enc has the shape \(24,\), .*says \(48,\)"):
        read(path)


@pytest.mark.parametrize(
    "names", [("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), ("W_enc", "b_enc", "W_dec", "b_dec")]
)
def test_a_layout_whose_forward_pass_is_stated_nowhere_is_refused_with_what_it_holds(tmp_path, names):
    folder = tmp_path / "gpt2" / "topk" / "block6" / "standard" / "seed0"
    folder.mkdir(parents=True)
    tensors = tensors_of(1)
    values = [
        tensors[name].T if names[0] == "encoder.weight" else tensors[name]
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    ]
    torch.save(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in zip(names, values, strict=True)},
        folder / "sae.pt",
    )
    (folder / "config.json").write_text(json.dumps({"k": 64, "variant": "standard", "d_model": 6}))
    with pytest.raises(ValueError, match=r"sae\.pt") as refused:
        read(folder)
    assert all(name in str(refused.value) for name in names)
    assert "k = 64" in str(refused.value)


@pytest.mark.parametrize("bias", ["bias", "decoder.bias"])
def test_tensors_of_a_relu_sae_with_a_config_that_says_otherwise_are_not_read_as_relu(tmp_path, bias):
    t = tensors_of(1)
    state = {
        "encoder.weight": t["W_enc"].T,
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T,
        bias: t["b_dec"],
    }
    torch.save(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}, tmp_path / "sae.pt"
    )
    (tmp_path / "config.json").write_text(json.dumps({"k": 64, "d_model": 6}))
    with pytest.raises(ValueError, match=r"plain ReLU SAE .*k = 64 and no dict_class"):
        read(tmp_path)
