"""The page of constraint, start and preprocessing, over a small study that the real pipeline trained."""

from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file
from scipy.optimize import linear_sum_assignment

from seedscope.app.findings.signatures import signatures
from seedscope.app.findings.start_grid import Cell, Course, MeasuredCell
from seedscope.app.routes.study.starts import StartsPage
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.train import train_once, trained_entry
from support.golden import unit_rows
from support.reading import assert_valid_plotly, browse, figures_of, links, text_of

HERE = "/s/grid/starts"
RECIPE = TrainConfig(d_sae=20, k=2, seeds=(0, 1, 2), n_tokens=64 * 60, batch=64, lr=5e-3, silent_after=10**6)
GRID = {
    "free-shared": {"start": "kmeans-shared"},
    "free-shared-centred": {"start": "kmeans-shared", "preprocessing": "centred"},
    "free-random": {},
    "free-random-centred": {"preprocessing": "centred"},
    "free-own": {"start": "kmeans-independent"},
    "ra-shared": {"variant": "relaxed-archetypal"},
    "ra-random": {"variant": "relaxed-archetypal", "centroids": "random"},
    "ra-random-standardised": {"variant": "relaxed-archetypal", "centroids": "random", "preprocessing": "standardised"},
    "unprojected": {"start": "mixtures"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Nine ensembles on rows far off centre; one of them has no snapshots."""
    root = tmp_path_factory.mktemp("root")
    folder, quiet, rng = root / "grid", Progress(quiet=True), np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(1200, 40))) * (rng.random((1200, 40)) < 0.05)
    rows = (codes @ rng.normal(size=(40, 12)) + rng.normal(size=12)).astype(np.float32)
    rows[:, 0] *= 5
    plan = catalogue.StudyPlan("grid")
    for name, changes in GRID.items():
        recipe = replace(RECIPE, **changes)
        made = train_once(folder, name, recipe, "0", lambda: rows, {}, quiet)
        plan = plan.with_ensemble(trained_entry(folder, name, recipe, "0", made, hookpoint="h"))
    catalogue.write(plan, folder)
    (folder / "sae" / "free-own" / "0" / "along").rename(folder / "elsewhere")
    analyse(folder, only=("match", "trajectory"), progress=quiet)
    publish(folder)
    return root


@pytest.fixture(scope="module")
def client(root):
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def data(client):
    return client.get(f"{HERE}.json").json()


@pytest.fixture(scope="module")
def page(client):
    return client.get(HERE).text


def line(data: dict, constraint: str, start: str, preprocessing: str = "raw") -> dict:
    wanted = {"constraint": constraint, "start": start, "preprocessing": preprocessing}
    (found,) = (each for each in data["lines"] if wanted.items() <= each["cell"].items())
    return found


def distance(rows: np.ndarray) -> list[float]:
    """Mean 1 - cosine of every pair of members under the best one-to-one matching."""
    found = []
    for a in range(len(rows)):
        for b in range(a + 1, len(rows)):
            cosines = unit_rows(rows[a]) @ unit_rows(rows[b]).T
            found.append(1 - cosines[linear_sum_assignment(cosines, maximize=True)].mean())
    return found


def test_page_and_twin_hold_the_same_context(data, page):
    assert set(data) == {f.name for f in fields(StartsPage) if not f.name.startswith(("nav_", "figure_"))}
    assert page.startswith("<!doctype html>")
    assert data["sentence"] in text_of(page)


def test_every_ensemble_stands_in_its_place_and_those_that_are_equal_in_two(data):
    own = {each["cell"]["ensemble"] for each in data["lines"] if not each["cell"]["equals"]}
    assert own == set(GRID)
    twice = {(each["cell"]["ensemble"], each["cell"]["start"]) for each in data["lines"] if each["cell"]["equals"]}
    assert twice == {("free-shared", "shared"), ("free-own", "independent")}
    assert line(data, "RA", "random", "standardised")["cell"]["ensemble"] == "ra-random-standardised"
    assert line(data, "RA unprojected", "random")["cell"]["ensemble"] == "unprojected"


@pytest.mark.parametrize("name", ["free-random", "ra-shared", "ra-random-standardised"])
def test_start_and_end_are_the_distances_of_the_members_in_the_space_of_training(root, data, name):
    folder = root / "grid" / "sae" / name / "0"
    rows = sae.load(folder, RECIPE.seeds).W_dec.detach().numpy().astype(float)
    if name.endswith("standardised"):
        rows = rows / load_file(folder / "along" / "space.safetensors")["std"]
    (course,) = (each["course"] for each in data["lines"] if each["cell"]["ensemble"] == name)
    found = distance(rows)
    assert course["end_distance"] == pytest.approx(np.mean(found), abs=1e-5)
    assert (course["end_low"], course["end_high"]) == pytest.approx((min(found), max(found)), abs=1e-5)
    assert course["n_pairs"] == 3
    if name == "ra-shared":
        assert course["start_distance"] == pytest.approx(0, abs=1e-6)
        assert course["end_distance"] > 0.001


def test_numbers_of_the_grid_stand_in_the_table_and_shared_starts_are_called_agreement(data, page):
    shown = text_of(page)
    for each in data["lines"]:
        if each["course"]:
            assert f"{each['course']['end_distance']:.3f}" in shown
            assert f"/s/grid/{each['cell']['ensemble']}/trajectory" in links(page)
    table = page[page.index('<table class="data starts"') :]
    table = table[: table.index("</table>")]
    n_shared = sum(each["cell"]["start"] == "shared" for each in data["lines"])
    assert table.count("agreement (start shared)") == n_shared == 4


def test_what_has_no_trajectory_says_so_and_the_rest_is_shown(data, page):
    assert set(data["missing"]) == {"free-own"}
    assert line(data, "none", "independent")["course"] is None
    assert "no seeds were kept along its training" in text_of(page)


def test_every_panel_is_drawn_with_the_level_of_random_dictionaries(data, page):
    drawn = figures_of(page)
    assert {"none_raw", "none_centred", "ra_raw", "ra_standardised", "ra_unprojected_raw"} == set(drawn)
    for figure in drawn.values():
        assert_valid_plotly(figure)
    lines = {each["name"]: each for each in drawn["none_raw"]["data"] if each.get("hovertemplate")}
    assert set(lines) == {"shared k-means", "random", "random dictionaries"}
    assert lines["shared k-means"]["y"][0] == pytest.approx(0, abs=1e-6)
    course = line(data, "none", "random")["course"]
    assert lines["random"]["y"][0] == pytest.approx(course["start_distance"])
    assert lines["random"]["y"][-1] == pytest.approx(course["end_distance"])
    assert set(lines["random dictionaries"]["y"]) == {course["random_distance"]}
    # What is equal by construction is drawn in both places.
    there = {each["name"] for each in drawn["ra_unprojected_raw"]["data"] if each.get("hovertemplate")}
    assert there == {"shared k-means", "random", "random dictionaries"}


def test_tables_can_be_downloaded(client, data):
    cells = pyarrow.csv.read_csv(BytesIO(client.get(f"{HERE}.csv").content)).to_pylist()
    assert [row["ensemble"] for row in cells] == [each["cell"]["ensemble"] for each in data["lines"]]
    ends = {row["ensemble"]: row["end_distance"] for row in cells}
    assert ends["free-random"] == pytest.approx(line(data, "none", "random")["course"]["end_distance"])
    points = pyarrow.parquet.read_table(BytesIO(client.get(f"{HERE}.parquet?table=points").content)).to_pylist()
    at = [row["step"] for row in points if row["ensemble"] == "free-random" and row["population"] == "all"]
    assert (at[0], at[-1]) == (0, 60)
    assert at == sorted(at)


def test_the_study_links_to_its_grid_and_other_studies_say_how_to_get_one(client, data):
    assert HERE in links(client.get("/s/grid").text)
    assert client.get("/s/grid.json").json()["has_starts"] is True


def test_a_study_without_a_grid_says_what_the_page_is_for(study_root):
    with browse(study_root) as client:
        assert "/s/small/starts" not in links(client.get("/s/small").text)
        page = client.get("/s/small/starts")
        assert page.status_code == 200
        assert "seedscope demo --full" in text_of(page.text)
        assert client.get("/s/small/starts.json").json()["is_grid"] is False
        refused = client.get("/s/small/starts.csv")
        assert refused.status_code == 422
        assert "differ in start or constraint" in text_of(refused.text)


# -- signatures ----------------------------------------------------------------------------------------------------


def held(constraint: str, start: str, preprocessing: str, begins: float, ends: float, **more: float):
    cell = Cell(constraint, start, preprocessing, f"{constraint}-{start}", "topk", 0, False, "no")
    known = dict.fromkeys((f.name for f in fields(Course)), None)
    spread = {f"{at}_{end}": value + by for at, value in (("start", begins), ("end", ends))
              for end, by in (("low", -0.01), ("high", 0.01))}  # fmt: skip
    return MeasuredCell.of(cell, Course(**known | spread | {"start_distance": begins, "end_distance": ends} | more))


def verdicts(*ensembles) -> list[str]:
    return [each.verdict for each in signatures(ensembles)]


def test_verdicts_follow_the_numbers():
    free = [held("none", "random", "centred", 0.8, 0.4), held("none", "shared", "centred", 0.0, 0.1)]
    assert verdicts(*free)[:2] == ["reproduced", "reproduced"]
    assert verdicts(held("none", "random", "centred", 0.8, 0.79))[1] == "not reproduced"
    assert verdicts(held("none", "shared", "raw", 0.2, 0.3))[0] == "partly"
    assert verdicts(*free)[2:] == ["cannot be asked", "cannot be asked"]
    same, closer = held("RA", "random", "centred", 0.8, 0.41), held("RA", "random", "centred", 0.8, 0.3)
    assert verdicts(*free, same)[2] == "reproduced"
    assert verdicts(*free, closer)[2] == "not reproduced"
    own = held("none", "independent", "centred", 0.5, 0.4)
    assert verdicts(own, held("none", "independent", "raw", 0.5, 0.2))[3] == "reproduced"
    assert verdicts(own, held("none", "independent", "raw", 0.2, 0.4))[3] == "reproduced"
    assert verdicts(own, held("none", "independent", "raw", 0.5, 0.395))[3] == "not reproduced"
    assert verdicts(*free, held("none", "random", "raw", 0.8, 0.2))[3] == "cannot be asked"


def test_ensembles_that_differ_in_more_than_the_grid_are_not_compared():
    wide, narrow = held("none", "random", "centred", 0.8, 0.4), held("RA", "random", "centred", 0.8, 0.3)
    assert verdicts(wide, replace(narrow, cell=replace(narrow.cell, group=1)))[2] == "cannot be asked"


def test_dead_features_that_stayed_at_a_shared_start_are_told():
    ensembles = [held("none", "shared", "raw", 0.0, 0.1, end_live=0.3)]
    assert "further apart than all features in 1 of 1" in signatures(ensembles)[0].says[1]
