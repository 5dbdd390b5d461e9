"""What importers refuse, each with what was found, what was expected and the way out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seedscope.engine.saes.importers.ensemble import read, read_many
from seedscope.engine.saes.importers.recognise import recognise
from support.importer_checks import CHECKPOINTS


def copied(name: str, tmp_path: Path, to: str = "copy", **settings) -> Path:
    """A checkpoint's folder that may be changed, with some settings of its config replaced."""
    folder = tmp_path / to
    shutil.copytree(CHECKPOINTS / name, folder)
    if settings:
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config | settings))
    return folder


def changed(folder: Path, weights: str, drop: str = "", **tensors: torch.Tensor) -> Path:
    """The folder, with some tensors of its safetensors file replaced and one dropped."""
    held = load_file(folder / weights) | tensors
    held.pop(drop, None)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / weights)
    return folder


SAE_WEIGHTS = "sae_weights.safetensors"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "transcoder"}, "apply_b_dec_to_input = true, expected false of a transcoder"),
        ({"architecture": "crosscoder"}, "several sites at once"),
        ({"architecture": "cross_layer_transcoder"}, "a decoder for every layer above it"),
        ({"architecture": "abstopk"}, "may be negative"),
        ({"architecture": "matching_pursuit"}, "iterative search"),
        ({"architecture": "temporal"}, "earlier tokens"),
        ({"architecture": "lattice"}, "architecture = 'lattice', expected one of standard, topk"),
        ({"activation_fn_str": "tanh-relu"}, "activation function 'tanh-relu', expected relu or topk"),
        ({"architecture": "topk"}, "has k = None, expected a whole number"),
        ({"architecture": "topk", "k": 25}, "k = 25, expected at most its 24 features"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"architecture": "gated"}, "lacks r_mag, b_mag"),
        (
            {"normalize_activations": "expected_average_only_in"},
            r"found no usable activation_scaler\.json.*save_inference",
        ),
        ({"normalize_activations": True}, "activation_scaler"),
        ({"normalize_activations": "covariance_whitening"}, "activation_whitening"),
        ({"normalize_activations": "median"}, "normalize_activations = 'median', expected one of none, layer_norm"),
    ],
)
def test_saelens_settings_that_cannot_be_represented(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(copied("saelens/standard", tmp_path, **settings))


def test_saelens_skip_connection_is_refused(tmp_path):
    folder = changed(copied("saelens/standard", tmp_path), SAE_WEIGHTS, W_skip=torch.zeros(8, 8))
    with pytest.raises(ValueError, match="skip connection"):
        read(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_enc": torch.zeros(8, 23)}, r"W_enc has the shape \(8, 23\), expected \(8, 24\)"),
        ({"b_dec": torch.zeros(7)}, "expected"),
        ({"b_dec": torch.zeros(1, 8)}, "expected one dimension"),
        ({"b_enc": torch.zeros(24, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_shapes_and_types_that_disagree(tensors, message, tmp_path):
    folder = changed(copied("saelens/standard", tmp_path), SAE_WEIGHTS, **tensors)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_decoder_rows_that_are_not_finite_are_handed_on(tmp_path):
    rows = load_file(CHECKPOINTS / "saelens" / "standard" / SAE_WEIGHTS)["W_dec"]
    rows[3] = torch.nan
    member = read(changed(copied("saelens/standard", tmp_path), SAE_WEIGHTS, W_dec=rows))
    assert member.tensors["W_dec"][3].isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_tensors_that_are_not_finite_are_refused_with_file_tensor_and_count(value, tmp_path):
    folder = CHECKPOINTS / "saelens" / "jumprelu"
    tensors = load_file(folder / SAE_WEIGHTS)
    for name, at, said in (
        ("W_enc", (2, 3), "W_enc .1 of 192 numbers"),
        ("b_enc", ([3, 5],), "b_enc .2 of 24 numbers"),
        ("b_dec", (0,), "b_dec .1 of 8 numbers"),
        ("threshold", (7,), "threshold .1 of 24 numbers"),
        ("W_dec", ([3, 5], 1), "W_dec .2 of 24 rows"),
    ):
        damaged = tensors[name].clone()
        damaged[at] = value
        member = changed(copied("saelens/jumprelu", tmp_path, name), SAE_WEIGHTS, **{name: damaged})
        with pytest.raises(ValueError, match=f"{member / SAE_WEIGHTS} holds numbers that are not finite .* in {said}"):
            read(member)


def test_one_decoder_row_in_a_hundred_may_be_without_numbers(make_sae, tmp_path):
    make_sae(members=2, dtype=np.float32, d_sae=200).save(tmp_path)
    rows = load_file(tmp_path / "seed-1.safetensors")["W_dec"]
    rows[:2] = torch.nan
    file = tmp_path / "seed-1.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file) | {"W_dec": rows}, file, metadata)
    assert read(file).tensors["W_dec"][:2].isnan().all()
    rows[2] = torch.nan
    save_file(load_file(file) | {"W_dec": rows}, file, metadata)
    with pytest.raises(
        ValueError, match=r"seed-1\.safetensors holds numbers that are not finite .* in W_dec .3 of 200 rows"
    ):
        read_many([tmp_path])


def test_missing_and_broken_configs(tmp_path):
    folder = copied("saelens/standard", tmp_path)
    (folder / "cfg.json").write_text('{"architecture": ')
    with pytest.raises(ValueError, match=r"cfg\.json is not readable JSON.*copy it again"):
        read(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON list, expected an object"):
        read(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"found no cfg\.json in .*copy it there"):
        read(folder)


@pytest.mark.parametrize("name", ["saelens/standard", "sparsify/topk/layers.3", "dictionary_learning/topk/trainer_0"])
def test_truncated_files(name, tmp_path):
    folder = copied(name, tmp_path)
    file = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pt"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{file.name} is not a complete .* again"):
        read(folder)


def test_a_truncated_file_among_loose_ones_is_not_skipped(make_sae, tmp_path):
    make_sae(members=2, dtype=np.float32).save(tmp_path)
    file = tmp_path / "seed-1.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"seed-1\.safetensors is not a complete safetensors file"):
        read_many([tmp_path])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("refused/skip", {}, "skip connection"),
        ("topk/layers.3", {"signed": True}, "signed activations"),
        ("topk/layers.3", {"activation": "relu6"}, "activation = 'relu6', expected one of topk, groupmax"),
        ("topk/layers.3", {"num_latents": 48}, "24 features of 8 dimensions, but cfg.json says 48 of 8"),
        ("topk/layers.3", {"k": None}, "k = None"),
        ("groupmax/h.1", {"k": 5}, "24 features in k = 5 groups"),
    ],
)
def test_sparsify_settings_that_cannot_be_represented(name, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(copied(f"sparsify/{name}", tmp_path, **settings))


def test_sparsify_without_decoder(tmp_path):
    folder = changed(copied("sparsify/topk/layers.3", tmp_path), "sae.safetensors", drop="W_dec")
    with pytest.raises(ValueError, match=r"no decoder.*decoder=True"):
        read(folder)


def test_dictionary_learning_unknown_class_and_missing_threshold(tmp_path):
    folder = copied("dictionary_learning/batchtopk/trainer_0", tmp_path)
    held = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({name: tensor for name, tensor in held.items() if name != "threshold"}, folder / "ae.pt")
    with pytest.raises(ValueError, match="lacks threshold"):
        read(folder)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    with pytest.raises(ValueError, match="dict_class = 'CrossCoder', expected one of AutoEncoder"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qsae", "QSAE, which cannot be scored: its activations are quantised"),
        ("mp", "MpSAE, which cannot be scored: .*matching pursuit"),
        ("mlp", "an encoder of several layers"),
        ("layer_norm", "pre-activations with LayerNorm, expected BatchNorm1d"),
    ],
)
def test_overcomplete_modules_that_cannot_be_represented(name, message):
    with pytest.raises(ValueError, match=message):
        read(CHECKPOINTS / "overcomplete" / f"refused_{name}.pt")


def test_folders_without_an_sae(tmp_path):
    with pytest.raises(ValueError, match=r"holds no SAE: found an empty folder; expected one of sae_weights"):
        recognise(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"holds no SAE: found notes\.txt"):
        recognise(tmp_path)
    with pytest.raises(ValueError, match=r"holds no SAE: found a \.txt file of 5 bytes"):
        recognise(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="found no file or folder"):
        recognise(tmp_path / "nothing")
    with pytest.raises(ValueError, match="format is 'keras', expected one of auto"):
        read(tmp_path, "keras")


def test_one_sae_is_not_several():
    with pytest.raises(ValueError, match=r"holds 3 SAEs \(.*seed0.*\), expected one: name it"):
        read(CHECKPOINTS / "sparsify" / "several")
    with pytest.raises(ValueError, match=r"holds sparsify .*, expected saelens"):
        read(CHECKPOINTS / "sparsify" / "topk", "saelens")


def test_seeds_are_given_recorded_or_in_the_folder_names(tmp_path):
    for name in ("run_4", "run_12"):
        copied("saelens/standard", tmp_path, to=name)
    assert [member.seed for member in read_many([tmp_path])] == [4, 12]
    assert [member.seed for member in read_many([tmp_path], seeds=[7, 8])] == [7, 8]
    for name in ("run_4", "run_12"):
        (tmp_path / name).rename(tmp_path / f"final_{len(name)}")
    assert [member.seed for member in read_many([tmp_path])] == [0, 1]
    for folder, seed in zip(sorted(tmp_path.iterdir()), (31, 32), strict=True):
        (folder / "runner_cfg.json").write_text(json.dumps({"seed": seed}))
    assert [member.seed for member in read_many([tmp_path])] == [31, 32]


def test_duplicate_seeds_and_paths_name_both(tmp_path):
    first, second = copied("saelens/standard", tmp_path, "a/run_1"), copied("saelens/standard", tmp_path, "b/run_1")
    with pytest.raises(ValueError, match=f"{first} and {second} both have the seed 1, .*--seeds"):
        read_many([first, second])
    with pytest.raises(ValueError, match=f"{first} and {second} both have the seed 5"):
        read_many([first, second], seeds=[5, 5])
    with pytest.raises(ValueError, match="3 seeds were given for 2 SAEs"):
        read_many([first, second], seeds=[5, 6, 7])
    with pytest.raises(ValueError, match="is given twice"):
        read_many([first, first])
    with pytest.raises(ValueError, match=r"the seed of .* is -1"):
        read_many([first, second], seeds=[-1, 0])


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("saelens/standard", "saelens/jumprelu", "architecture relu, .*jumprelu has architecture jumprelu"),
        ("saelens/jumprelu", "saelens/jumprelu_uncentred", "subtract_b_dec True, .*subtract_b_dec False"),
        ("sparsify/topk", "sparsify/groupmax", "architecture topk, .* architecture groupmax"),
        ("sparsify/several/layers.3/seed0", "saelens/topk", "k 4, .*topk has k 3"),
    ],
)
def test_members_that_differ_by_more_than_their_seed(one, other, message):
    with pytest.raises(ValueError, match=message):
        read_many([CHECKPOINTS / one, CHECKPOINTS / other])


def test_members_of_other_widths_hookpoints_or_steps(tmp_path):
    first, second = copied("saelens/standard", tmp_path, "run_1"), copied("saelens/standard", tmp_path, "run_2")
    held = {"W_enc": torch.zeros(8, 20), "b_enc": torch.zeros(20), "W_dec": torch.zeros(20, 8)}
    changed(second, SAE_WEIGHTS, **held)
    with pytest.raises(ValueError, match="20 features of 8 dimensions, but its config says that d_sae is 24"):
        read_many([first, second])
    config = json.loads((second / "cfg.json").read_text())
    (second / "cfg.json").write_text(json.dumps(config | {"d_sae": 20}))
    with pytest.raises(ValueError, match=f"{first} has d_sae 24, {second} has d_sae 20"):
        read_many([first, second])
    elsewhere = copied("sparsify/topk/layers.3", tmp_path, "x/layers.4")
    with pytest.raises(ValueError, match=r"hookpoint layers\.3, .*hookpoint layers\.4"):
        read_many([CHECKPOINTS / "sparsify" / "topk", elsewhere])
    for step in (100, 200):
        copied("saelens/checkpoint_topk", tmp_path, f"checkpoints/a1b2/{step}")
    with pytest.raises(ValueError, match="steps of one run"):
        read_many([tmp_path / "checkpoints"])


def test_a_sparsify_runs_best_copies_are_not_members(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(CHECKPOINTS / "sparsify" / "topk", run)
    shutil.copytree(run / "layers.3", run / "best" / "layers.3" / "layers.3")
    torch.save({"step": 3}, run / "state.pt")
    assert [found.path for found in recognise(run)] == [run / "layers.3"]
