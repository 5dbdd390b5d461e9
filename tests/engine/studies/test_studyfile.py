"""A study file: what it is read as, and every mistake in it told with its line."""

import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.activations.documents import documents
from seedscope.engine.contract.recipe import VARIANTS, TrainConfig
from seedscope.engine.demo import stdlib
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.saes.importers.ensemble import FORMATS
from seedscope.engine.store import catalogue
from seedscope.engine.studies.studyfile.read import EXAMPLE, ImportPlan, StudyFile, TrainPlan, read_study_file
from seedscope.engine.studies.studyfile.recipes import FIELD, KEYS

# Relative to the folder of the fixture below, which holds a corpus and four empty checkpoint folders.
WHOLE = """
[study]
name = "gpt2-l7"
theta = 0.8
epsilon = 0.1
[model]
path = "gpt2"
hookpoint = "blocks.7.hook_resid_pre"
[tokens]
source = "corpus/*.txt"
eval = 2_000_000
n_ctx = 128
bos = "include"
outliers = "include"
[[ensemble]]
name = "old"
import = ["ckpts/seed*"]
hookpoint = "transformer.h.6"
format = "sparsify"
seeds = [3, 5, 7, 9]
shared_start = "no"
force = true
[[ensemble]]
name = "new"
train = { variant = "topk", d_sae = 16384, k = 32, seeds = 3, tokens = 5e7, batch = 2048, lr = 1e-3, data_order = "independent" }
"""
IMPORTS = '[study]\nname = "s"\n[[ensemble]]\nname = "e"\nimport = "ckpts/seed*"\n'
SOURCES = """[study]
name = "s"
[model]
path = "gpt2"
hookpoint = "blocks.7.hook_resid_pre"
[tokens]
source = "corpus/*.txt"
[[sources]]
name = "by"
train = { seeds = 4 }
causes = ["order"]
"""
TRAINS = """[study]
name = "s"
[model]
path = "gpt2"
hookpoint = "blocks.7.hook_resid_pre"
[tokens]
source = "corpus/*.txt"
[[ensemble]]
name = "e"
train = { }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = tmp_path / "a [1]"  # a name that is no pattern
    (here / "corpus").mkdir(parents=True)
    for name in ("b", "a"):
        (here / "corpus" / f"{name}.txt").write_text(f"text {name}")
    for seed in (10, 2, 1, 0):
        (here / "ckpts" / f"seed{seed}").mkdir(parents=True)
    return here


def written(folder: Path, text: str) -> Path:
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def told(folder: Path, text: str) -> list[tuple[int, str]]:
    """(line, problem) of a refused file."""
    file = written(folder, text)
    with pytest.raises(ValueError, match="expected") as caught:
        read_study_file(file)
    head, *problems = str(caught.value).splitlines()
    assert head == f"{file} has {len(problems)} problem{'s' * (len(problems) > 1)}:"
    found = [re.fullmatch(rf"{re.escape(str(file))}:(\d+): (.*)", problem) for problem in problems]
    return [(int(one[1]), one[2]) for one in found]


def test_a_whole_file_is_read_as_it_says(folder: Path):
    found = read_study_file(written(folder, WHOLE))
    source = found.train_source
    assert found == StudyFile(
        name="gpt2-l7",
        theta=0.8,
        epsilon=0.1,
        model="gpt2",
        hookpoint="blocks.7.hook_resid_pre",
        tokens=catalogue.Tokens(
            source, 2_000_000, 128, "include", "include", "held-out", remark="corpus/*.txt, held-out documents"
        ),
        train_source=source,
        ensembles=(
            ImportPlan(
                name="old",
                hookpoint="transformer.h.6",
                paths=tuple(folder / "ckpts" / f"seed{seed}" for seed in (0, 1, 2, 10)),
                format="sparsify",
                seeds=(3, 5, 7, 9),
                shared_start="no",
                force=True,
            ),
            TrainPlan(
                name="new",
                hookpoint=None,
                config=TrainConfig(
                    d_sae=16384, k=32, seeds=(0, 1, 2), n_tokens=50_000_000, batch=2048, lr=1e-3,
                    data_order="independent",
                ),
            ),
        ),
    )  # fmt: skip
    assert [text for _, text in documents(source)] == ["text a", "text b"]


def test_what_is_not_given_has_its_default(folder: Path):
    (ensemble,) = (found := read_study_file(written(folder, IMPORTS))).ensembles
    assert (found.theta, found.epsilon, found.model, found.tokens, found.train_source) == (0.7, 0.05, None, None, ())
    assert (ensemble.format, ensemble.seeds, ensemble.shared_start, ensemble.force) == ("auto", None, "unknown", False)
    (ensemble,) = read_study_file(written(folder, TRAINS)).ensembles
    assert ensemble.config == TrainConfig()


def test_the_example_of_a_missing_file_is_a_study_file(folder: Path):
    (folder / "ckpts" / "topk" / "seed0").mkdir(parents=True)
    assert read_study_file(written(folder, EXAMPLE)).name == "gpt2-l7"
    with pytest.raises(ValueError, match="found no file") as caught:
        read_study_file(folder / "none.toml")
    assert str(caught.value).endswith(EXAMPLE)


VARIANT_RECIPES = {
    "batchtopk": "k = 4", "matryoshka": "k = 4, group_fracs = [0.25, 0.75]", "relu": "l1 = 0.1, sparsity_warmup_frac = 0.1",
    "jumprelu": "k = 4, bandwidth = 0.01, l0_coefficient = 2", "gated": "l1 = 0.1", "archetypal": 'centroids = "independent"',
    "relaxed-archetypal": "delta = 1",
}  # fmt: skip


def test_sources_become_an_ensemble_per_cause_of_one_recipe(folder):
    both = SOURCES.replace('["order"]', '["all", "start"]\nmodels = ["gpt2", "distilgpt2", "gpt2-medium"]')
    start, every, model = read_study_file(written(folder, both)).ensembles
    assert (start.name, every.name, model.name) == ("by-start", "by-all", "by-model")
    assert start.config == TrainConfig(seeds=(0, 1, 2, 3), data_samples=4)
    assert every.config == TrainConfig(
        seeds=(0, 1, 2, 3), data_samples=4, data_order="independent", data_sample="independent"
    )
    assert model.models == ("gpt2", "distilgpt2", "gpt2-medium")
    of_models = {"data_sample": "independent", "data_samples": 3}
    assert model.config == TrainConfig(seeds=(0, 1, 2), **of_models)
    four = read_study_file(written(folder, SOURCES.replace('causes = ["order"]\n', ""))).ensembles
    assert [each.name for each in four] == ["by-start", "by-order", "by-sample", "by-all"]


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_every_variant_is_read_with_its_own_settings(folder: Path, variant):
    recipe = f'{{ variant = "{variant}", d_sae = 64, {VARIANT_RECIPES[variant]} }}'
    (ensemble,) = read_study_file(written(folder, TRAINS.replace("{ }", recipe))).ensembles
    given = tomllib.loads("a = " + recipe)["a"]
    for key, value in given.items():
        assert getattr(ensemble.config, key) == (pytest.approx(value) if isinstance(value, list) else value)
    left = {key: value for key, value in vars(ensemble.config).items() if key not in given}
    assert left == {key: getattr(TrainConfig(), key) for key in left}


def swept(folder: Path, train: str, sweep: str) -> list[TrainPlan]:
    return [
        *read_study_file(written(folder, TRAINS.replace("train = { }", f"train = {train}\nsweep = {sweep}"))).ensembles
    ]


def test_a_sweep_is_one_ensemble_per_combination(folder: Path):
    plans = swept(
        folder, "{ k = 4 }", '{ d_sae = [64, 256], variant = ["topk", "batchtopk"], hookpoint = ["h.1", "h.2"] }'
    )
    found = {plan.name: (plan.config.d_sae, plan.config.variant, plan.hookpoint) for plan in plans}
    assert found == {
        f"e-d_sae{d}-{variant}-{place}": (d, variant, place)
        for d in (64, 256)
        for variant in ("topk", "batchtopk")
        for place in ("h.1", "h.2")
    }
    assert {plan.config.k for plan in plans} == {4}
    numbers = swept(folder, '{ variant = "relu" }', "{ l1 = [0.05, 1], tokens = [2e6, 5e3], lr = [1e-5] }")
    assert [plan.name for plan in numbers] == [
        f"e-l1-{l1}-tokens{tokens}-lr1e-05" for l1 in ("0.05", "1") for tokens in (2000000, 5000)
    ]


def test_an_asked_l0_is_k_where_a_variant_has_one_and_is_kept_where_l1_decides(folder: Path):
    plans = swept(folder, "{ l0 = 10 }", f"{{ variant = [{', '.join(map(repr, VARIANTS))}] }}")
    k = {plan.config.variant: plan.config.k for plan in plans if "k" in plan.config.uses}
    assert set(k.values()) == {10}
    assert {plan.config.variant: plan.l0 for plan in plans} == dict.fromkeys(k) | {"relu": 10.0, "gated": 10.0}


SWEEP_MISTAKES = [
    # (train, sweep, (line, problem begins, problem says)): both stand in line 10 and 11
    ("{ l1 = 0.1 }", '{ variant = ["topk", "relu"] }', 11, "ensemble.sweep makes e-topk, whose l1 is a setting of relu", ""),
    ("{ d_sae = 8 }", "{ k = [4, 9] }", 11, "ensemble.sweep makes e-k9, whose k = 9, expected at most d_sae (8)", ""),
    ("{ k = 9 }", "{ d_sae = [8, 64], lr = [1e-3, 1e-4] }", 11, "ensemble.sweep makes e-d_sae8-lr0.001 and 1 more", "d_sae (8)"),
    ("{ k = 4 }", "{ k = [4, 8] }", 11, "ensemble.sweep.k stands in train as well", "leave one of them out"),
    ("{ }", "{ k = 4 }", 11, "ensemble.sweep.k = 4, expected a list of values", ""),
    ("{ }", "{ k = [4, 0] }", 11, "ensemble.sweep.k = [4, 0], holds 0, expected a whole number", ""),
    ("{ }", "{ k = [4, 4] }", 11, "ensemble.sweep.k = [4, 4], holds 4 twice", "expected every value once"),
    ("{ }", "{ }", 11, "ensemble.sweep is empty, expected lists of values", ""),
    ("{ }", "{ seeds = [4] }", 11, "ensemble.sweep.seeds is not known here", "it belongs to train"),
    ("{ }", "{ kk = [4] }", 11, "ensemble.sweep.kk is not known here", "did you mean k?"),
    ("{ }", '{ hookpoint = ["Layers.3"] }', 11, "ensemble.sweep makes an ensemble 'e-Layers.3', expected [a-z0-9]", ""),
    ("{ }", f"{{ k = {[*range(1, 14)]}, lr = [1, 2, 3, 4, 5] }}", 11, "ensemble.sweep makes 65 ensembles (13 of k x 5", "64"),
    ("{ l0 = 4, k = 4 }", None, 10, "ensemble.train.l0 stands beside k, expected one of them", ""),
    ("{ l0 = 4.5 }", None, 10, "ensemble.train.l0 = 4.5, expected a whole number: of topk it is k", ""),
    ('{ variant = "relu", l0 = 600 }', None, 10, "ensemble.train.l0 = 600, expected at most d_sae (512)", "lower l0"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "sweep", "line", "begins", "says"), SWEEP_MISTAKES)
def test_mistakes_of_a_sweep_name_the_combination(folder: Path, train, sweep, line, begins, says):
    lines = f"train = {train}" + (f"\nsweep = {sweep}" if sweep else "")
    ((at, problem),) = told(folder, TRAINS.replace("train = { }", lines))
    assert at == line
    assert problem.startswith(begins)
    assert says in problem


def test_names_that_a_sweep_makes_clash_with_none(folder: Path):
    text = (
        TRAINS.replace('name = "e"', 'name = "e-k4"')
        + '[[ensemble]]\nname = "e"\ntrain = { }\nsweep = { k = [4, 8] }\n'
    )
    assert told(folder, text) == [(14, "ensemble.sweep makes e-k4, expected another name: line 9 has it already")]


def test_the_embedded_corpus_is_a_source_with_a_held_out_part_of_its_own(folder: Path):
    found = read_study_file(written(folder, TRAINS.replace("corpus/*.txt", stdlib.SOURCE)))
    assert (found.tokens.source, found.tokens.part, found.train_source) == ((stdlib.SOURCE,), "all", (stdlib.SOURCE,))
    ((line, problem),) = told(folder, TRAINS.replace('"corpus/*.txt"', f'["corpus/*.txt", "{stdlib.SOURCE}"]'))
    assert line == 7
    assert "by itself" in problem


def test_the_packaged_study_of_variants_compares_all_of_them_at_one_l0():
    found = read_study_file(stdlib.HERE / "variants.toml")
    assert found.model == str(stdlib.MODEL_DIR)
    compared = [plan for plan in found.ensembles if plan.name.startswith("l0-10-")]
    assert {plan.config.variant for plan in compared} == set(VARIANTS)
    assert {plan.l0 or float(plan.config.k) for plan in compared} == {10.0}
    assert {(plan.config.d_sae, plan.config.seeds) for plan in compared} == {
        (stdlib.STUDY.train.d_sae, tuple(range(8)))
    }


def test_analyses_are_some_of_those_there_are(folder: Path):
    text = IMPORTS.replace('name = "s"', 'name = "s"\nanalyses = ["activity", "match"]\nloss_tokens = 1_024')
    assert read_study_file(written(folder, text)).analyses == ("match", "activity")
    assert read_study_file(written(folder, text)).loss_tokens == 1024
    assert told(folder, text.replace('"match"', '"mach"'))[0][1].endswith("did you mean match?")


def test_every_setting_of_training_is_a_key():
    assert {FIELD.get(key, key) for key in KEYS} - {"l0"} | {"variant"} == {field.name for field in fields(TrainConfig)}


def test_evaluation_and_training_share_no_document(folder: Path):
    (folder / "held.txt").write_text("held out")
    with_training = read_study_file(written(folder, TRAINS.replace("[[e", 'held_out = "held.txt"\n[[e')))
    assert [text for _, text in documents(with_training.tokens.source)] == ["held out"]
    assert (with_training.tokens.part, with_training.tokens.remark) == ("all", "held.txt")
    assert [text for _, text in documents(with_training.train_source)] == ["text a", "text b"]
    assert read_study_file(written(folder, TRAINS)).tokens.part == "held-out"
    without = read_study_file(written(folder, TRAINS.replace("train = { }", 'import = "ckpts/*"')))
    assert (without.tokens.part, without.train_source) == ("all", ())


def test_paths_mean_the_same_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole = read_study_file(written(folder, WHOLE))
    monkeypatch.chdir(folder)
    assert read_study_file(Path("study.toml")) == whole
    monkeypatch.chdir("/")
    assert read_study_file(Path(os.path.relpath(folder / "study.toml"))).ensembles[0].paths[0].is_dir()
    absolute = IMPORTS.replace("ckpts", str(folder / "ckpts").replace("[1]", "[[]1]"))
    assert read_study_file(written(folder, absolute)).ensembles[0].paths == whole.ensembles[0].paths


def test_a_name_counts_before_a_pattern_and_order_is_natural(folder: Path):
    (folder / "x[0]").mkdir()
    (folder / "x0").mkdir()
    text = IMPORTS.replace('"ckpts/seed*"', '["x[0]", "ckpts/**/seed1*"]')
    names = [path.name for path in read_study_file(written(folder, text)).ensembles[0].paths]
    assert names == ["x[0]", "seed1", "seed10"]


def test_a_local_model_is_found_beside_the_file_and_a_hub_id_is_left_alone(folder: Path):
    (folder / "model").symlink_to(stdlib.MODEL_DIR)
    assert read_study_file(written(folder, TRAINS.replace("gpt2", "model"))).model == str(folder / "model")
    assert (
        read_study_file(written(folder, TRAINS.replace("gpt2", "EleutherAI/pythia-70m"))).model
        == "EleutherAI/pythia-70m"
    )
    assert read_study_file(written(folder, TRAINS.replace("gpt2", str(stdlib.MODEL_DIR)))).model == str(
        stdlib.MODEL_DIR
    )


def test_tokens_of_any_kind_are_sources(folder: Path):
    np.save(folder / "ids.npy", np.arange(9))
    (folder / "a.jsonl").write_text('{"body": "x"}\n')
    found = read_study_file(written(folder, TRAINS.replace('"corpus/*.txt"', '["ids.npy", "a.jsonl#field=body"]')))
    assert [len(content) for _, content in documents(found.train_source)] == [9, 1]


@pytest.mark.parametrize(
    "hookpoint", ["blocks.0.hook_mlp_out", "blocks.11.hook_attn_out", "layers.3", "model.layers.6.mlp", "h.6"]
)
def test_hook_points_in_any_known_form(folder: Path, hookpoint: str):
    assert read_study_file(written(folder, TRAINS.replace("blocks.7.hook_resid_pre", hookpoint))).hookpoint == hookpoint


def test_every_problem_of_a_file_is_told_at_once(folder: Path):
    text = """theta = 0.5
[study]
nmae = "gpt2"
epsilon = 0.5
[modl]
[tokens]
source = [
  "corpus/*.txt",
  "corpus/*.jsonl", # none
]
[[ensemble]]
name = "topk"
import = "ckpts/seed*"
seeds = [1, 1]
[[ensemble]]
name = "topk"
d_sae = 64
train = { k = 600, seeds = 1, seed = 1 }
[[ensemble]]
hookpoint = "blocks.7.hook_resid_prev"
"""
    assert [(line, problem.split(" ")[0]) for line, problem in told(folder, text)] == [
        (1, "theta"), (2, "study.name"), (3, "study.nmae"), (4, "study.epsilon"), (5, "modl"), (6, "tokens"),
        (7, "tokens.source"), (14, "ensemble.seeds"), (16, "ensemble.name"), (17, "ensemble.d_sae"),
        (18, "ensemble.train"), (18, "ensemble.train.seeds"), (18, "ensemble.train.seed"), (18, "ensemble.train.k"),
        (19, "ensemble.name"), (19, "ensemble"), (20, "ensemble.hookpoint"),
    ]  # fmt: skip


# (a part of a good file, what stands there instead, the line, how the problem begins, what it says besides)
MISTAKES = [
    (TRAINS, 'name = "s"', 'name = "S"', 2, 'study.name = "S", expected [a-z0-9]', ""),
    (TRAINS, 'name = "s"', 'name = "docs"', 2, 'study.name = "docs", expected another name', "page"),
    (TRAINS, 'name = "s"', "name = 3", 2, "study.name = 3, expected a text in quotes", ""),
    (TRAINS, 'name = "s"', 'name = "s"\ntheta = 1.5', 3, "study.theta = 1.5, expected a cosine from -1 to 1", ""),
    (TRAINS, 'name = "s"', 'name = "s"\ntheta = "0.7"', 3, 'study.theta = "0.7", expected a cosine', ""),
    (TRAINS, 'name = "s"', 'name = "s"\ntheta = nan', 3, "study.theta = NaN, expected a cosine", ""),
    (TRAINS, 'name = "s"', 'name = "s"\nepsilon = true', 3, "study.epsilon = true, expected 0 to below 0.5", ""),
    (TRAINS, 'name = "s"', 'name = "s"\ncontrol = "shuffled"', 3, 'study.control = "shuffled", expected', "random-weights"),
    (IMPORTS, '[study]\nname = "s"', "", 1, "study is missing, expected [study] with a name", ""),
    (IMPORTS, '[study]\nname = "s"', 'study = "s"', 1, 'study = "s", expected a table', ""),
    (IMPORTS, "[[ensemble]]", "[ensemble]", 3, "ensemble = { .. }, expected a list of tables", "[[ ]]"),
    (IMPORTS, '[[ensemble]]\nname = "e"\nimport = "ckpts/seed*"', "", 1, "ensemble is missing, expected at least one", ""),
    (IMPORTS, "[[ensemble]]", "[modell]\n[[ensemble]]", 3, "modell is not known here", "did you mean model?"),
    (IMPORTS, "[[ensemble]]", "[model]\n[[ensemble]]", 3, "model.path is missing, expected a folder or a hub id", ""),
    (TRAINS, '"gpt2"', '"./gpt2"', 4, 'model.path = "./gpt2", expected a folder, or a hub id', "does not exist"),
    (TRAINS, '"gpt2"', '"corpus/a.txt"', 4, 'model.path = "corpus/a.txt", expected a folder', "is a file"),
    (TRAINS, '"gpt2"', '"corpus"', 4, 'model.path = "corpus", expected a folder of a', "no config.json"),
    (TRAINS, "hook_resid_pre", "hook_resid_prev", 5, "model.hookpoint = ", "did you mean blocks.7.hook_resid_pre?"),
    (TRAINS, "blocks.7.hook_resid_pre", "blocks.8.attn.hook_q", 5, "model.hookpoint = ", "hook_resid_pre, hook_resid_post"),
    (TRAINS, "blocks.7.hook_resid_pre", "layer 7", 5, 'model.hookpoint = "layer 7", expected blocks.LAYER', "transformer.h.6"),
    (TRAINS, 'hookpoint = "blocks.7.hook_resid_pre"\n', "", 7, "ensemble.hookpoint is missing, expected one here", ""),
    (TRAINS, 'source = "corpus/*.txt"', "", 6, "tokens.source is missing, expected files or hf:NAME", ""),
    (TRAINS, '"corpus/*.txt"', "[]", 7, "tokens.source = [], expected a text in quotes, or a list", ""),
    (TRAINS, '"corpus/*.txt"', '"corpus/*.md"', 7, 'tokens.source = "corpus/*.md", expected documents that', "found no file"),
    (TRAINS, '"corpus/*.txt"', '"corpus"', 7, 'tokens.source = "corpus", expected documents', "is a folder"),
    (TRAINS, '"corpus/*.txt"', '"bad.txt"', 7, 'tokens.source = "bad.txt", expected documents', "is not UTF-8"),
    (TRAINS, '"corpus/*.txt"', '"a.jsonl#field=x"', 7, "tokens.source = ", "does not have 'x', it has body"),
    (TRAINS, "[[e", "eval = 0\n[[e", 8, "tokens.eval = 0, expected a whole number of at least 1", ""),
    (TRAINS, "[[e", "eval = 2.5\n[[e", 8, "tokens.eval = 2.5, expected a whole number", ""),
    (TRAINS, "[[e", "eval = inf\n[[e", 8, "tokens.eval = Infinity, expected a whole number", ""),
    (TRAINS, "[[e", "n_ctx = 1\n[[e", 8, "tokens.n_ctx = 1, expected a whole number of at least 2", ""),
    (TRAINS, "[[e", 'bos = "exlude"\n[[e', 8, 'tokens.bos = "exlude", expected exclude or include', "did you mean exclude?"),
    (TRAINS, "[[e", 'held_out = "no"\n[[e', 8, 'tokens.held_out = "no", expected documents', "found no file"),
    (TRAINS, "[[e", "lr = 1\n[[e", 8, "tokens.lr is not known here", "it belongs to train = { }"),
    (IMPORTS, "[[e", '[tokens]\nsource = "corpus/*"\n[[e', 3, "tokens stand without [model], expected one", ""),
    (TRAINS, 'name = "e"\n', "", 8, "ensemble.name is missing, expected the ensemble's name", ""),
    (TRAINS, "train = { }", "", 8, "ensemble has neither import nor train, expected one of them", ""),
    (TRAINS, "train = { }", 'train = { }\nimport = "ckpts/*"', 11, "ensemble.import stands beside train", "two ensembles"),
    (TRAINS, "train = { }", 'train = "topk"', 10, 'ensemble.train = "topk", expected a table', "between { and }"),
    (TRAINS, "train = { }", "train = { }\nseeds = 8", 11, "ensemble.seeds is not known here", "belongs to train = { }"),
    (TRAINS, "{ }", '{ variant = "relo", l1 = 1.0 }', 10, 'ensemble.train.variant = "relo", expected topk', "mean relu?"),
    (TRAINS, "{ }", "{ l1 = 1.0 }", 10, "ensemble.train.l1 is a setting of relu or gated, expected those of topk", "leave it"),
    (TRAINS, "{ }", '{ variant = "relu", k = 4 }', 10, "ensemble.train.k is a setting of topk", "those of relu"),
    (TRAINS, "{ }", '{ variant = "matryoshka", group_fracs = [0.5, 0.4] }', 10, "ensemble.train.group_fracs = ", "sum is 1"),
    (TRAINS, "{ }", '{ variant = "matryoshka", d_sae = 16 }', 10, "ensemble.train does not fit together", "of 16 features empty"),
    (TRAINS, "{ }", '{ variant = "archetypal", centroids = "no" }', 10, "ensemble.train.centroids", "independent or random"),
    (SOURCES, "seeds = 4", "seeds = [1, 2]", 10, "sources.train.seeds = [1, 2], expected how many, such as 2", "seed 0's"),
    (SOURCES, "seeds = 4", 'data_order = "shared"', 10, "sources.train.data_order is what the causes", "leave it out"),
    (SOURCES, "seeds = 4", 'variant = "archetypal"', 10, 'sources.train.variant = "archetypal", expected one whose', "random rows"),
    (SOURCES, "seeds = 4", "k = 600", 10, "sources.train.k = 600, expected at most d_sae (512)", "lower k"),
    (SOURCES, '["order"]', '["ordre"]', 11, 'sources.causes = ["ordre"], holds "ordre"', "did you mean order?"),
    (SOURCES, '["order"]', '["order"]\nmodels = ["gpt2"]', 12, 'sources.models = ["gpt2"], expected at least two models', ""),
    (TRAINS, "{ }", '{ start = "k-means" }', 10, "ensemble.train.start = ", "kmeans-independent or mixtures"),
    (TRAINS, "{ }", '{ preprocessing = "centered" }', 10, "ensemble.train.preprocessing", "did you mean centred?"),
    (TRAINS, "{ }", '{ decoder_bias = 0 }', 10, "ensemble.train.decoder_bias = 0, expected learned or none", ""),
    (TRAINS, "{ }", '{ variant = "archetypal", start = "mixtures" }', 10, "ensemble.train.start is a setting", "of archetypal"),
    (TRAINS, "{ }", "{ d_sea = 64 }", 10, "ensemble.train.d_sea is not known here", "did you mean d_sae?"),
    (TRAINS, "{ }", "{ k = 600 }", 10, "ensemble.train.k = 600, expected at most d_sae (512)", "lower k or raise d_sae"),
    (TRAINS, "{ }", "{ d_sae = 4 }", 10, "ensemble.train.d_sae = 4, expected at least k (8)", "raise d_sae"),
    (TRAINS, "{ }", "{ tokens = 100 }", 10, "ensemble.train.tokens leaves no step", "batch 1024"),
    (TRAINS, "{ }", "{ batch = 0 }", 10, "ensemble.train.batch = 0, expected a whole number of at least 1", ""),
    (TRAINS, "{ }", "{ seeds = [0, 1, 0] }", 10, "ensemble.train.seeds = [0, 1, 0], expected every seed once", ""),
    (TRAINS, "{ }", "{ seeds = [-1, 1] }", 10, "ensemble.train.seeds = [-1, 1], expected a list of whole numbers", ""),
    (TRAINS, "{ }", "{ seeds = 1 }", 10, "ensemble.train.seeds = 1, expected 2 to 1000 members", "single SAE"),
    (TRAINS, "{ }", "{ seeds = [4] }", 10, "ensemble.train.seeds = [4], expected 2 to 1000 members", ""),
    (TRAINS, "{ }", "{ lr = 0 }", 10, "ensemble.train.lr = 0, expected a number above 0", ""),
    (TRAINS, "{ }", "{ warmup_frac = 3 }", 10, "ensemble.train.warmup_frac = 3, expected a share from 0 to 1", ""),
    (TRAINS, "{ }", '{ data_order = "same" }', 10, 'ensemble.train.data_order = "same", expected shared or', ""),
    (TRAINS, "train = { }", "[ensemble.train]\n\nk = 0", 12, "ensemble.train.k = 0, expected a whole number", ""),
    (IMPORTS, '"ckpts/seed*"', '"ckpt/seed*"', 5, 'ensemble.import = "ckpt/seed*", expected SAE', "holds a.jsonl, bad.txt, ck"),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/sed*"', 5, 'ensemble.import = "ckpts/sed*"', "holds seed0, seed1, seed2, seed10"),
    (IMPORTS, '"ckpts/seed*"', '["ckpts/*", "ckpts/seed1"]', 5, "ensemble.import = ", "seed1 is matched twice"),
    (IMPORTS, '"ckpts/seed*"', "3", 5, "ensemble.import = 3, expected a text in quotes, or a list", ""),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nformat = "sealens"', 6, 'ensemble.format = "sealens"', "did you mean saelens?"),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nseeds = 4', 6, "ensemble.seeds = 4, expected a list", ""),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nshared_start = true', 6, "ensemble.shared_start = true, expected yes, no or", ""),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nforce = "yes"', 6, 'ensemble.force = "yes", expected true or false', ""),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nseed = 1', 6, "ensemble.seed is not known here", "did you mean seeds?"),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nsweep = { k = [1] }', 6, "ensemble.sweep stands beside import", "leave it out"),
    (IMPORTS, '"ckpts/seed*"', '"ckpts/*"\nk = 1', 6, "ensemble.k is not known here", "it belongs to train"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "part", "instead", "line", "begins", "says"), MISTAKES)
def test_one_mistake_is_one_problem(
    folder: Path, good: str, part: str, instead: str, line: int, begins: str, says: str
):
    (folder / "bad.txt").write_bytes(b"\xff")
    (folder / "a.jsonl").write_text('{"body": "x"}\n')
    assert read_study_file(written(folder, good))
    assert part in good
    ((at, problem),) = told(folder, good.replace(part, instead, 1))
    assert at == line
    assert problem.startswith(begins)
    assert says in problem


def test_training_needs_a_model_and_tokens(folder: Path):
    text = IMPORTS.replace('import = "ckpts/seed*"', "train = { }")
    assert told(folder, text) == [
        (5, "ensemble.train needs [model] and [tokens], expected both [model] and [tokens]; add what is missing")
    ]


def test_two_ensembles_of_one_name_are_told_with_both_lines(folder: Path):
    again = IMPORTS + '\n[[ensemble]]\nimport = "ckpts/seed*"\nname = "e"\n'
    assert told(folder, again) == [(9, 'ensemble.name = "e", expected another name: line 4 has it already')]


def test_a_data_set_needs_its_library(folder: Path, monkeypatch: pytest.MonkeyPatch):
    text = TRAINS.replace("corpus/*.txt", "hf:wikitext")
    monkeypatch.setattr("seedscope.engine.studies.studyfile.paths.find_spec", lambda name: None)
    ((line, problem),) = told(folder, text)
    assert line == 7
    assert "pip install 'seedscope[hub]'" in problem
    monkeypatch.setattr("seedscope.engine.studies.studyfile.paths.find_spec", lambda name: name)
    assert read_study_file(written(folder, text)).train_source == ("hf:wikitext",)


def test_saes_on_a_hub_are_named_beside_local_ones(folder: Path):
    text = IMPORTS.replace('"ckpts/seed*"', '["hf:owner/repo/layer.3/seed0", "hf:owner/repo@main/x", "ckpts/seed1"]')
    paths = read_study_file(written(folder, text)).ensembles[0].paths
    assert [str(path) for path in paths[:2]] == ["hf:owner/repo/layer.3/seed0", "hf:owner/repo@main/x"]
    assert paths[2] == folder / "ckpts" / "seed1"
    ((line, problem),) = told(folder, text.replace("hf:owner/repo/layer.3/seed0", "hf:owner"))
    assert line == 5
    assert 'expected hf:OWNER/REPO or hf:OWNER/REPO/FOLDER, found "hf:owner"' in problem


def test_every_format_that_importers_know_can_be_named(folder: Path):
    for format in FORMATS:
        text = IMPORTS + f'format = "{format}"\n'
        assert read_study_file(written(folder, text)).ensembles[0].format == format


def test_an_executor_is_read_and_its_misfits_are_told_with_their_lines(folder):
    found = read_study_file(written(folder, IMPORTS + '[executor]\nkind = "ray"\naddress = "head:6379"\ngpus = 1\n'))
    assert found.executor == ExecutorSettings("ray", address="head:6379", gpus=1)
    with pytest.raises(ValueError, match="3 problems") as caught:
        read_study_file(written(folder, IMPORTS + '[executor]\nkind = "slurm"\naddress = "h:1"\ntime = 0\nnodes = 2\n'))
    assert 'executor.address is a setting of ray, and kind = "slurm"; leave it out' in str(caught.value)
    assert "executor.time = 0, expected a whole number of at least 1" in str(caught.value)
    assert "executor.nodes is not known here" in str(caught.value)
