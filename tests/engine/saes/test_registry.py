"""Names of SAELens' registry, from a stand-in for the sae_lens package with the same public API, and the hub library's cache."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from seedscope.engine.saes.importers import registry
from seedscope.engine.saes.importers.ensemble import read, read_many
from seedscope.engine.store import catalogue
from support.commands import assert_one_line, run, run_alone
from support.importer_checks import as_module

HASH = "1" * 40
# The fields of sae_lens.loading.pretrained_saes_directory.PretrainedSAELookup, version 6.54.
PACKAGE = """
from dataclasses import dataclass
from functools import cache

@dataclass
class PretrainedSAELookup:
    release: str
    repo_id: str
    model: str
    conversion_func: str | None
    saes_map: dict[str, str]
    expected_var_explained: dict[str, float]
    expected_l0: dict[str, float]
    neuronpedia_id: dict[str, str]
    norm_scaling_factor: dict[str, float]
    config_overrides: dict | None

@cache
def get_pretrained_saes_directory():
    def release(name, repo, func, paths, scale=None, overrides=None):
        return PretrainedSAELookup(name, repo, "gpt2-small", func, paths, {}, {}, {}, scale or {}, overrides)
    ids = {f"layer_12/width_16k/average_l0_{n}": f"layer_12/width_16k/average_l0_{n}" for n in (22, 82)}
    centred = {"model_from_pretrained_kwargs": {"center_writing_weights": True}, "dataset_path": "x"}
    return {r.release: r for r in [
        release("gemma-scope-2b-pt-res", "google/gemma-scope-2b-pt-res", "gemma_2", ids),
        release("gpt2-small-res-jb", "jb/res", None, {"blocks.1.hook_resid_pre": "blocks.1.hook_resid_pre"}, None, centred),
        release("heads", "jb/res", None, {"z": "blocks.1.attn.hook_z"}, None,
                {"model_from_pretrained_kwargs": {"fold_value_biases": True}}),
        release("mistral", "jb/res", None, {"a": "blocks.1.hook_resid_pre"}, None,
                {"normalize_activations": "constant_norm_rescale"}),
        release("scaled", "jb/res", None, {"a": "scaled"}, {"a": 3.5}),
        release("odd", "jb/res", None, {"a": "blocks.1.hook_resid_pre"}, None, {"whatever": 3}),
        release("transcoders", "a/b", "mwhanna_transcoder", {"layer_0": "layer_0.safetensors"}),
        release("gemma-scope-2b-pt-transcoders", "google/gemma-scope-2b-pt-transcoders", "gemma_2_transcoder",
                {"layer_4/width_16k/average_l0_88": "layer_4/width_16k/average_l0_88"}),
        release("centred", "jb/res", None, {"t": "transcoder"}, None,
                {"model_from_pretrained_kwargs": {"center_writing_weights": True}}),
        release("attention", "ck/attn", "connor_rob_hook_z", {"blocks.0.hook_z": "L0_Hcat_z.pt"}),
    ]}
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The stand-in on the path, forgotten afterwards."""
    folder = tmp_path / "packages"
    (folder / "sae_lens" / "loading").mkdir(parents=True)
    for name in ("__init__.py", "loading/__init__.py"):
        (folder / "sae_lens" / name).write_text("")
    (folder / "sae_lens" / "loading" / "pretrained_saes_directory.py").write_text(PACKAGE)
    for name in [name for name in sys.modules if name.split(".")[0] == "sae_lens"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "sae_lens"]:
        del sys.modules[name]


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def cache(tmp_path, tensors) -> Path:
    """The hub library's cache with the repositories of the stand-in: snapshots of links into blobs."""
    hub = tmp_path / "hub"

    def put(repository: str, name: str, content: bytes) -> None:
        folder = hub / f"models--{repository.replace('/', '--')}"
        blob, link = folder / "blobs" / name.replace("/", "_"), folder / "snapshots" / HASH / name
        for each in (blob, link, folder / "refs" / "main"):
            each.parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(HASH)
        blob.write_bytes(content)
        link.symlink_to(blob)

    made = tmp_path / "made"
    made.mkdir()
    for n in (22, 82):
        np.savez(made / "params.npz", **tensors, threshold=np.full(20, 0.3, np.float32))
        put(
            "google/gemma-scope-2b-pt-res",
            f"layer_12/width_16k/average_l0_{n}/params.npz",
            (made / "params.npz").read_bytes(),
        )
    put(
        "google/gemma-scope-2b-pt-transcoders",
        "layer_4/width_16k/average_l0_88/params.npz",
        (made / "params.npz").read_bytes(),
    )
    save_file({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, made / "w.safetensors")
    put("jb/res", "transcoder/sae_weights.safetensors", (made / "w.safetensors").read_bytes())
    places = {
        "hook_name": "blocks.1.ln2.hook_normalized",
        "hook_name_out": "blocks.1.hook_mlp_out",
        "model_name": "gpt2-small",
    }
    config = {"architecture": "transcoder", "d_in": 6, "d_out": 6, "d_sae": 20, "apply_b_dec_to_input": False}
    put(
        "jb/res",
        "transcoder/cfg.json",
        json.dumps(config | {"normalize_activations": "none", "metadata": places}).encode(),
    )
    for name, hook, normalize in (
        ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre", "none"), ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z", "none"),
        ("scaled", "blocks.1.hook_resid_pre", "expected_average_only_in"),
    ):  # fmt: skip
        config = {"architecture": "standard", "d_in": 6, "d_sae": 20, "hook_name": hook, "model_name": "gpt2-small",
                  "apply_b_dec_to_input": True, "normalize_activations": normalize, "dtype": "float32"}  # fmt: skip
        put("jb/res", f"{name}/cfg.json", json.dumps(config).encode())
        put("jb/res", f"{name}/sae_weights.safetensors", (made / "w.safetensors").read_bytes())
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, made / "a.pt")
    put("ck/attn", "L0_Hcat_z.pt", (made / "a.pt").read_bytes())
    put(
        "ck/attn",
        "L0_Hcat_z_cfg.json",
        json.dumps({"act_size": 6, "dict_size": 20, "act_name": "blocks.0.attn.hook_z"}).encode(),
    )
    return hub


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def dense(member, x: np.ndarray) -> np.ndarray:
    codes = as_module(member).encode(torch.from_numpy(x))
    return torch.zeros(len(x), member.d_sae).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0]).detach().numpy()


def test_a_name_is_the_files_of_its_repository(package, offline, tensors):
    name = registry.named("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")
    assert name == "saelens:gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    entry = registry.lookup(name)
    assert (entry.hub, entry.layout) == ("hf:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "gemma_2")
    member = read(name)
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    pre = x @ tensors["W_enc"] + tensors["b_enc"]
    np.testing.assert_allclose(dense(member, x), pre * (pre > 0.3), atol=1e-5)
    assert (member.source["model"], member.facts["recorded L0"][0]) == ("gemma-scope-2b-pt-res", "82")
    assert "SAELens' registry: gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82" in member.remarks
    with pytest.raises(ValueError, match=r"L0 22, .*L0 82|has L0"):
        read_many([registry.named(f"gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_{n}") for n in (22, 82)])


def test_what_the_registry_overrides_is_part_of_the_forward_pass(package, offline, tensors):
    x = (np.random.default_rng(0).normal(size=(30, 6)) + 0.5).astype(np.float32)

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"], 0)

    centred = read(registry.named("gpt2-small-res-jb/blocks.1.hook_resid_pre"))
    np.testing.assert_allclose(dense(centred, x), relu(x - x.mean(1, keepdims=True)), atol=1e-5)
    assert not any("does not say how its model was loaded" in remark for remark in centred.remarks)
    assert centred.facts["processing of the model"] == ("center_writing_weights true", "SAELens' registry")
    scaled = read(registry.named("mistral/a"))
    np.testing.assert_allclose(
        dense(scaled, x), relu(x * np.sqrt(6) / np.linalg.norm(x, axis=1, keepdims=True)), atol=1e-4
    )
    odd = read(registry.named("odd/a"))
    np.testing.assert_allclose(dense(odd, x), relu(x), atol=1e-5)
    assert any("whatever = 3" in remark for remark in odd.remarks)
    with pytest.raises(ValueError, match="fold_value_biases"):
        read(registry.named("heads/z"))
    with pytest.raises(
        ValueError, match=r"scale is not in its files.*SAELens' registry has the factor for scaled/a: 3\.5"
    ):
        read(registry.named("scaled/a"))


def test_transcoders_by_their_name_are_read_as_such_and_refused_where_their_output_is_centred(package, offline):
    member = read(registry.named("gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88"))
    assert member.convention.transcoder
    assert member.source["hookpoint_out"].startswith("blocks.4.")
    with pytest.raises(ValueError, match="no convention describes both"):
        read(registry.named("centred/t"))


def test_the_config_beside_a_file_comes_with_it(package, offline):
    member = read(registry.named("attention/blocks.0.hook_z"))
    assert (member.source["format"], member.d_sae) == ("connor_rob", 20)


def test_names_that_are_not_there_are_refused_with_those_that_are(package, tmp_path):
    with pytest.raises(ValueError, match=r"no release 'gemma-scope-2b-pt-ress' .*such as gemma-scope-2b-pt-res"):
        registry.named("gemma-scope-2b-pt-ress/layer_12")
    with pytest.raises(
        ValueError, match=r"has no SAE 'layer_12/width_16k/average_l0_81', such as .*average_l0_82.*it has 2"
    ):
        registry.named("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_81")
    with pytest.raises(ValueError, match=r"layout mwhanna_transcoder: transcoders"):
        registry.named("transcoders/layer_0")
    for path in ("hf:a/b/c", "/nowhere/a", "./gpt2-small-res-jb/x", "one", str(tmp_path)):
        assert registry.named(path) == path


def test_a_folder_that_exists_is_never_taken_for_a_release(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-small-res-jb" / "blocks.1.hook_resid_pre").mkdir(parents=True)
    assert registry.named("gpt2-small-res-jb/blocks.1.hook_resid_pre") == "gpt2-small-res-jb/blocks.1.hook_resid_pre"


@pytest.mark.skipif(registry.find_spec("sae_lens") is not None, reason="the sae_lens package is installed here")
def test_without_the_package_one_error_names_it_and_the_way_round(tmp_path):
    done = run(
        "import", "mine", "e", "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "--root", tmp_path, "--quiet"
    )
    assert_one_line(
        done, "found no file or folder gemma-scope-2b-pt-res/", "pip install sae-lens", "hf:OWNER/REPO/FOLDER"
    )


def test_a_package_that_cannot_be_imported_is_named(package):
    (package / "sae_lens" / "__init__.py").write_text("import a_library_that_is_not_there")
    with pytest.raises(ValueError, match=r"cannot be used .*a_library_that_is_not_there"):
        registry.named("gpt2-small-res-jb/blocks.1.hook_resid_pre")


def test_import_in_a_process_of_its_own_offline(package, cache, tmp_path):
    environment = {
        "PYTHONPATH": str(package),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(cache),
        "HF_HOME": str(tmp_path),
    }
    name = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    done = run_alone("import", "mine", "one", name, "--root", tmp_path / "root", "--quiet", **environment)
    assert done.returncode == 0, done.stderr
    (member,) = catalogue.read(tmp_path / "root" / "mine").ensemble("one").members
    assert member.source.endswith("layer_12/width_16k/average_l0_82")
    done = run_alone("inspect", name, **environment)
    assert done.returncode == 0, done.stderr
    assert "gemma_scope" in done.stdout
