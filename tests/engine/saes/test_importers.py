"""Every importer against files that the libraries themselves wrote, and what those libraries computed with them."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from seedscope.engine.saes.importers.ensemble import read, read_many
from seedscope.engine.saes.importers.recognise import recognise
from support.importer_checks import CHECKPOINTS, assert_same, goldens

SAELENS, SPARSIFY, DICTIONARY, OVERCOMPLETE = map(
    goldens, ("saelens", "sparsify", "dictionary_learning", "overcomplete")
)


@pytest.mark.parametrize("name", SAELENS)
def test_saelens_files_give_what_saelens_computes(name):
    folder = CHECKPOINTS / "saelens" / name
    (found,) = recognise(folder)
    assert (found.path, found.format) == (folder, "saelens")
    member = read(folder)
    assert_same(member, SAELENS[name])
    assert member.source["model"] == "pythia-70m"
    assert member.source["hookpoint"] == "blocks.2.hook_resid_post"
    assert member.source["library_version"] == "6.54.12"


def test_saelens_conventions_seeds_and_remarks():
    member = read(CHECKPOINTS / "saelens" / "trained_batchtopk")
    assert (member.convention.architecture, member.seed) == ("jumprelu", 8)
    assert "trained with BatchTopK" in member.remarks
    assert "trained with Matryoshka BatchTopK" in read(CHECKPOINTS / "saelens" / "trained_matryoshka").remarks
    assert read(CHECKPOINTS / "saelens" / "topk_rescaled").convention.rescale_by_decoder_norm
    assert read(CHECKPOINTS / "saelens" / "layer_norm").convention.normalize == "layer_norm"
    assert not read(CHECKPOINTS / "saelens" / "jumprelu_uncentred").convention.subtract_b_dec
    assert "weights cast from bfloat16" in read(CHECKPOINTS / "saelens" / "bfloat16").remarks
    assert (
        "activation scale 0.8437 folded into the weights" in read(CHECKPOINTS / "saelens" / "checkpoint_topk").remarks
    )


LEGACY = {
    f"saelens_{major}/{name}": golden for major in (3, 4, 5) for name, golden in goldens(f"saelens_{major}").items()
}


@pytest.mark.parametrize("name", LEGACY)
def test_files_of_saelens_3_to_5_give_what_that_version_computes(name):
    member = read(CHECKPOINTS / name)
    assert_same(member, LEGACY[name])
    assert member.source["hookpoint"] == "blocks.2.hook_resid_post"
    if name.endswith("finetuned"):
        assert "the fine-tuned scale of the features is in the decoder" in member.remarks


def test_the_oldest_saelens_names_and_a_threshold_kept_as_logarithm(tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(CHECKPOINTS / "saelens_5" / "jumprelu", folder)
    config = json.loads((folder / "cfg.json").read_text())
    config |= {"hook_point": config.pop("hook_name"), "normalize_activations": False}
    for name in ("apply_b_dec_to_input", "activation_fn_str"):
        del config[name]
    (folder / "cfg.json").write_text(json.dumps(config))
    held = load_file(folder / "sae_weights.safetensors")
    held["log_threshold"] = held.pop("threshold").log()
    save_file(held, folder / "sae_weights.safetensors")
    assert_same(read(folder), LEGACY["saelens_5/jumprelu"])
    assert read(folder).source["hookpoint"] == "blocks.2.hook_resid_post"


@pytest.mark.parametrize("name", SPARSIFY)
def test_sparsify_files_give_what_sparsify_computes(name):
    member = read(CHECKPOINTS / "sparsify" / name)
    assert_same(member, SPARSIFY[name])
    assert member.source["hookpoint"] == ("h.1" if name == "groupmax/h.1" else "layers.3")


def test_sparsify_seed_folders_are_members_in_numeric_order():
    members = read_many([CHECKPOINTS / "sparsify" / "several"])
    assert [member.seed for member in members] == [0, 2, 10]
    for member, name in zip(members, ("seed0", "seed2", "seed10"), strict=True):
        assert_same(member, SPARSIFY[f"several/layers.3/{name}"])
    assert read(CHECKPOINTS / "sparsify" / "topk").seed == 5
    assert read(CHECKPOINTS / "sparsify" / "bfloat16").remarks == (
        "trained with Multi-TopK",
        "weights cast from bfloat16",
    )


@pytest.mark.parametrize("name", DICTIONARY)
def test_dictionary_learning_files_give_what_it_computes(name):
    path = CHECKPOINTS / "dictionary_learning" / name
    assert recognise(path)[0].format == "dictionary_learning"
    member = read(path)
    assert_same(member, DICTIONARY[name])
    assert member.seed in range(3, 13)


@pytest.mark.parametrize("name", ["standard", "new", "gated", "jumprelu", "matryoshka"])
def test_dictionary_learning_files_without_config_are_read_where_their_tensors_tell(name, tmp_path):
    shutil.copy(CHECKPOINTS / "dictionary_learning" / name / "trainer_0" / "ae.pt", tmp_path)
    member = read(tmp_path)
    assert_same(member, DICTIONARY[f"{name}/trainer_0"])
    assert member.seed is None


def test_dictionary_learning_topk_and_batchtopk_need_their_config(tmp_path):
    shutil.copy(CHECKPOINTS / "dictionary_learning" / "topk" / "trainer_0" / "ae.pt", tmp_path)
    with pytest.raises(ValueError, match=r"AutoEncoderTopK and BatchTopKSAE have these same tensors.*dict_class"):
        read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    assert_same(read(tmp_path), DICTIONARY["topk/trainer_0"])


def test_dictionary_learning_says_what_a_reader_should_know():
    remarks = {
        name: read(CHECKPOINTS / "dictionary_learning" / name).remarks for name in ("batchtopk_short", "jumprelu")
    }
    assert any("never set" in remark for remark in remarks["batchtopk_short"])
    assert any("ignores the seed" in remark for remark in remarks["jumprelu"])
    assert any("unit norm" in remark for remark in read(CHECKPOINTS / "dictionary_learning" / "april").remarks)


@pytest.mark.parametrize("name", [name for name in OVERCOMPLETE if not name.startswith("state")])
def test_overcomplete_modules_give_what_overcomplete_computes(name):
    path = CHECKPOINTS / "overcomplete" / f"{name}.pt"
    assert recognise(path)[0].format == "overcomplete"
    assert_same(read(path), OVERCOMPLETE[name])


@pytest.mark.parametrize(
    ("name", "lacks", "given"),
    [
        ("state_topk", "class, normalization", {"class": "TopKSAE", "top_k": 3, "normalization": "l2"}),
        ("state_jump", "normalization", {"normalization": "l2"}),
        ("state_ra_topk", "class, delta", {"class": "RATopKSAE", "top_k": 3, "delta": 0.4}),
    ],
)
def test_overcomplete_state_dicts_need_what_they_do_not_record(name, lacks, given, tmp_path):
    shutil.copy(CHECKPOINTS / "overcomplete" / f"{name}.pt", tmp_path)
    with pytest.raises(ValueError, match=f"does not record {lacks}.*torch.save"):
        read(tmp_path)
    (tmp_path / f"{name}.json").write_text(json.dumps(given))
    assert_same(read(tmp_path), OVERCOMPLETE[name])


def test_overcomplete_members_with_the_same_archetypes_say_so():
    paths = [CHECKPOINTS / "overcomplete" / f"ra_topk_seed{seed}.pt" for seed in (0, 1)]
    members = read_many(paths)
    assert [member.seed for member in members] == [0, 1]
    assert all("start shared: dictionary.C" in member.remarks for member in members)
    assert read(paths[0]).remarks == ()
