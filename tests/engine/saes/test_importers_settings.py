"""Members of an ensemble differ by their seed alone: what their files and names record of their training is compared."""

import json
import shutil
from pathlib import Path

import pytest

from seedscope.engine.saes.importers.ensemble import read_many
from seedscope.engine.saes.importers.hub import repository_names
from seedscope.engine.saes.importers.recognise import recognise
from seedscope.engine.saes.importers.settings import in_names, recorded
from support.imports import K, make_run
from support.layouts import LAYOUTS, write_gemma_scope
from support.paths import CHECKPOINTS


def edited(path: Path, **settings: object) -> None:
    """Change settings of a JSON file, or of its trainer's part where it has one."""
    config = json.loads(path.read_text()) if path.is_file() else {}
    (config.get("trainer") or config).update(settings)
    path.write_text(json.dumps(config))


def test_the_sparsity_targets_of_one_layer_of_a_release_are_not_seeds(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k"
    write_gemma_scope(folder, make_run(seeds=(0, 1)), K)
    for run, l0 in (("a", 22), ("b", 41)):
        (folder / f"run_{run}").rename(folder / f"average_l0_{l0}")
    first, second = folder / "average_l0_22", folder / "average_l0_41"
    for paths in ([folder], [first, second]):
        with pytest.raises(ValueError, match=f"{first} has L0 22, {second} has L0 41.*--force"):
            read_many(paths)
    members = read_many([folder], force=True)
    assert [member.remarks for member in members] == [(), (f"forced: {first} has L0 22, {second} has L0 41",)]


@pytest.mark.parametrize(
    ("layout", "file", "settings", "message"),
    [
        ("saelens", "seed_3/cfg.json", {"dataset_path": "c4"}, "dataset_path pile, .* has dataset_path c4"),
        ("saelens", "seed_3/cfg.json", {"context_size": 64}, "context_size 128, .* has context_size 64"),
        ("saelens-3", "seed_3/cfg.json", {"dataset_path": "c4"}, "dataset_path pile, .* has dataset_path c4"),
        ("dictionary-learning", "trainer_2/config.json", {"lr": 0.5}, "has lr 0.01, .* has lr 0.5"),
        ("dictionary-learning", "trainer_2/config.json", {"steps": 81}, "has steps 80, .* has steps 81"),
        ("dictionary-learning", "trainer_2/config.json", {"layer": 3}, "has layer 2, .* has layer 3"),
        ("sparsify", "layers.2/seed3/cfg.json", {"multi_topk": True}, "multi_topk false, .* has multi_topk true"),
        ("overcomplete", "seed_3.json", {"lr": 2}, "has lr 1, .* has lr 2"),
        ("safetensors", "sae_seed3.json", {"l1_coefficient": 2}, "l1_coefficient 1, .* has l1_coefficient 2"),
    ],
)
def test_recorded_settings_that_differ_are_refused_unless_forced(layout, file, settings, message, tmp_path):
    LAYOUTS[layout].write(tmp_path, make_run(), K)
    for path in tmp_path.rglob("*.json"):
        if path.name == "cfg.json" and "metadata" in (config := json.loads(path.read_text())):
            # Every member records the same, whether or not the library's own files of this kind do.
            config["metadata"].update(dataset_path="pile", context_size=128)
            path.write_text(json.dumps(config))
        elif layout in ("overcomplete", "safetensors"):
            edited(path, **dict.fromkeys(settings, 1))
    read_many([tmp_path])
    changed = tmp_path / file
    config = json.loads(changed.read_text())
    config.get("trainer", config.get("metadata", config)).update(settings)
    changed.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_many([tmp_path])
    members = read_many([tmp_path], force=True)
    assert [[remark for remark in member.remarks if "forced: " in remark] != [] for member in members] == [
        False,
        False,
        True,
    ]


def test_what_a_saelens_runner_records_is_compared(tmp_path):
    for seed, tokens in ((0, 1000), (1, 1000), (2, 2000)):
        shutil.copytree(CHECKPOINTS / "saelens" / "standard", tmp_path / f"run_{seed}")
        runner = {"seed": seed, "training_tokens": tokens, "sae": {"l1_coefficient": 5}, "output_path": f"out/{seed}"}
        runner |= {"logger": {"run_name": f"{seed}"}, "device": f"cuda:{seed}", "n_checkpoints": seed}
        (tmp_path / f"run_{seed}" / "runner_cfg.json").write_text(json.dumps(runner))
    read_many([tmp_path / "run_0", tmp_path / "run_1"])
    with pytest.raises(ValueError, match=r"training_tokens 1000, .* training_tokens 2000"):
        read_many([tmp_path])


def test_a_sparsify_runs_settings_are_compared(tmp_path):
    for seed in (0, 1):
        run = tmp_path / f"run_{seed}"
        shutil.copytree(CHECKPOINTS / "sparsify" / "topk", run)
        edited(run / "config.json", init_seeds=[seed], run_name=f"r{seed}", lr=1e-3 * (1 + seed), save_dir=f"s{seed}")
    with pytest.raises(ValueError, match=r"has lr 0\.001, .* has lr 0\.002"):
        read_many([tmp_path])
    edited(tmp_path / "run_1" / "config.json", lr=1e-3)
    assert [member.seed for member in read_many([tmp_path])] == [0, 1]


def test_what_may_differ_between_seeds_of_one_recipe_is_not_a_setting():
    names = "seed shuffle_seed init_seeds device act_store_device output_path save_dir run_name wandb_name created_at l0 mse"
    names += " sae_lens_version num_dead_features sparsity neuronpedia_id hf_token scaling_factor running_threshold"
    names += " seedscope_digest"
    differing = dict.fromkeys(names.split(), 1)
    assert recorded(differing, {"logger": {"a": 1}, "metadata": differing}) == {}
    kept = {"lr": 1e-3, "l1_coefficient": 5.0, "target_l0": 4, "dataset_path": "pile", "training_tokens": 10}
    kept |= {"dead_feature_window": 3, "auxk_alpha": 0.03, "decay_start": None}
    assert recorded({"trainer": kept}).keys() == kept.keys()
    assert recorded({"optimizer": {"lr": 1.0}}) == {"optimizer.lr": "1"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("average_l0_22", {"L0": "22"}),
        ("layer_12/width_16k", {"layer": "12", "width": "16k"}),
        ("layer_1_width_16k_l0_small", {"layer": "1", "width": "16k", "L0": "small"}),
        ("gpt2_L5_lr1.20e-03_l11.80e+00", {"layer": "5", "learning rate": "0.0012", "l1": "1.8"}),
        ("lr=1e-3,l1=0.5", {"learning rate": "0.001", "l1": "0.5"}),
        ("lr_0.001_k32", {"learning rate": "0.001", "k": "32"}),
        ("sae_k=32_step_1000", {"k": "32", "steps": "1000"}),
        ("optim=adam,seed=1", {"optim": "adam"}),
        ("resid_post_layer_2", {"site": "resid_post", "layer": "2"}),
        ("run_20250101123456", {}),
        ("trainer_0/seed4", {}),
    ],
)
def test_settings_in_names(name, settings):
    assert in_names(name.split("/")) == settings


def test_names_above_all_members_and_settings_of_one_alone_are_not_compared(tmp_path):
    LAYOUTS["saelens"].write(tmp_path / "layer_3" / "sweep_k32", make_run(seeds=(0, 1)), K)
    assert len(read_many([tmp_path])) == 2
    folder = tmp_path / "layer_3" / "sweep_k32"
    (folder / "seed_1").rename(folder / "lr_0.1_seed_1")
    assert len(read_many([tmp_path])) == 2


# -- names as they were given --------------------------------------------------------------------------------------


def test_seeds_are_in_the_names_of_links_not_of_what_they_lead_to(tmp_path):
    for index in (0, 1):
        store = tmp_path / "store" / f"{'ab'[index]}7" / "step_1000"
        shutil.copytree(CHECKPOINTS / "saelens" / "standard", store)
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / f"seed{4 + index}").symlink_to(store)
    assert [member.seed for member in read_many([tmp_path / "runs"])] == [4, 5]
    assert [member.seed for member in read_many([tmp_path / "runs" / f"seed{seed}" for seed in (5, 4)])] == [5, 4]


def test_a_releases_file_that_is_a_link_is_named_by_its_folders(tmp_path):
    write_gemma_scope(tmp_path / "blobs", make_run(seeds=(0,)), K)
    repository = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / "4fb1"
    for site in ("layer_12", "embedding"):
        (folder := repository / site / "width_16k" / "average_l0_82").mkdir(parents=True)
        (folder / "params.npz").symlink_to(tmp_path / "blobs" / "run_a" / "params.npz")
    layer, embedding = (read_many([repository / site])[0] for site in ("layer_12", "embedding"))
    expected = {"model": "gemma-scope-2b-pt-res", "hookpoint": "layer_12", "width": "16k", "l0": "82"}
    assert expected.items() <= layer.source.items()
    assert not layer.remarks
    assert any("rescaled" in remark for remark in embedding.remarks)


def test_words_in_other_folders_are_no_facts(tmp_path):
    write_gemma_scope(tmp_path / "embedding-runs" / "layer_3" / "mine", make_run(seeds=(0,)), K)
    (member,) = read_many([tmp_path])
    assert not {"model", "hookpoint", "width", "l0"} & member.source.keys()
    assert member.remarks == ()


def test_a_repository_on_a_hub_has_its_own_name_not_that_of_a_commit(tmp_path, monkeypatch):
    from seedscope.engine.saes.importers import ensemble

    given = {
        f"hf:me/sae-seed{seed}": tmp_path / f"models--me--sae-seed{seed}" / "snapshots" / f"abc{seed}9"
        for seed in (4, 7)
    }
    for folder in given.values():
        shutil.copytree(CHECKPOINTS / "saelens" / "standard", folder)
    monkeypatch.setattr(ensemble, "local", lambda path: given.get(str(path), Path(path)))
    assert [member.seed for member in read_many(list(given))] == [4, 7]
    assert repository_names("hf:me/saes@main/layer_3/k32") == ("me", "saes", "layer_3", "k32")
    assert repository_names(tmp_path) == ()


def test_modules_record_their_settings(tmp_path):
    for seed in (0, 1):
        shutil.copy(CHECKPOINTS / "overcomplete" / f"ra_topk_seed{seed}.pt", tmp_path)
    assert len(read_many([tmp_path])) == 2
    assert {"top_k", "delta"} - read_many([tmp_path])[0].settings.keys() == {"top_k"}  # compared in the convention
    assert [sae.number for sae in recognise(tmp_path)] == [0, 1]


def test_steps_in_the_names_of_checkpoints_are_compared(tmp_path):
    for trainer, step in ((0, 100), (1, 200)):
        folder = tmp_path / f"trainer_{trainer}"
        shutil.copytree(CHECKPOINTS / "dictionary_learning" / "topk" / "trainer_0", folder)
        edited(folder / "config.json", seed=trainer)
        (folder / "checkpoints").mkdir()
        (folder / "ae.pt").rename(folder / "checkpoints" / f"ae_{step}.pt")
    paths = [tmp_path / f"trainer_{trainer}/checkpoints/ae_{step}.pt" for trainer, step in ((0, 100), (1, 200))]
    with pytest.raises(ValueError, match=r"steps of the checkpoint 100, .* steps of the checkpoint 200"):
        read_many(paths)


def test_numbers_are_compared_by_value():
    assert recorded({"lr": 1.0}) == recorded({"lr": 1})
    assert in_names(["lr_1e-3"]) == in_names(["lr_0.001"])


def test_a_transcoders_flag_in_the_runs_config_alone_is_read(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(CHECKPOINTS / "sparsify" / "topk", run)
    config = json.loads((run / "layers.3" / "cfg.json").read_text())
    del config["transcode"]
    (run / "layers.3" / "cfg.json").write_text(json.dumps(config))
    (plain,) = read_many([run])
    assert not plain.convention.transcoder
    for flagged in ({"transcode": True}, {"sae": {"transcode": True}}):
        (run / "config.json").write_text(json.dumps(flagged))
        (member,) = read_many([run])
        assert member.convention.transcoder
        assert member.facts["forward pass"] == ("topk transcoder", "config.json: transcode")


def test_a_scale_of_features_applies_only_where_the_config_says_so(tmp_path):
    folder = tmp_path / "sae"
    shutil.copytree(CHECKPOINTS / "saelens_5" / "finetuned", folder)
    (scaled,) = read_many([folder])
    edited(folder / "cfg.json", finetuning_scaling_factor=False)
    (plain,) = read_many([folder])
    assert not scaled.tensors["W_dec"].equal(plain.tensors["W_dec"])
    assert any("left out" in remark for remark in plain.remarks)
