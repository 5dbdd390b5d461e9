"""What is said of an SAE's facts, and where each is said to come from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers import ensemble, facts
from seedscope.engine.saes.importers.inspect import inspect
from seedscope.engine.store import catalogue
from seedscope.engine.studies.import_ensemble import enrol
from support.commands import run

CHECKPOINTS = Path(__file__).parent / "checkpoints"
D_IN, D_SAE = 8, 24


def own(folder: Path, seed: int, convention: Convention | None = None, **provenance: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (1, D_IN, D_SAE), "b_enc": (1, D_SAE), "W_dec": (1, D_SAE, D_IN), "b_dec": (1, D_IN)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sae.assemble(tensors, convention or Convention("topk", k=3), (seed,)).save(folder, provenance=provenance or None)


def sparsify_file(folder: Path, **settings: object) -> Path:
    folder.mkdir(parents=True)
    tensors = {"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    save_file({name: torch.randn(shape) for name, shape in tensors.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 3, "d_in": D_IN, **settings}))
    return folder


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "saelens/checkpoint_topk",
            {
                "library": ("sae-lens 6.54.12", "cfg.json: metadata.sae_lens_version"),
                "scale": ("0.8437, folded into the weights", "activation_scaler.json: scaling_factor"),
                "hook point": ("blocks.2.hook_resid_post", "cfg.json: metadata.hook_name"),
                "k or l1": ("k 3", "cfg.json: k"),
                "dtype": ("float32", "sae_weights.safetensors: tensors"),
                "processing of the model": ("none", "assumed"),
            },
        ),
        (
            "saelens_3/topk",
            {
                "forward pass": ("topk", "cfg.json: activation_fn_str"),
                "k or l1": ("k 3", "cfg.json: activation_fn_kwargs.k"),
                "dataset": ("pile", "cfg.json: dataset_path"),
                "processing of the model": ("none", "cfg.json: model_from_pretrained_kwargs"),
            },
        ),
        ("saelens/bfloat16", {"dtype": ("bfloat16", "sae_weights.safetensors: tensors")}),
        (
            "sparsify/several/layers.3/seed10",
            {"seed": ("10", "folder name"), "hook point": ("layers.3", "folder name"), "k or l1": ("k 4", "cfg.json: k")},
        ),
        (
            "dictionary_learning/batchtopk/trainer_0",
            {
                "forward pass": ("jumprelu", "config.json: trainer.dict_class"),
                "k or l1": ("k 3 in training", "config.json: trainer.k"),
            },
        ),
        ("dictionary_learning/topk/trainer_0", {
            "k or l1": ("k 3", "ae.pt: k"), "model": ("pythia-70m", "config.json: trainer.lm_name"),
        }),
        ("overcomplete/topk_tied.pt", {"k or l1": ("k 3", "topk_tied.pt: top_k"), "hook point": ("not stated", "")}),
    ],
)  # fmt: skip
def test_facts_name_the_file_and_key_that_they_were_read_from(path, expected):
    member = ensemble.read(CHECKPOINTS / path)
    assert tuple(member.facts) == facts.NAMES
    assert {name: member.facts[name] for name in expected} == expected


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*/*/**/*.safetensors")), ids=str)
def test_facts_are_those_that_are_computed_with(path):
    folder = path.parent
    if "refused" in str(path) or path.name == "activation_whitening.safetensors":
        pytest.skip("no SAE of its own, or one that is refused")
    member = ensemble.read(folder)
    said = {name: value for name, (value, _) in member.facts.items()}
    assert said["forward pass"].split()[0] == member.convention.architecture
    assert (int(said["d_in"]), int(said["d_sae"])) == (member.d_in, member.d_sae)
    assert said["b_dec"].startswith("not ") != member.convention.subtract_b_dec
    assert said["normalisation"].split(",")[0] == member.convention.normalize
    assert said["seed"] == ("not stated" if member.seed is None else str(member.seed))
    assert not member.convention.k or said["k or l1"] == f"k {member.convention.k}"
    assert (said["threshold"] == "none") == ("threshold" not in member.tensors)


def test_what_a_file_leaves_out_is_assumed(tmp_path):
    own(tmp_path, 0)
    config = json.loads((CHECKPOINTS / "saelens/topk/cfg.json").read_text())
    config.pop("apply_b_dec_to_input"), config.pop("normalize_activations")
    folder = tmp_path / "lens"
    folder.mkdir()
    (folder / "sae_weights.safetensors").write_bytes(
        (CHECKPOINTS / "saelens/topk/sae_weights.safetensors").read_bytes()
    )
    (folder / "cfg.json").write_text(json.dumps(config))
    assert {"b_dec", "normalisation"} <= set(facts.assumed(ensemble.read(folder).facts))


def test_the_width_by_the_librarys_default_expansion_is_the_weights(tmp_path):
    torch.manual_seed(0)
    member = ensemble.read(sparsify_file(tmp_path / "layers.1", num_latents=0, expansion_factor=3))
    assert member.facts["d_sae"] == ("24", "cfg.json: expansion_factor")


def test_seeds_come_from_files_names_options_or_are_assumed(tmp_path):
    for number in (4, 7):
        sparsify_file(tmp_path / f"run-{number}" / "layers.1", num_latents=D_SAE)
    by_name = ensemble.read_many([tmp_path])
    assert [member.facts["seed"] for member in by_name] == [("4", "number in the name"), ("7", "number in the name")]
    by_user = ensemble.read_many([tmp_path], seeds=[1, 2])
    assert [member.facts["seed"] for member in by_user] == [("1", "you"), ("2", "you")]
    (tmp_path / "run-4").rename(tmp_path / "one")
    assert [m.facts["seed"] for m in ensemble.read_many([tmp_path])] == [("0", "assumed"), ("1", "assumed")]
    assert [m.facts["seed"] for m in inspect(tmp_path)] == [("0", "assumed"), ("1", "assumed")]


def test_an_import_keeps_the_facts_with_the_catalogue(tmp_path):
    for seed in (0, 1):
        own(tmp_path / "files", seed, model="gpt2")
    enrol(tmp_path, "mine", "topk", [tmp_path / "files"], hookpoint="blocks.1.hook_resid_post")
    plan = catalogue.read(tmp_path / "mine")
    for member in plan.ensembles[0].members:
        assert member.facts["hook point"] == ("blocks.1.hook_resid_post", "you")
        assert member.facts["model"] == ("gpt2", f"seed-{member.seed}.safetensors metadata: model")
        assert member.facts["library"] == ("SeedScope", "format seedscope")


def test_a_catalogue_without_facts_opens(tmp_path):
    member = catalogue.MemberPlan(0, "ab")
    plan = catalogue.StudyPlan("old", ensembles=(catalogue.EnsemblePlan("e", "imported", "sae/e", (member,)),))
    catalogue.write(plan, tmp_path)
    file = tmp_path / catalogue.FILE
    content = json.loads(file.read_text())
    del content["ensembles"][0]["members"][0]["facts"]
    file.write_text(json.dumps(content))
    assert catalogue.read(tmp_path) == plan


def test_facts_in_short_split_where_members_differ():
    one = ensemble.read(CHECKPOINTS / "sparsify/several/layers.3/seed0").facts
    other = replace(ensemble.read(CHECKPOINTS / "sparsify/several/layers.3/seed2")).facts | {
        "dtype": ("float16", "weights")
    }
    lines = facts.in_short({0: one, 2: other})
    assert "k or l1: k 4  [cfg.json: k]" in lines
    assert "dtype: float32  [weights] (seed 0)" in lines
    assert "dtype: float16  [weights] (seed 2)" in lines
    assert "seed: 0, 2  [folder name]" in lines
    assert "processing of the model: none  [! assumed]" in lines


def test_inspect_prints_every_fact_and_imports_nothing(tmp_path):
    file = tmp_path / "facts.json"
    done = run("inspect", CHECKPOINTS / "sparsify/several/layers.3", "--hookpoint", "layers.5", "--json", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("! assumed, as no file says it: processing of the model") == 3
    assert "layers.5" in done.stdout
    content = json.loads(file.read_text())
    assert (content["format"], content["version"], len(content["members"])) == ("seedscope.facts", 1, 3)
    assert content["members"][0]["facts"]["hook point"] == ["layers.5", "you"]
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


def test_inspect_says_why_an_sae_cannot_be_imported():
    done = run("inspect", CHECKPOINTS / "sparsify/refused")
    assert done.returncode == 1
    assert "refused: " in done.stdout
    assert "1 of 1 cannot be imported" in done.stderr


def test_a_file_that_names_its_pages_on_neuronpedia_has_them_as_a_fact_and_others_have_none(tmp_path):
    plain = shutil.copytree(CHECKPOINTS / "saelens_5" / "topk", tmp_path / "plain")
    named = shutil.copytree(plain, tmp_path / "named")
    settings = json.loads((named / "cfg.json").read_text())
    (named / "cfg.json").write_text(json.dumps(settings | {"neuronpedia_id": "gpt2-small/7-res-jb"}))
    (known,), (unknown,) = (ensemble.read_many([path], "saelens", [0]) for path in (named, plain))
    assert known.facts[facts.NEURONPEDIA] == ("gpt2-small/7-res-jb", "cfg.json: neuronpedia_id")
    assert "neuronpedia: gpt2-small/7-res-jb  [cfg.json: neuronpedia_id]" in facts.in_short({0: known.facts})
    assert facts.NEURONPEDIA not in unknown.facts
