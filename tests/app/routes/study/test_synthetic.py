"""The page of known true features, its downloads, and what other pages say of a study without a model."""

import re
from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.routes.study.synthetic import SyntheticPage
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.tables import synthetic
from seedscope.engine.progress import Progress
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.run import run_synthetic
from seedscope.engine.studies.synthetic.generator import SyntheticConfig, draw_truth
from seedscope.engine.studies.synthetic.phase_map import draw_map
from seedscope.engine.studies.synthetic.plan import SyntheticPlan
from support.reading import assert_valid_plotly, browse, figures_of, links, text_of

SAMPLES = SyntheticConfig(d_in=24, n_free=10, n_low=120, r=5, rate_free=0.1, rate_low=0.02)
RECIPE = TrainConfig(d_sae=30, k=3, seeds=(0, 1, 2), n_tokens=12_288, batch=256)
PLAN = SyntheticPlan(SAMPLES, RECIPE, replace(RECIPE, n_tokens=1_024), n_evaluated=3_000)
ROOT, ENSEMBLE = "/s/made", "/s/made/topk-30"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dashboard over a synthetic study with two cells of its map."""
    root = tmp_path_factory.mktemp("root")
    run_synthetic(PLAN, root, "made", with_map=False, progress=Progress(quiet=True))
    wanted = PLAN.cells(0.7, 0.05)
    grids = [next(place for place in wanted if place.grid == grid) for grid in ("rate", "n_low")]
    draw_map(root / "made" / "cells", grids, workers=1)
    publish(root / "made")
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def data(made):
    return made.get(f"{ROOT}/synthetic.json").json()


@pytest.fixture(scope="module")
def page(made):
    return made.get(f"{ROOT}/synthetic").text


def test_page_and_twin_hold_the_same_context(made, data, page):
    assert set(data) == {f.name for f in fields(SyntheticPage) if not f.name.startswith(("nav_", "figure_"))}
    assert page.startswith("<!doctype html>")
    assert " ".join(data["sentence"].split()) in text_of(page)
    assert data["synthetic"]["verdict"] in synthetic.VERDICTS
    assert data["active_low"] == pytest.approx(2.4)


def test_every_group_and_set_stands_with_its_level_of_chance(data, page):
    shown = text_of(page)
    for group in data["groups"]:
        for name in ("found", "found_chance", "p_hat", "chance"):
            if group[name] is not None:
                value = group[name]
                assert (f"{100 * value:.1f} %" if name.startswith("found") else f"{value:.3f}") in shown
    assert [level["set"] for level in data["levels"]] == ["unstable", "stable", "living", "random", "r / d"]
    assert data["levels"][-1]["energy"] == pytest.approx(5 / 24)


def test_true_features_are_listed_with_the_latents_that_found_them(made, data, page):
    assert [line["name"] for line in data["features"]] == [f"free {i}" for i in range(10)]
    for line in data["features"]:
        assert line["n_found"] == sum(each["found"] for each in line["nearest"])
        for each in line["nearest"]:
            assert each["found"] == (each["cosine"] >= 0.7)
            assert f"{ENSEMBLE}/{each['seed']}/{each['feature']}" in links(page)
    first = data["features"][0]["nearest"][1]
    weights = made.get(f"{ENSEMBLE}/{first['seed']}/{first['feature']}.json")
    assert weights.status_code == 200
    assert weights.json()["missing"]


def test_the_lists_pages_cover_every_feature_once(made):
    names, address = [], f"{ROOT}/synthetic?group=low"
    for _ in range(9):
        answer = made.get(address.replace("synthetic?", "synthetic.json?")).json()
        names += [line["name"] for line in answer["features"]]
        further = [link for link in links(made.get(address).text) if "first=" in link and f"first={len(names)}" in link]
        if not further:
            break
        address = further[0].split("#")[0]
    assert names == [f"low {i}" for i in range(120)]


def test_figures_are_plotly_and_hold_every_living_latent(made, data, page):
    figures = figures_of(page)
    assert set(figures) == {"latents", "found", "low_p_rate", "energy_rate", "low_p_n_low", "energy_n_low"}
    for figure in figures.values():
        assert_valid_plotly(figure)
    assert sum(len(trace["x"]) for trace in figures["latents"]["data"]) == sum(g["n_latents"] for g in data["groups"])
    for trace in figures["found"]["data"]:
        assert sum(trace["y"]) == pytest.approx(1)
    marked = figures["energy_rate"]["data"][0]["text"][0][0]
    cell = next(cell for cell in data["cells"] if cell["grid"] == "rate")
    assert (
        marked[0] == {"holds": "✓", "chance": "c", "free lost": "f", "one by one": "1", "no span": "s"}[cell["verdict"]]
    )
    assert sum(count["n"] for count in data["verdicts"]) == len(data["cells"]) == 2


def test_downloads_hold_all_rows(made, data):
    table = pyarrow.csv.read_csv(BytesIO(made.get(f"{ROOT}/synthetic.csv").content)).to_pylist()
    assert len(table) == 130 * 3
    held = {(row["id"], row["seed"]): (row["latent"], row["cosine"]) for row in table}
    for i, line in enumerate(data["features"]):
        for each in line["nearest"]:
            assert held[i, each["seed"]] == (each["feature"], pytest.approx(each["cosine"], abs=1e-6))
    for name, n in {"latents": 90, "groups": 3, "sets": 5, "map": 2}.items():
        parquet = pyarrow.parquet.read_table(BytesIO(made.get(f"{ROOT}/synthetic.parquet?table={name}").content))
        assert parquet.num_rows == n
        csv = pyarrow.csv.read_csv(BytesIO(made.get(f"{ROOT}/synthetic.csv?table={name}").content))
        assert csv.num_rows == n
    latents = pyarrow.csv.read_csv(BytesIO(made.get(f"{ROOT}/synthetic.csv?table=latents").content)).to_pylist()
    names = draw_truth(SAMPLES).names
    assert {names[row["true"]].split()[0] for row in latents} <= {"free", "low"}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("?first=10", "0 to 9"),
        ("?group=other", "free"),
        ("?first=-1", "greater than or equal to 0"),
        ("?colour=red", "group"),
    ],
)
def test_an_address_that_names_nothing_is_refused(made, address, says):
    answer = made.get(f"{ROOT}/synthetic.json{address}")
    assert answer.status_code == 422
    assert says in answer.text


def test_a_study_without_known_features_says_what_the_page_is_for(client):
    answer = client.get("/s/small/synthetic")
    assert answer.status_code == 200
    assert "seedscope synthetic" in text_of(answer.text)
    assert client.get("/s/small/synthetic.json").json()["synthetic"] is None
    assert client.get("/s/small/synthetic.csv").status_code == 422
    assert "/s/small/synthetic" not in client.get("/s/small").text


@pytest.mark.parametrize(
    "path",
    ["", "/topk-30", "/topk-30/features", "/topk-30/0/3", "/topk-30/members", "/topk-30/buckets", "/topk-30/ablation",
     "/topk-30/explanations", "/topk-30/try"],
)  # fmt: skip
def test_every_page_of_the_study_answers_and_asks_for_no_model(made, path):
    answer = made.get(ROOT + path)
    assert answer.status_code == 200
    assert not re.search(r"--model|--tokens|SEEDSCOPE_LLM", answer.text)
    assert made.get(f"{ROOT}{path}.json").status_code == 200


def test_the_study_and_its_ensemble_lead_to_the_page(made):
    for path in (ROOT, ENSEMBLE):
        assert f"{ROOT}/synthetic" in links(made.get(path).text)


def test_what_needs_a_model_says_that_there_is_none(made):
    assert not any(
        "/try" in link for path in ("", "/0/3") for link in links(made.get(ENSEMBLE + path).text, "[action]")
    )
    tried = made.get(f"{ENSEMBLE}/try?text=abc")
    assert tried.status_code == 200
    assert "there is no language model" in text_of(tried.text)
    exact = made.get(f"{ENSEMBLE}/0/3/loss")
    assert exact.status_code == 404
    assert "there is no language model" in text_of(exact.text)
    feature = made.get(f"{ENSEMBLE}/0/3.json").json()
    assert feature["positive_logits"] is None
    reasons = {lack["field"]: lack for lack in feature["missing"]}
    assert "there is no language model" in str(reasons["positive_logits"])
    assert np.isfinite(feature["density"])
