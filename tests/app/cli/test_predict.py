"""Stability of one SAE, predicted from an ensemble: the command, its pages and files, and what it refuses."""

import csv
import io
import json
import re
import shutil
import time

import numpy as np
import pytest

from seedscope.engine.contract.tables.predictions import (
    CarriedPrediction,
    Prediction,
    Predictor,
    PredictorScore,
    ReliabilityBin,
)
from seedscope.engine.demo import stdlib
from seedscope.engine.export.restore import restore
from seedscope.engine.store.database import StoreReader
from seedscope.engine.studies.predict import SaeTraits, compare_traits
from support.commands import assert_one_line, run
from support.reading import browse, parsed, text_of
from support.studies import members_that_agree

HOOKPOINT = "blocks.2.hook_resid_post"
ONE = "/s/many-predicted/seed-4"
N = 170  # features of each SAE


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """Files of seeds of two recipes, a much wider SAE, and a text."""
    folder = tmp_path_factory.mktemp("files")
    members_that_agree(members=5, d_in=128, d_sae=N, shared=40, undirected=1).save(folder / "topk")
    members_that_agree(members=4, d_in=128, d_sae=N, shared=35, undirected=0, seed=1).save(folder / "other")
    members_that_agree(members=1, d_in=128, d_sae=5 * N, shared=40, undirected=0, seed=2).save(folder / "wide")
    (folder / "text.txt").write_text("\n\n".join(text for _, text in corpus.held_out)[:8_000])
    return folder


@pytest.fixture(scope="module")
def root(folder):
    """A study whose predictors are trained, and one SAE that is predicted."""
    root = folder / "root"
    settings = ["--model", stdlib.MODEL_DIR, "--hookpoint", HOOKPOINT, "--n-ctx", 64, "--tokens", folder / "text.txt"]
    for name, seeds in (("topk", range(4)), ("other", range(4))):
        files = [folder / name / f"seed-{seed}.safetensors" for seed in seeds]
        done = run("import", "many", name, *files, "--root", root, "--quiet", "--no-check", *settings)
        assert done.returncode == 0, done.stderr
    done = run("analyze", "many", "--only", "predictor", "--root", root, "--quiet")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def printed(root, folder):
    done = run("predict", folder / "topk" / "seed-4.safetensors", "--from", "many/topk", "--root", root, "--quiet")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def client(root, printed):
    with browse(root) as client:
        yield client


def store_of(root, study) -> StoreReader:
    return StoreReader(root / study / (root / study / "CURRENT").read_text().split()[0])


def test_an_analysis_says_whether_stability_can_be_told(root):
    with store_of(root, "many") as store:
        by_name = {row.ensemble: row for row in store.rows(Predictor)}
        scores = store.rows(PredictorScore)
        bins = store.rows(ReliabilityBin)
    assert set(by_name) == {"topk", "other"}
    for name, row in by_name.items():
        assert (row.trained_on, row.refused, row.n_predicted) == (f"many/{name}", None, None)
        assert len(row.inputs) == 9
        assert {each.setting for each in scores if each.ensemble == name} == {
            "clusters", "features", "decoder", "density", "shuffled", "rotated",
        }  # fmt: skip
        assert sum(each.n_rows for each in bins if each.ensemble == name) == row.n_features >= 400
    for each in scores:
        assert 0 <= each.auroc_low <= each.auroc <= each.auroc_high <= 1
        assert 0 <= each.error_low <= each.calibration_error <= each.error_high <= 1


def test_the_command_says_what_was_predicted_and_how_well(printed):
    assert re.search(r"predicted many-predicted/seed-4: \d+ of 170 features, mean p 0\.\d+", printed)
    assert re.search(r"predictor trained on many/topk \(\d+ features of 4 seeds, \w+, θ 0\.7\)", printed)
    assert "rotated dictionaries 0." in printed
    assert "stable 0" not in printed


def test_predictions_are_probabilities_of_the_living_features(root, printed):
    with store_of(root, "many-predicted") as store:
        rows = store.rows(Prediction)
        (predictor,) = store.rows(Predictor)
        dead = dict(enumerate(store.table(type_of("Feature"), ["dead"])["dead"].to_pylist()))
    assert {row.feature for row in rows} == {feature for feature, is_dead in dead.items() if not is_dead}
    assert (predictor.n_predicted, predictor.n_outside) == (len(rows), sum(not row.inside for row in rows))
    assert all(0 <= row.p_low <= row.p_high <= 1 and 0 <= row.p <= 1 for row in rows)
    assert np.mean([row.p for row in rows]) == pytest.approx(predictor.base_rate, abs=0.1)
    assert {row.seed for row in rows} == {4}


def type_of(name):
    from seedscope.engine.contract import schema

    return next(table for table in schema.TABLES if table.__name__ == name)


def test_pages_say_predicted_and_never_stable(client):
    page = parsed(client.get(ONE).text)
    card = text_of(page.select_one("#predicted").prettify())
    assert "not measured" in card
    assert "AUROC" in card
    assert client.get(f"{ONE}.json").json()["predictor"]["predictor"]["trained_on"] == "many/topk"
    table = parsed(client.get(f"{ONE}/features").text)
    assert len(table.select("svg.strip.predicted")) > 20
    assert not table.select("svg.strip .solid")
    assert not table.select(".pill.stable, .pill.unstable")
    some = next(csv.DictReader(io.StringIO(client.get(f"{ONE}/predicted.csv").text)))["feature"]
    data = client.get(f"{ONE}/4/{some}.json").json()
    assert data["stability"] is None
    feature = parsed(client.get(f"{ONE}/4/{some}").text)
    says = text_of(feature.select_one(".stability-card").prettify())
    assert f"{data['predicted']['p']:.2f}" in says
    assert "not measured" in says
    assert feature.select_one("svg.strip.predicted .hollow")


def test_lists_are_sorted_filtered_and_downloaded_by_what_is_predicted(client, root):
    with store_of(root, "many-predicted") as store:
        stored = {row.feature: row.p for row in store.rows(Prediction)}
    downwards = sorted(stored, key=lambda feature: (-stored[feature], feature))
    rows, after = [], ""
    while after is not None:
        page = client.get(f"{ONE}/features.json?sort=predicted&limit=50{after and f'&after={after}'}").json()
        rows += page["rows"]
        after = page["after"]
    known = [row for row in rows if row["predicted"] is not None]
    assert [row["feature"] for row in rows[: len(known)]] == downwards  # those that nobody predicts stand last
    assert len(rows) == N
    assert all(row["predicted"] == pytest.approx(stored[row["feature"]]) for row in known)
    upwards = client.get(f"{ONE}/features.json?sort=predicted&dir=asc&limit=5").json()["rows"]
    assert [row["predicted"] for row in upwards] == pytest.approx(sorted(stored.values())[:5])
    least = float(np.float32(sorted(stored.values())[len(stored) // 2]))
    found = client.get(f"{ONE}/features.json?predicted_min={least!r}&limit=500").json()
    assert {row["feature"] for row in found["rows"]} == {feature for feature, p in stored.items() if p >= least}
    none = client.get(f"{ONE}/features.json?predicted_min=0.9&predicted_max=0.1").json()
    assert none["total"] == 0
    lines = list(csv.DictReader(io.StringIO(client.get(f"{ONE}/features.csv?sort=predicted").text)))
    assert [int(line["feature"]) for line in lines[: len(known)]] == downwards
    np.testing.assert_allclose(
        [float(line["predicted"]) for line in lines[: len(known)]], [stored[f] for f in downwards]
    )
    assert {line["predicted"] for line in lines[len(known) :]} <= {""}
    page = parsed(client.get(f"{ONE}/features?sort=predicted").text)
    assert page.select_one("th[aria-sort=descending] #sort-predicted")
    assert page.select_one("#sort-choice option[value=predicted][selected]")
    assert page.select_one("input[name=predicted_min]")
    feature = parsed(client.get(f"{ONE}/4/{downwards[1]}?sort=predicted").text)
    links = {link["href"].partition("?")[0] for link in feature.select("a[href*='sort=predicted']")}
    assert {f"{ONE}/4/{downwards[0]}", f"{ONE}/4/{downwards[2]}"} <= links


@pytest.mark.parametrize("query", ["sort=predicted", "predicted_min=0.5", "predicted_max=0.5"])
def test_where_p_is_measured_there_is_no_prediction_to_sort_by(client, query):
    refused = client.get(f"/s/many/topk/features.json?{query}")
    assert refused.status_code == 422
    assert "p is measured here, not predicted" in refused.text
    assert not parsed(client.get("/s/many/topk/features").text).select("#sort-predicted, input[name=predicted_min]")
    assert client.get("/s/many/topk/features.json?limit=1").json()["rows"][0]["predicted"] is None


def test_the_training_ensemble_shows_its_predictor(client):
    page = parsed(client.get("/s/many/topk/subspaces").text)
    assert "Can stability be told from one SAE?" in text_of(page.select_one("#predictor").prettify())
    assert "Is what is predicted what is observed?" in text_of(page.prettify())
    assert client.get("/s/many/topk/0/5.json").json()["predicted"] is None


def test_every_prediction_is_taken_away(client, root, tmp_path):
    rows = list(csv.DictReader(io.StringIO(client.get(f"{ONE}/predicted.csv").text)))
    with store_of(root, "many-predicted") as store:
        stored = store.rows(Prediction)
    assert [int(row["feature"]) for row in rows] == [row.feature for row in stored]
    np.testing.assert_allclose([float(row["p"]) for row in rows], [row.p for row in stored])
    done = run("export", "many-predicted", tmp_path / "out", "--root", root, "--quiet")
    assert done.returncode == 0, done.stderr
    restored = restore(tmp_path / "out", tmp_path / "restored")
    with StoreReader(restored) as again:
        assert again.rows(Prediction) == stored
    done = run("export", "many-predicted", tmp_path / "json", "--format", "json", "--root", root, "--quiet")
    assert done.returncode == 0, done.stderr
    lines = [
        json.loads(line) for line in (tmp_path / "json" / "features" / "seed-4.jsonl").read_text().splitlines()[1:]
    ]
    assert {line["feature"]: line["predicted"]["p"] for line in lines if line["predicted"]} == {
        row.feature: row.p for row in stored
    }


@pytest.mark.slow
def test_the_page_of_one_sae_asks_another_predictor_as_a_job(root, printed, tmp_path):
    here = tmp_path / "root"
    for study in ("many", "many-predicted"):
        shutil.copytree(root / study, here / study)
    with browse(here) as client:
        form = parsed(client.get(ONE).text).select_one("#ask-predictor form")
        assert [option.text for option in form.select("option")] == ["many/other", "many/topk"]
        assert not parsed(client.get("/s/many/topk").text).select("#ask-predictor")
        assert not parsed(client.get(f"{ONE}?embed=true").text).select("#ask-predictor")
        fields = {field["name"]: field["value"] for field in form.select("input")} | {"from": "many/other"}
        from_here = {"Origin": "http://127.0.0.1"}
        for changed, says in (
            ({"study": "many", "ensemble": "topk"}, "one SAE"), ({"from": "many/none"}, "many/other, many/topk"),
            ({"from": "many"}, "many/other, many/topk"), ({"from": "many/topk --force"}, "many/other, many/topk"),
            ({"from": ""}, "many/other, many/topk"), ({"ensemble": "none"}, "seed-4"),
        ):  # fmt: skip
            refused = client.post("/jobs", json=fields | changed, headers=from_here)
            assert refused.status_code == 422
            assert says in refused.text
        job = client.post("/jobs", json=fields, headers=from_here).json()
        end = time.monotonic() + 120
        while (job := client.get(f"/jobs/{job['id']}.json").json()["job"])["state"] in ("queued", "running"):
            assert time.monotonic() < end
            time.sleep(0.2)
        assert (job["state"], job["republished"]) == ("done", True)
        page = client.get(f"{ONE}.json").json()
        assert page["predictor"]["predictor"]["trained_on"] == "many/other"
        shown = text_of(client.get("/jobs").text)
        assert "seedscope predict many-predicted/seed-4 --from many/other" in shown


def test_an_sae_without_text_is_predicted_by_its_weights(root, folder, tmp_path):
    """Inputs that are missing are left out on both sides, and named."""
    here = tmp_path / "root"
    shutil.copytree(root / "many", here / "many")
    file = folder / "topk" / "seed-4.safetensors"
    done = run("import", "bare", "one", file, "--hookpoint", HOOKPOINT, "--root", here, "--quiet")
    assert done.returncode == 0, done.stderr
    done = run("predict", "bare/one", "--from", "many/topk", "--root", here, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "without density: of bare/one, no activity was measured" in done.stdout
    with store_of(here, "bare") as store:
        (row,) = store.rows(Predictor)
        assert row.inputs == ["crowding", "encoder_norm", "encoder_bias", "encoder_decoder"]
        assert row.n_predicted == len(store.rows(Prediction)) == N


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["FILES/wide/seed-0.safetensors", "--from", "many/topk"], "d_sae: 850 here, 170 there"),
        (["FILES/topk/seed-2.safetensors", "--from", "many/topk"], "is seed 2 of many/topk, where its stability is measured"),
        (["many/other", "--from", "many/topk"], "many/other has 4 members, expected one SAE"),
        (["FILES/topk/seed-4.safetensors", "--from", "many/none"], "no ensemble 'none', it has other, topk"),
        (["FILES/topk/seed-4.safetensors", "--from", "none/topk"], "found no study none"),
        (["FILES/topk/seed-4.safetensors", "--from", "many"], "--from is 'many', expected STUDY/ENSEMBLE"),
        (["FILES/topk/seed-4.safetensors"], "expected an SAE and --from STUDY/ENSEMBLE"),
        (["many/other", "--carry", "many"], "--carry takes no SAE"),
        (["--carry", "many-predicted"], "has 0 ensembles that a predictor can be trained on, expected at least two"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_refused_in_one_line(root, printed, folder, tmp_path, arguments, says):
    here = tmp_path / "root"
    for study in ("many", "many-predicted"):
        shutil.copytree(root / study, here / study)
    before = (here / "many" / "CURRENT").read_text()
    done = run("predict", *(each.replace("FILES", str(folder)) for each in arguments), "--root", here, "--quiet")
    assert_one_line(done, says)
    assert (here / "many" / "CURRENT").read_text() == before


def test_a_predictor_is_tested_on_ensembles_that_it_was_not_trained_on(root, tmp_path):
    here = tmp_path / "root"
    shutil.copytree(root / "many", here / "many")
    done = run("predict", "--carry", "many", "--root", here, "--quiet")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^topk +0\.\d+", done.stdout, re.MULTILINE)
    with store_of(here, "many") as store:
        rows = {row.ensemble: row for row in store.rows(CarriedPrediction)}
        predictors = {row.ensemble: row for row in store.rows(Predictor)}
    assert {name: row.trained_on for name, row in rows.items()} == {"topk": ["other"], "other": ["topk"]}
    for name, row in rows.items():
        assert row.base_rate == pytest.approx(predictors[name].base_rate)
        assert row.n_rows == predictors[name].n_features


def traits(**changes) -> SaeTraits:
    known = dict(variant="topk", hookpoint="blocks.2.hook_resid_post", model="gpt2", tokens="abc", d_sae=512, d_in=64,
                 transcoder=False, l0=(9.0, 11.0))  # fmt: skip
    return SaeTraits(**known | changes)


@pytest.mark.parametrize(
    ("changes", "warns", "refuses"),
    [
        ({}, None, None),
        ({"hookpoint": "layers.2"}, None, None),
        ({"variant": "relu"}, "variant: relu here, topk there", None),
        ({"model": "pythia"}, "model: pythia here, gpt2 there", None),
        ({"tokens": None}, "evaluation text (digest): unknown here, abc there", None),
        ({"hookpoint": "blocks.3.hook_resid_post"}, "hook point: blocks.3.hook_resid_post here", None),
        ({"d_sae": 1024}, "d_sae: 1,024 here, 512 there", None),
        ({"d_sae": 100}, None, "d_sae: 100 here, 512 there"),
        ({"l0": (13.0, 13.0)}, None, None),
        ({"l0": (20.0, 20.0)}, "L0: 20.0 here, 9.0 to 11.0 there", None),
        ({"l0": (2.0, 2.0)}, None, "L0: 2.0 here, 9.0 to 11.0 there"),
        ({"l0": (0.0, 0.0)}, None, "L0: 0.0 here"),
        ({"transcoder": True}, None, "it is a transcoder, the predictor was trained on SAEs"),
    ],
)
def test_what_is_unlike_the_training_ensemble_is_named(changes, warns, refuses):
    found = compare_traits(traits(**changes), traits())
    for texts, expected in zip(found, (warns, refuses), strict=True):
        assert len(texts) == (expected is not None)
        assert not expected or texts[0].startswith(expected)
