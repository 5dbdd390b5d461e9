"""`seedscope pool`: the small study's ensemble end to end, what is written, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.importers.recognise import recognise
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.pools.build import pool_ensemble
from seedscope.engine.studies.pools.settings import PoolSettings
from seedscope.engine.studies.publish import publish
from support.commands import assert_one_line, run
from support.golden import explained_variance, topk_codes, unit_rows
from support.reading import browse, figures_of, text_of
from support.studies import ENSEMBLE, STUDY, members_that_agree, publish_study

SMALL = (STUDY, ENSEMBLE, "--tokens", 2048, "--device", "cpu")
KINDS = ["pool", "halves", "members", "subset", "fresh"]


@pytest.fixture(scope="module")
def root(study_root, corpus, tmp_path_factory) -> Path:
    """The small study on text in files: a held-out document to measure on, and one to train on beside it."""
    root = tmp_path_factory.mktemp("pool")
    folder = root / STUDY
    shutil.copytree(study_root / STUDY, folder, ignore=shutil.ignore_patterns("parts", "*.duckdb", ".lock"))
    (root / "held-out.txt").write_text(corpus.held_out[0][1])
    (root / "train.txt").write_text("\n".join(text for _, text in corpus.train[:6]))
    plan = catalogue.read(folder)
    catalogue.write(replace(plan, tokens=replace(plan.tokens, source=(str(root / "held-out.txt"),))), folder)
    return root


@pytest.fixture(scope="module")
def pooled(root) -> tuple[dict, Path, str]:
    """What `pool.json` says, its folder, and what was printed."""
    done = run("pool", *SMALL, "--text", root / "train.txt", "--loss-tokens", 200, "--root", root)
    assert done.returncode == 0, done.stderr
    assert "SAEs on 2,048 more tokens" in done.stderr
    folder = root / STUDY / "pool" / ENSEMBLE
    return json.loads((folder / "pool.json").read_text()), folder, done.stdout


def members(root: Path) -> sae.SAE:
    entry = catalogue.read(root / STUDY).ensemble(ENSEMBLE)
    return sae.load(root / STUDY / entry.folder, entry.seeds)


def test_every_pooled_feature_says_where_it_came_from_and_who_holds_it(root, pooled):
    told, _, printed = pooled
    units = unit_rows(members(root).W_dec.detach().double().numpy())
    features = told["features"]
    assert len({(each["seed"], each["feature"]) for each in features}) == len(features) == told["d_sae"] == 96
    for each in features:
        best = (units @ units[each["seed"], each["feature"]]).max(1)
        if np.abs(best - told["theta"]).min() > 1e-5:
            assert each["holders"] == (best >= told["theta"]).sum()
    order = [(each["holders"], each["density"]) for each in features]
    assert order == sorted(order, reverse=True)
    chosen = np.stack([units[each["seed"], each["feature"]] for each in features])
    assert (chosen @ chosen.T - 2 * np.eye(96)).max() < told["theta"] + 1e-6
    assert f"{sum(told['unique_by_holders']):,} unique features" in printed


def test_the_saved_pool_is_read_as_saelens_wrote_it_and_is_the_one_that_the_record_names(pooled):
    told, folder, _ = pooled
    (found,) = recognise(folder / "sae")
    assert found.format == "saelens"
    held = read(folder / "sae")
    again = sae.assemble({name: tensor[None] for name, tensor in held.tensors.items()}, held.convention, (0,))
    assert again.digest(0) == told["digest"]
    config = json.loads((folder / "sae" / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["d_sae"]) == ("topk", 2, 96)
    assert config["metadata"]["seedscope_digest"] == told["digest"]
    assert config["metadata"]["seedscope_pool_of"] == [each["digest"] for each in told["members"]]


def test_curves_say_what_every_kind_does_at_every_length(pooled):
    told, _, printed = pooled
    assert [each["kind"] for each in told["curves"]] == [kind for _ in range(5) for kind in KINDS]
    assert [each["tokens"] for each in told["curves"][:: len(KINDS)]] == [0, 512, 1024, 2048, 4096]
    for each in told["curves"]:
        n = 1 if each["kind"] == "pool" else 2
        assert [len(each[name]) for name in ("ev", "l0", "dead", "loss")] == [n] * 4
        assert (each["shared"] is None) == (each["mmcs"] is None) == (n == 1)
        assert all(0 < value <= 2 for value in each["l0"])
        assert all(loss > 0 for loss in each["loss"])
    at = {(each["kind"], each["tokens"]): each for each in told["curves"]}
    assert (
        at["halves", 0]["shared"] != at["halves", 4096]["shared"] or at["halves", 0]["ev"] != at["halves", 4096]["ev"]
    )
    assert told["halves"] == [[0, 2], [1, 3]]
    assert told["fresh"]["seeds"] == [4, 5]
    assert told["training"]["text"].endswith("train.txt")
    assert (told["recipe"]["silent_after"], told["recipe"]["lr"], told["fresh"]["lr"]) == (10**9, 0.03, 0.03)
    assert told["remarks"] == []
    assert "control: two fresh seeds" in printed
    assert f"{np.mean(at['subset', 4096]['ev']):.4f}" in printed


def test_ev_of_the_members_is_that_of_the_definition(root, pooled, language_model):
    from seedscope.engine.activations.harvest import stream, tokenize
    from seedscope.engine.activations.outliers import find_outliers

    tokens = tokenize([("held-out", (root / "held-out.txt").read_text())], language_model, n_ctx=64)
    entry = catalogue.read(root / STUDY).ensemble(ENSEMBLE)
    rows = torch.cat([batch.rows for batch in stream(language_model, tokens, entry.hookpoint)]).double().numpy()
    rows = np.delete(rows, find_outliers(rows.astype(np.float32)), 0)
    t = {
        name: getattr(members(root), name)[0].detach().double().numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    x_hat = topk_codes(rows, t["W_enc"], t["b_enc"], t["b_dec"], 2) @ t["W_dec"] + t["b_dec"]
    (told,) = (each for each in pooled[0]["curves"] if (each["kind"], each["tokens"]) == ("members", 0))
    assert told["ev"][0] == pytest.approx(explained_variance(rows, x_hat), abs=2e-3)
    assert pooled[0]["evaluation"]["rows"] == len(rows)


def test_the_next_publish_shows_it_with_its_losses(root, pooled):
    analyse(root / STUDY, only=("match",), device="cpu", progress=Progress(quiet=True))
    publish(root / STUDY)
    page = browse(root).get(f"/s/{STUDY}/pool")
    shown, drawn = text_of(page.text), figures_of(page.text)
    assert "After 2,048 more tokens" in shown
    means = {trace["name"]: trace for trace in drawn["pool_loss"]["data"] if "lines" in trace["mode"]}
    for kind, name in (("pool", "all seeds"), ("subset", "random")):
        losses = [np.mean(each["loss"]) for each in pooled[0]["curves"] if each["kind"] == kind]
        assert means[name]["y"] == pytest.approx(losses, abs=1e-5)
        assert f"{losses[3]:.3f}" in shown or kind == "subset"


def test_nothing_but_the_folder_is_left_and_it_gives_way_when_told(root, pooled):
    _, folder, _ = pooled
    assert sorted(path.name for path in folder.parent.iterdir()) == [ENSEMBLE]
    assert sorted(path.name for path in folder.iterdir()) == ["pool.json", "sae", "sums.json"]
    assert not (root / STUDY / "scratch").exists()
    assert_one_line(run("pool", *SMALL, "--root", root, "--quiet"), "is there already", "--replace")


def test_without_post_training_the_pool_is_the_members_own_features(root, tmp_path):
    done = run(
        "pool", STUDY, ENSEMBLE, "--tokens", 0, "--loss-tokens", 0, "--out", tmp_path / "out", "--root", root, "--quiet"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads((tmp_path / "out" / "pool.json").read_text())
    assert {each["tokens"] for each in told["curves"]} == {0}
    assert told["recipe"] is None
    assert told["curves"][0]["loss"] is None
    from safetensors.torch import load_file

    held, own = load_file(tmp_path / "out" / "sae" / "sae_weights.safetensors"), members(root)
    for at, each in enumerate(told["features"]):
        assert torch.equal(held["W_dec"][at], own.W_dec[each["seed"], each["feature"]])
    again = run("pool", STUDY, ENSEMBLE, "--tokens", 0, "--loss-tokens", 0, "--out", tmp_path / "out", "--root", root,
                "--quiet", "--replace", "--theta", 0.5)  # fmt: skip
    assert again.returncode == 0, again.stderr
    second = json.loads((tmp_path / "out" / "pool.json").read_text())
    assert second["theta"] == 0.5
    assert sum(second["unique_by_holders"]) < sum(told["unique_by_holders"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_a_model_decoders_alone_make_a_pool_and_few_members_no_halves(tmp_path):
    few = members_that_agree(members=3)
    publish_study(tmp_path, "bare", {"three": (few, {}), "one": (members_that_agree(members=2), {})})
    done = run("pool", "bare", "three", "--tokens", 0, "--root", tmp_path, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "two disjoint pools need at least 4" in done.stdout
    told = json.loads((tmp_path / "bare" / "pool" / "three" / "pool.json").read_text())
    assert told["curves"] == []
    assert told["halves"] == []
    assert "density" not in told["features"][0]
    plan = catalogue.read(tmp_path / "bare")
    lone = replace(plan.ensemble("one"), members=plan.ensemble("one").members[:1])
    catalogue.write(plan.with_ensemble(lone), tmp_path / "bare")
    assert_one_line(run("pool", "bare", "one", "--root", tmp_path), "has one seed", "at least 2", "4 for two disjoint")
    refused = run("pool", "bare", "three", "--root", tmp_path, "--replace")
    assert_one_line(refused, "norms from", "--tokens 0")
    assert not (tmp_path / "bare" / "pool" / "one").exists()


def test_what_is_missing_is_named(root, tmp_path):
    assert_one_line(run("pool", "nothing", ENSEMBLE, "--root", root), "found no study nothing", STUDY)
    assert_one_line(run("pool", STUDY, "other", "--root", root), "no ensemble 'other'", ENSEMBLE)
    new = ("--out", tmp_path / "new", "--root", root, "--quiet")
    assert_one_line(run("pool", *SMALL, *new), "found no text to train", "--text", "--tokens 0")
    assert_one_line(run("pool", STUDY, ENSEMBLE, "--tokens", 100, *new), "n_tokens is 100", "one batch (512)")
    assert_one_line(run("pool", *SMALL, "--out", tmp_path / "a" / "b", "--root", root), "found no folder")
    assert not (tmp_path / "new").exists()


def test_stopped_while_it_is_written_the_former_pool_stays_and_nothing_else(tmp_path, monkeypatch):
    publish_study(tmp_path, "bare", {"four": (members_that_agree(members=4), {})})
    folder, quiet = tmp_path / "bare" / "pool" / "four", Progress(quiet=True)
    first = pool_ensemble(tmp_path / "bare", "four", folder, PoolSettings(tokens=0), progress=quiet)
    assert [len(each) for each in first.halves] == [2, 2]
    before = (folder / "pool.json").read_bytes()

    def stop(self: Path, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        pool_ensemble(
            tmp_path / "bare", "four", folder, PoolSettings(tokens=0, theta=0.3, replaced=True), progress=quiet
        )
    assert [path.name for path in folder.parent.iterdir()] == ["four"]
    assert (folder / "pool.json").read_bytes() == before


@pytest.mark.slow
def test_a_synthetic_study_trains_its_pool_on_samples_of_its_own(tmp_path):
    made = run("synthetic", "--root", tmp_path, "--name", "tiny", "--n-free", 8, "--n-low", 40, "--r", 4, "--d-in", 16,
               "--rate-free", 0.1, "--rate-low", 0.05, "--d-sae", 16, "--k", 3, "--seeds", 4, "--samples", 2048, "--no-map",
               "--quiet")  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = run("pool", "tiny", "topk-16", "--root", tmp_path, "--quiet")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "tiny" / "pool" / "topk-16" / "pool.json").read_text())
    assert told["tokens"] == 2048  # as many as its members saw
    assert [each["tokens"] for each in told["curves"] if each["kind"] == "fresh"] == [0, 512, 1024, 2048, 4096]
    assert told["curves"][0]["loss"] is None
    refused = run("pool", "tiny", "topk-16", "--root", tmp_path, "--quiet", "--replace", "--text", "some.txt")
    assert_one_line(refused, "leave out --text")
