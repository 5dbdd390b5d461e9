"""Importing: what is refused leaves the root byte for byte as it was, and what is taken is in the catalogue as it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seedscope.engine.contract.files import only_writer
from seedscope.engine.saes import sae
from seedscope.engine.saes.importers.hub import local
from seedscope.engine.store import catalogue
from seedscope.engine.studies.import_ensemble import enrol
from support.imports import D_IN, D_SAE, SEEDS, K, content, make_run, refused
from support.layouts import HOOKPOINT, LAYOUTS, Layout, Run
from support.paths import CHECKPOINTS, ROOT

WEIGHTS = ("safetensors", "pt", "npz")

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def written(folder: Path, name: str = "saelens", run: Run | None = None) -> Path:
    LAYOUTS[name].write(folder, run or make_run(), K)
    return folder


def weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.removeprefix(".") in WEIGHTS)


def edit(path: Path, **settings: object) -> None:
    """Change settings of a JSON file; those that are None are left out."""
    held = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def held(root: Path, tmp_path: Path) -> Path:
    """A root whose study `mine` holds the ensemble `first`, without a hook point."""
    enrol(root, "mine", "first", [written(tmp_path / "first", "openai")])
    return root


# -- files that are not whole --------------------------------------------------------------------------------------


@each_layout
def test_a_truncated_file_is_refused(layout: Layout, root, tmp_path):
    layout.write(tmp_path / "files", make_run(), K)
    file = weights(tmp_path / "files")[-1]
    file.write_bytes(file.read_bytes()[:-100])
    with refused(root, str(file), "again"):
        enrol(root, "mine", "topk", [tmp_path / "files"])


@pytest.mark.parametrize("name", ["saelens", "sparsify", "dictionary-learning", "overcomplete", "safetensors"])
def test_weights_without_their_settings_are_refused(name, root, tmp_path):
    folder = written(tmp_path / "files", name)
    file = weights(folder)[-1]
    inside = [path for path in file.parent.glob("*.json") if path.stem in (file.stem, "cfg", "config")]
    assert len(inside) == 1
    inside[0].unlink()
    with refused(root, str(file.parent), inside[0].name):
        enrol(root, "mine", "topk", [folder])


@pytest.mark.parametrize(
    ("name", "file", "settings", "said"),
    [
        ("saelens", "seed_3/cfg.json", {"architecture": "lattice"}, "'lattice'"),
        ("sparsify", "layers.2/seed3/cfg.json", {"activation": "relu6"}, "'relu6'"),
        ("dictionary-learning", "trainer_2/config.json", {"trainer": {"dict_class": "CrossCoder"}}, "'CrossCoder'"),
        ("overcomplete", "seed_3.json", {"class": "VQSAE"}, "VQSAE"),
        ("safetensors", "sae_seed3.json", {"architecture": "lattice"}, "'lattice'"),
    ],
)
def test_an_unknown_architecture_is_refused_by_its_name(name, file, settings, said, root, tmp_path):
    folder = written(tmp_path / "files", name)
    edit(folder / file, **settings)
    with refused(root, said, "expected one of"):
        enrol(root, "mine", "topk", [folder])


def test_a_place_without_an_sae_is_refused(root, tmp_path):
    with refused(root, str(tmp_path / "nowhere"), "found no file or folder"):
        enrol(root, "mine", "topk", [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with refused(root, "found an empty folder"):
        enrol(root, "mine", "topk", [tmp_path / "empty"])
    with refused(root, "no path was given"):
        enrol(root, "mine", "topk", [])
    with refused(root, "format is 'keras'", "saelens"):
        enrol(root, "mine", "topk", [written(tmp_path / "files")], format="keras")
    with refused(root, "saelens", "expected sparsify"):
        enrol(root, "mine", "topk", [tmp_path / "files"], format="sparsify")


# -- orientation ---------------------------------------------------------------------------------------------------


def turned(path: Path, *names: str) -> None:
    """Some matrices of a safetensors file the other way round."""
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name].T.contiguous() for name in names}, path)


def test_matrices_that_lie_the_other_way_round_are_turned_and_that_is_said(root, tmp_path):
    straight = enrol(root, "mine", "straight", [written(tmp_path / "straight", "safetensors")])
    folder = written(tmp_path / "turned", "safetensors")
    for path in weights(folder):
        turned(path, "W_enc", "W_dec")
    found = enrol(root, "mine", "turned", [folder])
    assert [member.digest for member in found.members] == [member.digest for member in straight.members]
    for member in found.members:
        assert sum("transposed" in remark for remark in member.remarks) == 2
    assert not [member.remarks for member in straight.members if member.remarks]


def test_a_matrix_that_fits_neither_way_round_is_refused(root, tmp_path):
    folder = written(tmp_path / "files", "safetensors")
    file = weights(folder)[1]
    save_file(load_file(file) | {"W_enc": torch.zeros(D_IN + 1, D_SAE)}, file)
    with refused(root, str(file), f"({D_IN + 1}, {D_SAE})", f"({D_IN}, {D_SAE})"):
        enrol(root, "mine", "topk", [folder])


# -- members of one ensemble ---------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize(("size", "said"), [({"d_sae": D_SAE + 4}, "d_sae"), ({"d_in": D_IN + 2}, "d_in")])
def test_other_widths_in_one_ensemble_are_refused(layout: Layout, size, said, root, tmp_path):
    layout.write(tmp_path / "a", make_run(seeds=(0, 1)), K)
    layout.write(tmp_path / "b", make_run(seeds=(2,), **size), K)
    before = {"d_sae": D_SAE, "d_in": D_IN}[said]
    with refused(root, f"{said} {before}", f"{said} {size[said]}", "ensembles of their own"):
        enrol(root, "mine", "topk", [tmp_path / "a", tmp_path / "b"])


def test_another_number_of_active_features_is_refused(root, tmp_path):
    LAYOUTS["saelens"].write(tmp_path / "a", make_run(seeds=(0, 1)), 4)
    LAYOUTS["saelens"].write(tmp_path / "b", make_run(seeds=(2,)), 5)
    with refused(root, "k 4", "k 5"):
        enrol(root, "mine", "topk", [tmp_path / "a", tmp_path / "b"])


def test_one_seed_twice_is_refused_with_both_places(root, tmp_path):
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    with refused(root, str(first / "seed_0"), str(second / "seed_0"), "both have the seed 0", "--seeds"):
        enrol(root, "mine", "topk", [first / "seed_0", second / "seed_0"])
    with refused(root, "both have the seed 5"):
        enrol(root, "mine", "topk", [first], seeds=[5, 6, 5])
    with refused(root, "2 seeds were given for 3 SAEs"):
        enrol(root, "mine", "topk", [first], seeds=[5, 6])
    with refused(root, "-1"):
        enrol(root, "mine", "topk", [first], seeds=[-1, 5, 6])


def test_the_same_sae_twice_is_refused(root, tmp_path):
    folder = written(tmp_path / "files")
    with refused(root, str(folder / "seed_1"), "is given twice"):
        enrol(root, "mine", "topk", [folder, folder / "seed_1"])
    shutil.copytree(folder / "seed_1", folder / "seed_8")
    with refused(root, str(folder / "seed_1"), str(folder / "seed_8"), "hold the same SAE", "leave one out"):
        enrol(root, "mine", "topk", [folder])
    with refused(root, "hold the same SAE"):  # and is not mistaken for a shared start
        enrol(root, "mine", "topk", [folder], shared_start="no")


def test_one_sae_alone_is_an_ensemble_of_one(root, tmp_path):
    folder = written(tmp_path / "files")
    found = enrol(root, "mine", "topk", [folder / "seed_3"])
    assert len(found.members) == 1
    assert catalogue.read(root / "mine").ensemble("topk") == found


def test_members_stand_in_the_order_of_their_seeds_however_they_were_given(root, tmp_path):
    folder = written(tmp_path / "files")
    found = enrol(root, "mine", "topk", [folder / f"seed_{seed}" for seed in (3, 0, 1)])
    assert found.seeds == (0, 1, 3)
    assert [Path(member.source).name for member in found.members] == ["seed_0", "seed_1", "seed_3"]
    again = enrol(root, "mine", "named", [folder], seeds=[30, 10, 20])
    assert again.seeds == (10, 20, 30)
    assert [Path(member.source).name for member in again.members] == ["seed_1", "seed_3", "seed_0"]


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Capital", "../out", "", "a/b", "members", "x.json", ".hidden"])
def test_names_that_no_address_can_hold_are_refused(name, root, tmp_path):
    folder = written(tmp_path / "files")
    with refused(root, f"study name is {name!r}"):
        enrol(root, name, "topk", [folder])
    with refused(root, f"ensemble name is {name!r}"):
        enrol(root, "mine", name, [folder])


def test_a_name_in_use_is_refused_and_replaced_where_asked(held, tmp_path):
    other = written(tmp_path / "other", "saelens", make_run(d_sae=32))
    with refused(held, "first", "another name", "--replace"):
        enrol(held, "mine", "first", [other])
    before = catalogue.read(held / "mine").ensemble("first")
    found = enrol(held, "mine", "first", [other], replaced=True)
    plan = catalogue.read(held / "mine")
    assert plan.ensembles == (found,)
    assert found.folder != before.folder
    # The store that is published still names the former files: they stay until the next one.
    kept = {path.name for path in (held / "mine/sae/first").iterdir()}
    assert kept == {Path(each.folder).name for each in (before, found)}
    assert sae.load(held / "mine" / found.folder, found.seeds).d_sae == 32


def test_a_replacement_that_is_refused_leaves_the_former_ensemble(held, tmp_path):
    folder = written(tmp_path / "other")
    file = weights(folder)[0]
    file.write_bytes(file.read_bytes()[:-1])
    with refused(held, str(file)):
        enrol(held, "mine", "first", [folder], replaced=True)


def test_a_replacement_by_the_same_files_changes_nothing_and_mends_what_was_lost(held, tmp_path):
    """But for the order of a safetensors file's metadata, which that library leaves to chance."""
    plan, before = catalogue.read(held / "mine"), content(held)
    (ensemble,) = plan.ensembles
    for lost in (None, next((held / "mine/sae").rglob("*.safetensors"))):
        if lost:
            lost.unlink()
        enrol(held, "mine", "first", [tmp_path / "first"], replaced=True)
        assert catalogue.read(held / "mine") == plan
        assert content(held).keys() == before.keys()
        members = sae.load(held / "mine" / ensemble.folder, ensemble.seeds)
        assert [members.digest(index) for index in range(3)] == [member.digest for member in ensemble.members]


def test_a_second_ensemble_leaves_the_first_as_it_is(held, tmp_path):
    before = content(held)
    tokens = catalogue.Tokens(("a.txt",), n_ctx=64)
    enrol(held, "mine", "second", [written(tmp_path / "second")], model="gpt2", tokens=tokens)
    after = content(held)
    assert {path for path in before if after[path] != before[path]} == {f"mine/{catalogue.FILE}"}
    plan = catalogue.read(held / "mine")
    assert [each.name for each in plan.ensembles] == ["first", "second"]
    assert (plan.model, plan.tokens) == ("gpt2", tokens)
    enrol(held, "mine", "third", [written(tmp_path / "third")])  # what is not said again stays
    assert catalogue.read(held / "mine").model == "gpt2"


# -- a shared start ------------------------------------------------------------------------------------------------


def with_equal_rows(n: int) -> Run:
    """Members 0 and 3 share their first n decoder rows to the last bit."""
    run = make_run()
    run[3]["W_dec"][:n] = run[0]["W_dec"][:n]
    return run


@pytest.mark.parametrize("n", [1, 5, D_SAE])
def test_equal_rows_are_a_shared_start_and_contradict_its_denial(n, root, tmp_path):
    folder = written(tmp_path / "files", "saelens", with_equal_rows(n))
    with refused(root, "--shared-start no", f"{n} decoder rows", "seeds 0 and 3"):
        enrol(root, "mine", "topk", [folder], shared_start="no")
    for claimed in (None, "yes", "unknown"):
        found = enrol(root, "mine", f"claimed-{claimed}".lower(), [folder], shared_start=claimed)
        assert found.shared_start == "yes"
        assert [f"{n} decoder rows" in remark for remark in found.remarks] == [True]


def test_rows_without_a_direction_are_no_shared_start(root, tmp_path):
    run = make_run()
    for tensors in run.values():
        tensors["W_dec"][:4] = 0
    found = enrol(root, "mine", "topk", [written(tmp_path / "files", "saelens", run)], shared_start="no")
    assert (found.shared_start, found.remarks) == ("no", ())


def test_decoder_rows_that_are_not_finite_are_kept_as_zeros_and_that_is_said(root, tmp_path):
    run = make_run()
    run[3]["W_dec"][4, 2] = np.nan
    found = enrol(root, "mine", "topk", [written(tmp_path / "files", "saelens", run)])
    members = sae.load(root / "mine" / found.folder, found.seeds)
    assert not members.W_dec[2, 4].any()
    assert torch.isfinite(members.W_dec).all()
    assert [member.remarks for member in found.members] == [
        (),
        (),
        ("1 decoder row not finite (NaN or infinite), set to zero: without a direction",),
    ]


def test_a_diverged_member_is_refused(root, tmp_path):
    run = make_run()
    run[1]["b_enc"][:3] = np.inf
    folder = written(tmp_path / "files", "saelens", run)
    with refused(root, str(folder / "seed_1" / "sae_weights.safetensors"), "b_enc (3 of"):
        enrol(root, "mine", "topk", [folder])


def test_without_evidence_the_start_is_what_is_said(root, tmp_path):
    folder = written(tmp_path / "files")
    for claimed, expected in ((None, "unknown"), ("yes", "yes"), ("no", "no"), ("unknown", "unknown")):
        found = enrol(root, "mine", f"claimed-{claimed}".lower(), [folder], shared_start=claimed)
        assert (found.shared_start, found.remarks) == (expected, ())


def test_common_archetypes_are_a_shared_start(root):
    files = [CHECKPOINTS / "overcomplete" / f"ra_topk_seed{seed}.pt" for seed in (0, 1)]
    with refused(root, "--shared-start no", "archetypes"):
        enrol(root, "mine", "archetypal", files, shared_start="no")
    assert enrol(root, "mine", "archetypal", files).shared_start == "yes"


# -- hook points ---------------------------------------------------------------------------------------------------


def test_another_hook_point_than_the_files_name_is_refused_unless_forced(root, tmp_path):
    folder = written(tmp_path / "files")
    with refused(root, "blocks.3.hook_mlp_out", HOOKPOINT, str(folder / "seed_0"), "--force"):
        enrol(root, "mine", "topk", [folder], hookpoint="blocks.3.hook_mlp_out")
    found = enrol(root, "mine", "topk", [folder], hookpoint="blocks.3.hook_mlp_out", force=True)
    assert found.hookpoint == "blocks.3.hook_mlp_out"
    assert [remark.startswith("forced: ") and HOOKPOINT in remark for remark in found.remarks] == [True]
    assert all(member.trained_on.endswith(HOOKPOINT) for member in found.members)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("saelens", None),
        ("saelens", HOOKPOINT),
        ("saelens", "model.layers.2"),
        ("sparsify", "layers.2"),
        ("sparsify", "model.layers.2"),
        ("sparsify", HOOKPOINT),
        ("sparsify", "transformer.h.2"),
        ("dictionary-learning", None),
        ("dictionary-learning", "layers.2"),
        ("openai", "blocks.4.hook_mlp_out"),
    ],
)
def test_a_hook_point_may_be_given_in_any_spelling(name, given, root, tmp_path):
    found = enrol(root, "mine", "topk", [written(tmp_path / "files", name)], hookpoint=given)
    assert found.hookpoint == (given or HOOKPOINT)
    assert found.remarks == ()


@pytest.mark.parametrize("given", ["layers.3", "blocks.2.hook_resid_pre", "layers.2.mlp", "blocks.12.hook_resid_post"])
def test_another_block_or_another_site_of_it_is_another_hook_point(given, root, tmp_path):
    with refused(root, given, "layers.2"):
        enrol(root, "mine", "topk", [written(tmp_path / "files", "sparsify")], hookpoint=given)


def test_gemma_scopes_folders_name_a_layer_and_no_site(root, tmp_path):
    for layer in (12, 13):
        folder = tmp_path / f"gemma-scope-2b-pt-att/layer_{layer}/width_20"
        LAYOUTS["gemma-scope"].write(folder, make_run(), K)
    folder = tmp_path / "gemma-scope-2b-pt-att/layer_12"
    assert enrol(root, "mine", "att", [folder], hookpoint="layers.12.self_attn").hookpoint == "layers.12.self_attn"
    with refused(root, "layers.1.self_attn", "layer_12"):
        enrol(root, "mine", "other", [folder], hookpoint="layers.1.self_attn")
    both = [
        tmp_path / f"gemma-scope-2b-pt-att/layer_{layer}/width_20/run_{run}" for layer, run in ((12, "a"), (13, "b"))
    ]
    with refused(root, "layer_12", "layer_13", "--force"):
        enrol(root, "mine", "both", both)


def test_members_of_two_models_are_refused_unless_forced(root, tmp_path):
    folder = written(tmp_path / "files")
    metadata = json.loads((folder / "seed_1/cfg.json").read_text())["metadata"]
    edit(folder / "seed_1/cfg.json", metadata=metadata | {"model_name": "gpt2"})
    with refused(root, "model pythia-70m", "model gpt2", "--force"):
        enrol(root, "mine", "topk", [folder])
    found = enrol(root, "mine", "topk", [folder], force=True)
    assert [any("forced" in remark for remark in member.remarks) for member in found.members] == [False, True, False]
    assert [member.trained_on.split(" at ")[0] for member in found.members] == ["pythia-70m", "gpt2", "pythia-70m"]


# -- what is kept --------------------------------------------------------------------------------------------------


@each_layout
def test_what_is_kept_are_the_tensors_that_were_given(layout: Layout, root, tmp_path):
    run = make_run()
    layout.write(tmp_path / "files", run, K)
    found = enrol(root, "mine", "topk", [tmp_path / "files"], seeds=None if layout.knows_seeds else SEEDS)
    members = sae.load(root / "mine" / found.folder, found.seeds)
    assert found.seeds == SEEDS
    for index, (seed, tensors) in enumerate(run.items()):
        assert members.digest(index) == found.members[index].digest
        np.testing.assert_array_equal(members.W_dec.detach()[index], tensors["W_dec"])
        np.testing.assert_array_equal(members.W_enc.detach()[index], tensors["W_enc"])
        assert found.members[index].seed == seed
    x = np.random.default_rng(9).normal(size=(50, D_IN))
    codes = members.encode(torch.from_numpy(x).float())
    for index, tensors in enumerate(run.values()):
        wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        dense = torch.zeros(50, D_SAE).scatter_add_(1, codes.indices[:, index], codes.values[:, index]).detach()
        np.testing.assert_allclose(dense, layout.codes(x, wide, K), atol=1e-4)


@pytest.mark.parametrize(("name", "variant"), [("saelens", "topk"), ("saelens-3", "topk"), ("sparsify", "topk")])
def test_a_topk_sae_is_called_so_whatever_wrote_it(name, variant, root, tmp_path):
    assert enrol(root, "mine", "one", [written(tmp_path / "files", name)]).variant == variant


def test_an_interrupted_import_leaves_nothing(root, tmp_path):
    folder = written(tmp_path / "files")

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with refused(root, error=KeyboardInterrupt), only_writer(root / "mine"):
        enrol(root, "mine", "topk", [folder], report=interrupt)
    assert list(root.iterdir()) == []


def test_a_refused_import_leaves_no_study_under_its_lock(root, tmp_path):
    with refused(root), only_writer(root / "mine"):
        enrol(root, "mine", "topk", [tmp_path / "nowhere"])
    assert list(root.iterdir()) == []


# -- the catalogue -------------------------------------------------------------------------------------------------


def test_a_catalogue_is_read_back_as_it_was_written(tmp_path):
    members = (
        catalogue.MemberPlan(3, "ab", "/x", "sae-lens 6", "gpt2 at h.1", ("a", "b")),
        catalogue.MemberPlan(7, "cd"),
    )
    ensembles = (
        catalogue.EnsemblePlan(
            "a", "imported", "sae/a/1", members, "topk", "h.1", "yes", remarks=("shared",), made_from="0"
        ),
        catalogue.EnsemblePlan(
            "b", "trained", "sae/b/1", members, data_order="shared", train_tokens=9, batch=2, lr=1e-3
        ),
    )
    tokens = catalogue.Tokens(("a*.txt", "hf:b"), 10, 64, "include", "exclude", "held-out", "text")
    for plan in (catalogue.StudyPlan("mine"), catalogue.StudyPlan("mine", "gpt2", tokens, 0.6, 0.1, "x", ensembles)):
        catalogue.write(plan, tmp_path / "mine")
        assert catalogue.read(tmp_path / "mine") == plan
    assert catalogue.read(tmp_path / "other") is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("}", ""),
        ('"seedscope.study"', '"something.else"'),
        ('"version": 1', '"version": 99'),
        ('"version": 1,', ""),
        ('"theta": 0.7', '"theta": "high"'),
        ('"theta": 0.7', '"theta": 7'),
        ('"seed": 0', '"seed": "none"'),
        ('"name": "first"', '"name": "../first"'),
        ('"origin": "imported"', '"origin": "found"'),
    ],
)
def test_a_damaged_catalogue_is_refused_and_left_alone(old, new, held, tmp_path):
    file = held / "mine" / catalogue.FILE
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1) if old != "}" else text.rstrip("}\n"))
    more = written(tmp_path / "more")
    with refused(held, str(file)):
        enrol(held, "mine", "second", [more])


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "\x00\x01", '{"format": "seedscope.study", "version": 1}'])
def test_a_catalogue_that_is_none_is_refused_and_left_alone(text, held, tmp_path):
    file = held / "mine" / catalogue.FILE
    file.write_text(text)
    more = written(tmp_path / "more")
    with refused(held, str(file)):
        enrol(held, "mine", "second", [more])


# -- a hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/", "hf:/name", "hf:owner/@main", "hf://"])
def test_malformed_names_on_a_hub_are_refused(name, root):
    with refused(root, name, "hf:OWNER/REPO"):
        enrol(root, "mine", "topk", [name])


@pytest.mark.parametrize("name", ["hf:owner/a b", "hf:-owner/name", "hf:owner/name--x"])
def test_names_that_no_repository_can_have_are_refused(name, root):
    with refused(root, name, "check the name"):
        enrol(root, "mine", "topk", [name])


def test_a_hub_that_cannot_be_reached_is_one_clear_error(tmp_path):
    code = "import sys; from seedscope.engine.saes.importers.hub import local; local(sys.argv[1])"
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    caught = code.replace("local(sys.argv[1])", "\ntry: local(sys.argv[1])\nexcept ValueError as e: print(e)")
    done = subprocess.run(
        [sys.executable, "-c", caught, "hf:owner/name/topk"],
        cwd=ROOT, env=os.environ | settings, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith("hf:owner/name/topk cannot be downloaded (")
    assert "network" in line


def test_any_other_path_is_a_path(tmp_path):
    assert local(tmp_path) == tmp_path
    assert local("a/b") == Path("a/b")
    assert local("~/a") == Path.home() / "a"
