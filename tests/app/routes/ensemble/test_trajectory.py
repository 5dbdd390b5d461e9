"""Along training: the page against sums over the store's rows, its verdict and its answer against definitions written out."""

import re
from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from scipy.stats import rankdata, spearmanr

from seedscope.app.findings.precedence import QUANTITIES, lags, separations
from seedscope.app.findings.stabilization import Trajectory, judge_stabilization
from seedscope.app.routes.ensemble.trajectory import TrajectoryPage
from seedscope.engine.contract.tables.training import AgreementPoint, Checkpoint, CosineGeometry
from support.reading import assert_valid_plotly, browse, figures_of, links, republish, text_of

NOTHING = tuple(f"DELETE FROM {name}" for name in ("FeatureAlong", "AgreementPoint", "CosineGeometry"))
NOT_COMPUTED = "UPDATE Ensemble SET computed = ['match', 'activity', 'ablate', 'explain', 'loss', 'subspaces']"


@pytest.fixture(scope="module")
def data(client, address) -> dict:
    answer = client.get(f"{address}/trajectory.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def shown(client, address) -> str:
    return client.get(f"{address}/trajectory").text


@pytest.fixture(scope="module")
def along(stored) -> list[dict]:
    """Every feature along training with what the study says of it."""
    return stored(
        "SELECT a.*, f.dead, list_count(list_filter(f.cosines, lambda c: c >= 0.7::FLOAT)) AS x, len(f.cosines) AS n FROM "
        "FeatureAlong a JOIN Feature f USING (ensemble, seed, feature) ORDER BY a.seed, a.feature"
    )


def bucket_of(row: dict) -> str:
    return "dead" if row["dead"] else "stable" if row["x"] == row["n"] else "unstable" if row["x"] == 0 else "middle"


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_buckets_along_training_are_means_over_features_of_where_they_end(data, along):
    steps = [each["step"] for each in data["checkpoints"]]
    assert steps[0] == 0
    assert len(steps) > 6
    held = {(row["bucket"], row["step"]): row for row in data["buckets"]}
    names = [bucket_of(row) for row in along]
    assert {bucket for bucket, _ in held} == set(names) >= {"stable", "middle", "unstable"}
    for (bucket, step), point in held.items():
        own = [row for row, name in zip(along, names, strict=True) if name == bucket]
        t, n_tokens = steps.index(step), data["checkpoints"][0]["n_tokens"]
        assert point["n"] == len(own)
        assert point["stability"] == pytest.approx(np.mean([row["matched"][t] / 3 for row in own]))
        assert point["worth"] == pytest.approx(np.mean([row["worth_ev"][t] for row in own]), abs=1e-7)
        assert point["density"] == pytest.approx(np.mean([row["n_active"][t] for row in own]) / n_tokens)
        seeds = sorted({row["seed"] for row in own})
        means = [np.mean([row["worth_ev"][t] for row in own if row["seed"] == seed]) for seed in seeds]
        assert point["worth_spread"] == (pytest.approx(np.std(means, ddof=1), abs=1e-7) if len(means) > 1 else None)


def test_what_tells_and_what_goes_before_what_are_those_of_plain_definitions(data, along):
    steps = [each["step"] for each in data["checkpoints"]]
    names = np.array([bucket_of(row) for row in along])
    member = np.array([row["seed"] for row in along])
    worth, cosine = (np.array([row[name] for row in along]) for name in ("worth_ev", "best_cosines"))
    found = {(row["quantity"], row["step"]): row for row in data["separations"]}
    assert {quantity for quantity, _ in found} == set(QUANTITIES)
    t = len(steps) // 2
    wins = []
    for seed in np.unique(member):
        a, b = (worth[(member == seed) & (names == bucket), t] for bucket in ("stable", "unstable"))
        if len(a) and len(b):
            wins.append((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())
    assert found["worth", steps[t]]["auc"] == pytest.approx(np.mean(wins), abs=1e-6)
    alive = names != "dead"
    partial, plain = [], []
    for seed in np.unique(member):
        at = alive & (member == seed)
        x, change, now = worth[at, t], cosine[at, t + 1] - cosine[at, t], cosine[at, t]
        plain.append(spearmanr(x, change)[0])
        design = np.stack([np.ones(at.sum()), rankdata(now)], 1)
        left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in (rankdata(x), rankdata(change))]
        partial.append(np.corrcoef(*left)[0, 1])
    (lag,) = [row for row in data["lags"] if (row["before"], row["step"]) == ("worth", steps[t])]
    assert lag["plain"] == pytest.approx(np.mean(plain), abs=1e-4)
    assert lag["partial"] == pytest.approx(np.mean(partial), abs=1e-4)
    assert lag["n"] == alive.sum()
    assert len(data["lags"]) == 2 * (len(steps) - 1)


def test_the_range_of_chance_is_that_of_features_dealt_out_at_random():
    rng = np.random.default_rng(0)
    member = np.repeat([0, 1, 2], [30, 40, 50])
    found = []
    for _ in range(400):
        worth, cosine = rng.normal(size=(2, 120, 2))
        found += [each for each in lags([0, 1], [0, 10], worth, cosine, member) if each.before == "worth"]
    assert {round(each.null, 12) for each in found} == {round(found[0].null, 12)}
    assert 0.02 < np.mean([each.is_beyond for each in found]) < 0.09
    # What is planted is found, in the direction in which it was planted.
    cosine = rng.normal(size=(120, 2))
    cosine[:, 1] = cosine[:, 0] + 0.5 * worth[:, 0] + 0.1 * rng.normal(size=120)
    there, back = lags([0, 1], [0, 10], worth, cosine, member)
    assert there.before == "worth"
    assert there.is_beyond
    assert there.partial > 0.8
    assert abs(back.partial) < 0.3


def test_a_quantity_that_is_the_same_for_all_tells_nothing():
    names, member = np.array(["stable", "unstable"] * 20), np.repeat([0, 1], 20)
    flat, order = np.zeros((40, 2)), np.tile((names == "stable")[:, None] * 1.0, 2)
    found = separations([0, 1], [0, 5], {"worth": flat, "best cosine": order}, names, member)
    assert [each.auc for each in found] == [0.5, 0.5, 1, 1]
    assert {each.low for each in found} == {None}  # two members have no interval
    assert [each.partial for each in lags([0, 1], [0, 5], flat, flat, member)] == [0, 0]
    assert separations([0], [0], {"worth": flat[:, :1]}, np.array(["middle"] * 40), member) == []


# -- the verdict -------------------------------------------------------------------------------------------------------


def course(*distances: tuple[float, float, float], centred: tuple[float, ...]) -> Trajectory:
    """A trajectory whose (mean, smallest, largest) distances are given."""
    points = [
        AgreementPoint("e", step, "all", 9.0, 3, *each, *(1 - value for value in each))
        for step, each in enumerate(distances)
    ]
    geometry = [CosineGeometry("e", step, 0.0, 0.0, value, 1 - value, 0.8, 0.2) for step, value in enumerate(centred)]
    return Trajectory(
        [], [Checkpoint("e", step, 100 * step, None, 2, []) for step in range(len(points))], points, geometry
    )


def test_stabilization_needs_apart_starts_every_pair_and_more_than_the_mean_direction():
    fell = course((0.8, 0.79, 0.81), (0.4, 0.35, 0.45), centred=(0.8, 0.5))
    verdict = judge_stabilization(fell, "no")
    assert (verdict.kind, verdict.start, verdict.end) == ("shown", 0.8, 0.4)
    assert verdict.fall == pytest.approx(0.4)
    assert judge_stabilization(fell, "yes").kind == "shared start"
    overlapping = course((0.8, 0.7, 0.9), (0.6, 0.5, 0.75), centred=(0.8, 0.5))
    assert judge_stabilization(overlapping, "no").kind == "not shown"
    inflated = course((0.8, 0.79, 0.81), (0.1, 0.1, 0.1), centred=(0.8, 0.81))
    assert judge_stabilization(inflated, "no").kind == "not shown"
    equal = course((0.0, 0.0, 0.0), (0.2, 0.1, 0.3), centred=(0.0, 0.2))
    assert judge_stabilization(equal, "unknown").kind == "shared start"
    assert judge_stabilization(Trajectory([], [], [], []), "no") is None
    cosines = replace(fell, agreement=[replace(row, distance=None) for row in fell.agreement])
    assert judge_stabilization(cosines, "no").measure == "1 − mean best cosine"


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_the_numbers_of_its_twin_and_every_link_answers(client, address, data, shown):
    assert set(data) == {f.name for f in fields(TrajectoryPage) if not f.name.startswith(("nav_", "figure_"))}
    text = text_of(shown)
    assert not re.findall(r"\b(None|nan|undefined)\b", text)
    for said in (data["sentence"], data["geometry_says"], *data["answer"]):
        assert said.replace("\u00a0", " ") in text.replace("\u00a0", " ")
    verdict = data["stabilization"]
    assert verdict["kind"] == "shown"
    assert f"from {verdict['start']:.3f} to {verdict['end']:.3f}" in data["sentence"]
    assert verdict["start"] == pytest.approx(verdict["random"], abs=0.05)
    drawn = figures_of(shown)
    assert set(drawn) == {
        "distance", "best_cosine", "separation", "lags", "along_stability", "along_worth", "along_density", "training_loss",
        "training_ev", "training_l0", "training_dead",
    }  # fmt: skip
    for figure in drawn.values():
        assert_valid_plotly(figure)
        for trace in figure["data"]:
            assert all(x > 0 for x in trace["x"])  # the start has a place on the log axis
    for link in (link for link in links(shown) if link.startswith("/")):
        assert client.get(link).status_code == 200, link
    assert f"{address}/trajectory" in links(client.get(address).text)
    assert 'id="trajectory"' in client.get("/methods").text


def test_training_is_drawn_member_by_member_from_its_trace(shown, stored):
    drawn = figures_of(shown)["training_ev"]["data"]
    rows = stored("SELECT seed, tokens, ev FROM TracePoint ORDER BY seed, step")
    assert [trace["name"] for trace in drawn] == ["seed 0", "seed 1", "seed 2", "seed 3", "mean"]
    assert drawn[2]["y"] == [row["ev"] for row in rows if row["seed"] == 2]
    assert drawn[-1]["y"][-1] == pytest.approx(
        np.mean([row["ev"] for row in rows if row["tokens"] == rows[-1]["tokens"]])
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_download_is_every_checkpoint_of_both_populations(client, address, stored, kind):
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[kind]
    rows = read(BytesIO(client.get(f"{address}/trajectory.{kind}").content)).to_pylist()
    wanted = stored("SELECT * FROM AgreementPoint ORDER BY ensemble, population, step")
    assert [{name: row[name] for name in wanted[0]} for row in rows] == [pytest.approx(row) for row in wanted]
    assert {"tokens", "mean_share", "centred_distance", "random_distance"} < set(rows[0])


def test_a_shared_start_is_agreement_and_says_nothing_about_stabilization(own_root, address):
    republish(
        own_root, "UPDATE Ensemble SET shared_start = 'yes'", "UPDATE AgreementPoint SET distance = 0 WHERE step = 0"
    )
    with browse(own_root) as client:
        text = text_of(client.get(f"{address}/trajectory").text)
        assert "agreement (start shared)" in text
        assert "says nothing about stabilization" in text
        assert "Which comes first, marginal EV or agreement?" in text
        figures = figures_of(client.get(f"{address}/trajectory").text)
        assert figures["along_stability"]["layout"]["yaxis"]["title"]["text"] == "agreement p"
        assert "agreement p" in text_of(client.get(f"{address}/0/5").text)


def test_members_that_end_further_apart_than_they_began_show_no_stabilization(own_root, address):
    republish(
        own_root, "UPDATE AgreementPoint SET distance = 0.9, distance_low = 0.88, distance_high = 0.92 WHERE step > 0",
        "UPDATE AgreementPoint SET distance = 0.3, distance_low = 0.28, distance_high = 0.31 WHERE step = 0",
    )  # fmt: skip
    with browse(own_root) as client:
        text = text_of(client.get(f"{address}/trajectory").text)
        assert "No stabilization is shown" in text
        assert "begin at a Hungarian distance of 0.300" in text
        assert "they end at 0.900" in text


def test_what_is_missing_says_what_adds_it_or_that_nothing_does(own_root, address):
    republish(own_root, *NOTHING, NOT_COMPUTED, "UPDATE Checkpoint SET evs = [], n_tokens = NULL")
    with browse(own_root) as client:
        page, feature = client.get(f"{address}/trajectory").text, client.get(f"{address}/0/5.json").json()
        assert "seedscope analyze small --only trajectory" in text_of(page)
        assert 'name="only" value="trajectory"' in page
        assert {"training_loss", "training_ev"} < set(figures_of(page))  # how training went is known nevertheless
        assert feature["trajectory"] is None
        (lack,) = [entry for entry in feature["missing"] if entry["field"] == "trajectory"]
        assert lack["command"] == "seedscope analyze small --only trajectory"
        assert 'id="trajectory"' not in client.get(f"{address}/0/5").text
    republish(own_root, "DELETE FROM Checkpoint", "DELETE FROM TracePoint", "UPDATE Ensemble SET origin = 'imported'")
    with browse(own_root) as client:
        data = client.get(f"{address}/trajectory.json").json()
        assert [entry["command"] for entry in data["missing"]] == [None]
        assert "only its end was imported" in text_of(client.get(f"{address}/trajectory").text)
        assert data["sentence"] == "How its seeds were trained is not known here."


def test_without_worth_and_one_to_one_matching_the_rest_is_shown(own_root, address):
    republish(
        own_root, "UPDATE FeatureAlong SET worth_ev = [], n_active = []", "UPDATE Checkpoint SET n_tokens = NULL, evs = []",
        "DELETE FROM AgreementPoint WHERE population = 'live'",
        "UPDATE AgreementPoint SET distance = NULL, distance_low = NULL, distance_high = NULL",
        "UPDATE CosineGeometry SET centred_distance = NULL, random_distance = NULL",
    )  # fmt: skip
    with browse(own_root) as client:
        data, page = client.get(f"{address}/trajectory.json").json(), client.get(f"{address}/trajectory").text
        assert data["stabilization"]["measure"] == "1 − mean best cosine"
        assert data["lags"] == []
        assert not re.findall(r"\b(None|nan|undefined)\b", text_of(page))
        assert {"best_cosine", "along_stability"} < set(figures_of(page))
        assert "distance" not in figures_of(page)
        assert client.get(f"{address}/0/5").status_code == 200
        assert client.get(f"{address}/0/5.json").json()["trajectory"]["worth_ev"] is None


def test_a_feature_page_draws_its_course_and_its_twin_holds_it(client, address, along):
    row = next(row for row in along if (row["seed"], row["feature"]) == (1, 7))
    data = client.get(f"{address}/1/7.json").json()["trajectory"]
    assert data["matched"] == row["matched"]
    assert data["stability"] == pytest.approx([x / 3 for x in row["matched"]])
    assert data["worth_ev"] == pytest.approx(row["worth_ev"])
    assert len(data["tokens"]) == len(data["steps"]) == len(row["matched"])
    page = client.get(f"{address}/1/7").text
    card = page[page.index('id="trajectory"') :].partition("</section>")[0]
    assert card.count('class="course"') == 2
    assert card.count("<circle") == 2 * len(row["matched"])
    assert f"→ {data['stability'][-1]:.2f}" in text_of(card)
    assert f"{1000 * data['worth_ev'][-1]:+.2f}" in text_of(card)
