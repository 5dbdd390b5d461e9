"""The page of causes over a small study that the real pipeline trained: numbers from decoder rows by plain NumPy."""

from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pyarrow.csv
import pytest

from seedscope.app.routes.study.sources import SourcesPage
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.sources import CAUSES, MODELS, OF_MODELS, settings_of
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.train import train_once, trained_entry
from support.golden import unit_rows
from support.reading import assert_valid_plotly, browse, figures_of, links, text_of

HERE = "/s/causes/sources"
N = 3
RECIPE = TrainConfig(d_sae=20, k=2, seeds=tuple(range(N)), n_tokens=64 * 60, batch=64, lr=3e-2, silent_after=10**6)
THETA = 0.8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An ensemble per cause, one whose members are said to read models of their own, and one that stands apart."""
    root = tmp_path_factory.mktemp("root")
    folder, quiet, rng = root / "causes", Progress(quiet=True), np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(1200, 40))) * (rng.random((1200, 40)) < 0.05)
    rows = (codes @ rng.normal(size=(40, 12))).astype(np.float32)
    plan = catalogue.StudyPlan("causes")
    recipes = {cause: replace(RECIPE, **settings_of(parts, N)) for cause, parts in CAUSES.items()}
    recipes |= {"model": replace(RECIPE, **settings_of(OF_MODELS, N)), "apart": replace(recipes["order"], lr=2e-2)}
    for name, recipe in recipes.items():
        seen = rows[::-1].copy() if name == "model" else rows
        made = train_once(folder, name, recipe, "0", lambda seen=seen: seen, {}, quiet)
        entry = trained_entry(folder, name, recipe, "0", made, hookpoint=None if name == "model" else "h")
        if name == "model":
            more = {MODELS: ["a", "b", "c"], "read_at": "h"}
            entry = replace(
                entry, recipe=(entry.recipe or {}) | more, remarks=("each member reads a model of its own",)
            )
        plan = plan.with_ensemble(entry)
    catalogue.write(plan, folder)
    analyse(folder, only=("match",), progress=quiet)
    publish(folder)
    return root


@pytest.fixture(scope="module")
def client(root):
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def data(client):
    return client.get(f"{HERE}.json?theta={THETA}").json()


@pytest.fixture(scope="module")
def best(root) -> dict[str, np.ndarray]:
    """{cause: (members, features, comparisons) best cosines of decoder rows}."""
    found = {}
    for cause in CAUSES:
        rows = sae.load(root / "causes" / "sae" / cause / "0", RECIPE.seeds).W_dec.detach().numpy().astype(float)
        unit = [unit_rows(each) for each in rows]
        found[cause] = np.stack(
            [np.stack([(unit[a] @ unit[b].T).max(1) for b in range(N) if b != a], 1) for a in range(N)]
        )
    return found


def test_page_and_twin_hold_the_same_context(client, data):
    assert set(data) == {f.name for f in fields(SourcesPage) if not f.name.startswith(("nav_", "figure_"))}
    page = client.get(f"{HERE}?theta={THETA}").text
    assert " ".join(data["sentence"].split()) in text_of(page)
    for figure in figures_of(page).values():
        assert_valid_plotly(figure)
    assert {"cause_p", "cause_mcc", "cause_buckets", "loss_patterns"} == set(figures_of(page))


def test_causes_stand_in_order_and_ensembles_of_other_recipes_are_left_out(data):
    assert [each["cause"] for each in data["causes"]] == ["start", "order", "sample", "all", "model"]
    assert [each["shares_start"] for each in data["causes"]] == [False, True, True, False, False]


def test_mean_p_is_that_of_the_decoder_rows(data, best):
    for each in data["causes"]:
        if each["cause"] in best:
            assert each["p_all"]["value"] == pytest.approx((best[each["cause"]] >= THETA).mean(), abs=1e-9)
            assert each["p_all"]["low"] <= each["p_all"]["value"] <= each["p_all"]["high"]
        assert each["p"] is None  # nothing is known to live


def test_features_of_the_shared_sae_are_sorted_by_the_causes_that_take_their_counterparts(client, best):
    data = client.get(f"{HERE}.json?theta={THETA}&dead=count").json()
    assert data["reference_seed"] == 0
    lost = {cause: 2 * (best[cause][0] >= THETA).sum(1) < N - 1 for cause in ("start", "order", "sample")}
    expected: dict[tuple[str, ...], set[int]] = {}
    for feature in range(RECIPE.d_sae):
        expected.setdefault(tuple(cause for cause in lost if lost[cause][feature]), set()).add(feature)
    assert {tuple(each["lost_to"]): each["n"] for each in data["patterns"]} == {k: len(v) for k, v in expected.items()}
    assert len(expected) > 1
    for each in data["patterns"]:
        members = expected[tuple(each["lost_to"])]
        assert set(each["features"]) <= members
        for cause, p in each["mean_p"].items():
            assert p == pytest.approx((best[cause][0][sorted(members)] >= THETA).mean(), abs=1e-9)
    assert sum(each["share"] for each in data["patterns"]) == pytest.approx(1)


def test_the_features_can_be_downloaded(client, best):
    table = pyarrow.csv.read_csv(BytesIO(client.get(f"{HERE}.csv?theta={THETA}&dead=count").content))
    assert table["feature"].to_pylist() == list(range(RECIPE.d_sae))
    for cause in CAUSES:
        assert table[f"matched_{cause}"].to_pylist() == (best[cause][0] >= THETA).sum(1).tolist()


def test_the_study_links_to_the_page_and_shared_random_starts_have_no_place_in_the_grid_of_starts(client):
    assert HERE in {link.split("?")[0] for link in links(client.get("/s/causes").text)}
    starts = client.get("/s/causes/starts.json").json()
    assert not {"order", "sample"} & {line["cell"]["ensemble"] for line in starts["lines"]}


def test_a_study_without_causes_says_what_the_page_is_for(study_root):
    with browse(study_root) as client:
        page = client.get("/s/small/sources")
        assert page.status_code == 200
        assert "seedscope sources" in text_of(page.text)
        assert client.get("/s/small/sources.json").json()["is_comparison"] is False
        refused = client.get("/s/small/sources.csv")
        assert refused.status_code == 422
        assert "an SAE that several causes share" in text_of(refused.text)


def test_an_ensemble_of_several_models_names_no_command_that_would_measure_it_on_one(client):
    page = text_of(client.get("/s/causes/model").text)
    assert "each member reads a language model of its own" in page or "the study has no model" in page
    assert "--hookpoint" not in page
