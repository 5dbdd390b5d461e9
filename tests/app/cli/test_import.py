"""Three seeds of every library, from files to pages: one `seedscope import` each, one `seedscope analyze`, the real server."""

import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.demo import stdlib
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from support.commands import assert_one_line, run
from support.golden import unit_rows
from support.layouts import HOOKPOINT, LAYOUTS, Layout, Tensors
from support.paths import ROOT
from support.reading import browse, text_of

SEEDS, N_CTX, D_SAE, K = (0, 1, 3), 64, 96, 2
STUDY = "mine"
ANALYSED = "match, activity, ablate, explain"  # the rest follows from these and is the same for every library
LOOKED_AT = (0, 17, 95)  # features whose pages are opened

each_layout = pytest.mark.parametrize("name", LAYOUTS)


class Brought(NamedTuple):
    """A root after every layout was imported into one study that was analysed once."""

    root: Path
    folders: dict[str, Path]
    imported: dict[str, str]  # what each import printed
    analysed: str


@pytest.fixture(scope="module")
def members(ensemble_saes: sae.SAE) -> dict[int, Tensors]:
    """Three of the small study's members, as arrays."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    return {seed: {name: getattr(ensemble_saes, name).detach()[seed].numpy() for name in names} for seed in SEEDS}


@pytest.fixture(scope="module")
def texts(corpus, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The held-out documents as text files."""
    folder = tmp_path_factory.mktemp("texts")
    for name, text in corpus.held_out:
        (folder / Path(name).with_suffix(".txt").name).write_text(text)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def brought(members, texts, tmp_path_factory: pytest.TempPathFactory) -> Brought:
    root, files = tmp_path_factory.mktemp("brought"), tmp_path_factory.mktemp("files")
    folders, printed = {name: files / name for name in LAYOUTS}, {}
    settings = ["--root", root, "--model", stdlib.MODEL_DIR, "--hookpoint", HOOKPOINT, "--n-ctx", N_CTX, "--quiet"]
    settings += [word for text in texts for word in ("--tokens", text)]
    for name, layout in LAYOUTS.items():
        layout.write(folders[name], members, K)
        seeds = [] if layout.knows_seeds else ["--seeds", ",".join(map(str, SEEDS))]
        done = run("import", STUDY, name, folders[name], *settings, *seeds)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        printed[name] = done.stdout
    done = run("analyze", STUDY, "--root", root, "--only", ANALYSED.replace(" ", ""), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Brought(root, folders, printed, done.stdout)


@pytest.fixture(scope="module")
def visitor(brought) -> Iterator[TestClient]:
    with browse(brought.root) as client:
        yield client


@pytest.fixture(scope="module")
def activations(texts, language_model: LanguageModel) -> np.ndarray:
    """(tokens, d_in) what leaves the third block, as float16 keeps it: by the model's own hidden states."""
    tokenizer, rows = language_model.tokenizer, []
    for text in texts:
        ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), N_CTX - 1):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + N_CTX - 1]]])
            with torch.no_grad():
                states = language_model.network(window, output_hidden_states=True).hidden_states
            rows.append(states[3][0, 1:])
    return torch.cat(rows).half().double().numpy()


@pytest.fixture(scope="module")
def best(members) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{seed: (cosines, partners)}, each (d_sae, comparisons), from the decoder rows alone."""
    rows = {seed: unit_rows(held["W_dec"].astype(np.float64)) for seed, held in members.items()}
    found = {}
    for seed, mine in rows.items():
        cosines = [mine @ theirs.T for other, theirs in rows.items() if other != seed]
        found[seed] = np.stack([c.max(1) for c in cosines], 1), np.stack([c.argmax(1) for c in cosines], 1)
    return found


def table(client: TestClient, name: str) -> dict[tuple[int, int], dict[str, Any]]:
    """{(seed, feature): row} of an ensemble's feature table."""
    found = client.get(f"/s/{STUDY}/{name}/features.json", params={"limit": 500}).json()
    assert found["total"] == len(found["rows"]) == len(SEEDS) * D_SAE
    return {(row["seed"], row["feature"]): row for row in found["rows"]}


@pytest.fixture(scope="module")
def tables(visitor) -> Mapping[str, dict[tuple[int, int], dict[str, Any]]]:
    return {name: table(visitor, name) for name in LAYOUTS}


# -- the commands --------------------------------------------------------------------------------------------------


@each_layout
def test_an_import_says_what_it_found_and_what_comes_next(brought, name):
    layout: Layout = LAYOUTS[name]
    printed = brought.imported[name]
    assert f"ensemble {name}: 3 members" in printed
    assert [f"seed {seed} " in printed for seed in SEEDS] == [True] * 3
    assert (layout.library or "library unknown") in printed
    assert str(brought.folders[name]) in printed
    assert "forced" not in printed
    assert f"seedscope analyze {STUDY} --root {brought.root}" in printed


@each_layout
def test_one_analysis_computes_what_was_asked_for_every_library(brought, name):
    (line,) = [line for line in brought.analysed.splitlines() if line.startswith(f"{STUDY}/{name}:")]
    assert f"3 × {D_SAE} features" in line
    assert line.endswith(f"computed: {ANALYSED}")


# -- the pages -----------------------------------------------------------------------------------------------------


@each_layout
def test_every_page_of_an_imported_ensemble_opens(visitor, brought, name):
    place = f"/s/{STUDY}/{name}"
    for path in (place, f"{place}/features", f"{place}/members", f"{place}/members?a=0&b=3"):
        answer = visitor.get(path)
        assert answer.status_code == 200, path
        assert name in text_of(answer.text)
    for seed in SEEDS:
        for feature in LOOKED_AT:
            assert visitor.get(f"{place}/{seed}/{feature}").status_code == 200


def test_home_and_study_list_every_ensemble(visitor, brought):
    for path in ("/", f"/s/{STUDY}"):
        page = text_of(visitor.get(path).text)
        assert [name for name in LAYOUTS if name not in page] == []


@each_layout
def test_a_feature_says_which_file_it_is_from(visitor, brought, name):
    layout: Layout = LAYOUTS[name]
    found = visitor.get(f"/s/{STUDY}/{name}/1/5.json").json()
    assert found["source"].startswith(str(brought.folders[name]))
    assert found["library"] == layout.library
    assert found["hookpoint"] == HOOKPOINT
    assert layout.hookpoint is None or layout.hookpoint in found["trained_on"]
    assert "missing" in found
    further = (
        "--only loss",
        "--only subspaces",
        "--only predictor",
        "--only function",
        "--only shared_spans",
    )  # what was not asked for
    assert not [lack for lack in found["missing"] if lack["command"] and not lack["command"].endswith(further)]


# -- the numbers ---------------------------------------------------------------------------------------------------


@each_layout
def test_best_cosines_and_partners_are_those_of_the_decoder_matrices(visitor, tables, best, name):
    for seed in SEEDS:
        cosines, partners = best[seed]
        stored = np.array([tables[name][seed, feature]["cosines"] for feature in range(D_SAE)])
        np.testing.assert_allclose(stored, cosines, atol=1e-6)
        for feature in LOOKED_AT:
            matches = visitor.get(f"/s/{STUDY}/{name}/{seed}/{feature}.json").json()["matches"]
            assert [match["seed"] for match in matches] == [other for other in SEEDS if other != seed]
            assert [match["partner"] for match in matches] == partners[feature].tolist()


def test_matches_do_not_depend_on_the_library(tables):
    first, *others = tables.values()
    for other in others:
        for key, row in first.items():
            assert other[key]["n_matched"] == row["n_matched"]
            np.testing.assert_allclose(other[key]["cosines"], row["cosines"], atol=1e-6)


@each_layout
def test_densities_are_those_of_a_plain_forward_pass(tables, members, activations, name):
    """Where the k-th and the next pre-activation are nearly equal, sums in another order may choose the other one."""
    for seed, held in members.items():
        fired = LAYOUTS[name].codes(activations, {key: t.astype(np.float64) for key, t in held.items()}, K) > 0
        stored = np.array([tables[name][seed, feature]["n_active"] for feature in range(D_SAE)])
        assert 0 < fired.mean() < 0.5
        assert np.abs(stored - fired.sum(0)).max() <= 2
        assert np.abs(stored - fired.sum(0)).sum() <= 1e-3 * fired.sum()
        density = [tables[name][seed, feature]["density"] for feature in range(D_SAE)]
        np.testing.assert_allclose(density, stored / len(activations), rtol=1e-6)


def test_densities_of_one_forward_pass_do_not_depend_on_the_library(tables):
    """Exactly: the same tensors in the same engine; the two that fold a bias differ in the last bits of a sum."""
    same = [name for name, layout in LAYOUTS.items() if layout.codes is LAYOUTS["saelens"].codes]
    assert len(same) >= 5
    for name in same:
        for key, row in tables["saelens"].items():
            slack = 2 if name == "overcomplete" else 0
            assert abs(tables[name][key]["n_active"] - row["n_active"]) <= slack


# -- what is refused -----------------------------------------------------------------------------------------------


def content(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_a_refused_import_is_one_line_and_leaves_no_study(members, tmp_path):
    LAYOUTS["saelens"].write(tmp_path / "files", members, K)
    (tmp_path / "files" / "seed_3" / "cfg.json").unlink()
    (tmp_path / "root").mkdir()
    done = run("import", "other", "topk", tmp_path / "files", "--root", tmp_path / "root", "--quiet")
    assert_one_line(done, "found no cfg.json in", "seed_3", "copy it there")
    assert content(tmp_path / "root") == {}


@pytest.mark.parametrize("command", ["import", "analyze"])
def test_a_study_that_another_process_changes_turns_the_second_away(brought, command):
    words = ["another", brought.folders["saelens"]] if command == "import" else []
    before = content(brought.root)
    with open(brought.root / STUDY / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(command, STUDY, *words, "--root", brought.root, "--quiet")
    assert_one_line(done, "another process is building", str(brought.root / STUDY))
    assert content(brought.root) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hookpoint", "layers.4"], ["layers.4", f"saelens {HOOKPOINT}", "--replace"]),
        (["--n-ctx", "4096", "--theta", "0.5"], ["n_ctx is 4096", "512"]),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_and_not_kept(brought, words, said):
    before = content(brought.root)
    assert_one_line(run("analyze", STUDY, "--root", brought.root, "--quiet", *words), *said)
    assert content(brought.root) == before


def test_a_model_named_by_a_relative_path_is_found_from_anywhere(members, tmp_path):
    LAYOUTS["saelens"].write(tmp_path / "files", members, K)
    model = stdlib.MODEL_DIR.relative_to(ROOT)
    done = run("import", "mine", "topk", tmp_path / "files", "--root", tmp_path / "root", "--model", model, "--quiet")
    assert done.returncode == 0, done.stderr
    assert Path(catalogue.read(tmp_path / "root" / "mine").model) == stdlib.MODEL_DIR
