"""The page of spans and its map: what they say against the store's rows, read independently."""

import re
from dataclasses import fields
from io import BytesIO

import numpy as np
import plotly.graph_objects
import pyarrow.csv
import pyarrow.parquet
import pytest
from scipy.stats import ortho_group

from seedscope.app.findings.map_company import N_NEAR
from seedscope.app.findings.random_subspaces import unrelated_angle
from seedscope.app.routes.ensemble.map import MapPage
from seedscope.app.routes.ensemble.subspaces import SubspacesPage
from seedscope.app.store.spans import TABLES
from seedscope.engine.contract.stability import bucket_bounds
from seedscope.engine.contract.tables.spans import SpanCurve
from support.reading import assert_valid_plotly, browse, cell_links, figures_of, links, republish, text_of
from support.studies import members_that_agree, publish_study

EVIL = "<script>alert(1)</script>"
NO_SPANS = (
    "UPDATE Ensemble SET computed = list_filter(computed, lambda a: a <> 'subspaces'), span_rank = NULL, span_remarks = [], "
    "n_clusters = NULL, largest_cluster = NULL",
    *(f"DELETE FROM {t}" for t in ("SpanCurve", "SpanPair", "SpanMember", "SpanResidual", "SpanPrediction", "FeatureSpan")),
)  # fmt: skip
# Curves of a claim that holds far above every control.
MEANS = {"within": 0.9, "cross": 0.88, "random_set": 0.4, "stable": 0.3, "activations": 0.3}
HOLDS = (
    "UPDATE SpanCurve SET mean = 0.1 WHERE curve = 'random_subspace'",
    *(f"UPDATE SpanCurve SET mean = {mean}, spread = 0.01, n_pairs = 12 WHERE curve = '{curve}'" for curve, mean in MEANS.items()),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(client, address) -> dict:
    answer = client.get(f"{address}/subspaces.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def shown(client, address) -> str:
    return client.get(f"{address}/subspaces").text


@pytest.fixture(scope="module")
def ensemble(stored) -> dict:
    return stored("SELECT * FROM Ensemble")[0]


@pytest.fixture(scope="module")
def first_rank(stored, ensemble) -> int:
    """The usual one where every curve that the verdict needs reaches it, else the largest that they reach."""
    reached = stored(
        "SELECT rank FROM SpanCurve WHERE curve IN ('within', 'cross') AND mean IS NOT NULL GROUP BY rank HAVING count(*) = 2"
    )
    return min(ensemble["span_rank"], max(row["rank"] for row in reached))


def curve_at(stored, rank: int) -> dict[str, dict]:
    rows = stored("SELECT * FROM SpanCurve WHERE rank = ? AND mean IS NOT NULL", rank)
    return {row["curve"]: row for row in rows}


# -- numbers -----------------------------------------------------------------------------------------------------


def test_the_sentence_and_the_table_say_the_stores_numbers_at_the_first_rank(data, shown, stored, first_rank):
    rank = first_rank
    held, text = curve_at(stored, rank), text_of(shown)
    assert data["rank"] == rank
    assert " ".join(data["sentence"].split()) in text
    for curve in ("cross", "within", "random_subspace"):
        assert f"{100 * held[curve]['mean']:.1f}\u00a0%" in data["sentence"]
    at = data["shown_ranks"].index(rank)
    assert {line["curve"] for line in data["lines"]} == held.keys() - {"overlap"}
    for line in data["lines"]:
        wanted, level = held[line["curve"]], line["levels"][at]
        assert [level[name] for name in ("mean", "spread", "n_pairs")] == [
            pytest.approx(wanted[name]) if wanted[name] is not None else None for name in ("mean", "spread", "n_pairs")
        ]
        assert line["n_fitted"] == wanted["n_fitted"]
        assert line["says"] in text
    kept = (held["cross"]["mean"] - held["random_subspace"]["mean"]) / (
        held["within"]["mean"] - held["random_subspace"]["mean"]
    )
    assert data["claim"]["kept"] == pytest.approx(kept)


def test_every_rank_shows_itself_with_its_neighbours_and_another_one_the_nearest(client, address, data, stored):
    ranks = [row["rank"] for row in stored("SELECT DISTINCT rank FROM SpanCurve ORDER BY rank")]
    assert data["ranks"] == ranks
    for rank in ranks:
        found = client.get(f"{address}/subspaces.json?rank={rank}").json()
        assert found["rank"] == rank
        assert rank in found["shown_ranks"]
        assert len(found["shown_ranks"]) == 3
        at = ranks.index(found["shown_ranks"][0])
        assert found["shown_ranks"] == ranks[at : at + 3]
    between = ranks[-1] + 1000
    found = client.get(f"{address}/subspaces.json?rank={between}").json()
    assert (found["rank"], found["asked_rank"]) == (ranks[-1], between)
    assert f"Rank {between:,} was not computed" in text_of(client.get(f"{address}/subspaces?rank={between}").text)


def test_where_spans_stop_the_page_names_the_largest_rank_that_is_reached(client, address, stored, first_rank):
    last = stored("SELECT max(rank) AS rank FROM SpanCurve")[0]["rank"]
    assert first_rank < last, "the small study has too few unstable rows for the last rank"
    found = client.get(f"{address}/subspaces.json?rank={last}").json()
    assert found["claim"] is None
    assert f"the largest rank that all needed curves reach is {first_rank}" in found["sentence"]


def test_pairs_are_the_lists_entries_at_the_rank(client, address, stored, data):
    for rank in (data["rank"], data["ranks"][0]):
        at = data["ranks"].index(rank)
        found = client.get(f"{address}/subspaces.json?rank={rank}").json()["pairs"]
        wanted = stored('SELECT seed, other, energies, "overlaps", angles FROM SpanPair ORDER BY seed, other')
        assert [(pair["seed"], pair["other"]) for pair in found] == [(row["seed"], row["other"]) for row in wanted]
        for pair, row in zip(found, wanted, strict=True):
            lists = (row["energies"], row["overlaps"], row["angles"])
            energy, overlap, angle = (held[at] if at < len(held) else None for held in lists)
            assert pair["energy"] == pytest.approx(energy)
            assert pair["overlap"] == pytest.approx(overlap)
            assert pair["angle"] == pytest.approx(None if angle is None else np.degrees(angle))


def test_every_table_of_the_twin_is_the_stores(data, stored):
    for name, table, key in (
        ("curves", "SpanCurve", "curve, rank"),
        ("members", "SpanMember", "seed"),
        ("residuals", "SpanResidual", "bucket, k"),
        ("predictions", "SpanPrediction", "setting"),
    ):
        wanted = stored(f"SELECT * FROM {table} ORDER BY {key}")
        assert len(data[name]) == len(wanted) > 0
        for row, other in zip(data[name], wanted, strict=True):
            assert (
                row == pytest.approx(other)
                if not any(isinstance(v, list) for v in other.values())
                else row.keys() == other.keys()
            )
    assert {f.name for f in fields(SubspacesPage) if not f.name.startswith(("nav_", "figure_"))} == data.keys()
    assert {f.name for f in fields(SpanCurve)} == data["curves"][0].keys()


def test_what_predictability_leaves_is_said_with_the_stores_scores(data, shown, stored):
    told = {row["setting"]: row for row in stored("SELECT * FROM SpanPrediction")}
    assert " ".join(data["predicted"].split()) in text_of(shown)
    for setting, score in (("plain", "f1"), ("plain", "auroc"), ("isotropic", "f1"), ("always_stable", "f1")):
        assert f"{told[setting][score]:.2f}" in data["predicted"]
    if {"disjoint", "isotropic_disjoint"} <= told.keys():
        assert f"AUROC is {told['disjoint']['auroc']:.2f}" in data["predicted"]
        left = told["disjoint"]["auroc"] - told["isotropic_disjoint"]["auroc"]
        noise = 2 * np.hypot(told["disjoint"]["auroc_spread"], told["isotropic_disjoint"]["auroc_spread"])
        assert (f"{left:+.2f} is left" in data["predicted"]) == (left > noise)


def test_the_angle_of_unrelated_spans_is_that_of_random_ones():
    d = 120
    random = np.random.default_rng(0)
    for rank in (5, 30, 60, 100):
        a, b = (ortho_group.rvs(d, random_state=random)[:, :rank] for _ in range(2))
        cosines = np.linalg.svd(a.T @ b, compute_uv=False).clip(-1, 1)
        assert unrelated_angle(rank, d) == pytest.approx(np.degrees(np.median(np.arccos(cosines))), abs=5)
    assert unrelated_angle(d, d) == 0


# -- what is said of the claim -----------------------------------------------------------------------------------


def test_a_claim_that_holds_above_every_control_is_said_to_hold(own_root, address):
    republish(own_root, *HOLDS)
    with browse(own_root) as client:
        data, page = client.get(f"{address}/subspaces.json").json(), client.get(f"{address}/subspaces").text
    assert data["claim"]["against"] == dict.fromkeys(("random_set", "stable", "activations", "random_subspace"), "more")
    assert "as the paper claims, and as many random living features capture less, 40.0" in data["sentence"]
    assert "more than random living features" in text_of(page)


def test_a_span_that_holds_another_seeds_better_than_its_own_carries_over_whole(own_root, address):
    republish(own_root, *HOLDS, "UPDATE SpanCurve SET mean = 0.95 WHERE curve = 'cross'")
    with browse(own_root) as client:
        data, text = client.get(f"{address}/subspaces.json").json(), text_of(client.get(f"{address}/subspaces").text)
    assert data["claim"]["kept"] == pytest.approx(0.85 / 0.8)
    assert "it carries over whole, as the paper claims" in data["sentence"]
    assert "nearly" not in text


def test_no_more_than_random_features_is_said_to_say_little_about_unstable_ones(own_root, address):
    republish(own_root, *HOLDS, "UPDATE SpanCurve SET mean = 0.87 WHERE curve = 'random_set'")
    with browse(own_root) as client:
        data, page = client.get(f"{address}/subspaces.json").json(), client.get(f"{address}/subspaces").text
    assert "says little about unstable features in particular" in data["sentence"]
    assert "no more than random living features" in text_of(page)


def test_a_span_that_is_not_shared_refutes_the_claim(own_root, address):
    republish(own_root, *HOLDS, "UPDATE SpanCurve SET mean = 0.1 WHERE curve = 'cross'")
    with browse(own_root) as client:
        assert "the paper’s claim does not hold here" in client.get(f"{address}/subspaces.json").json()["sentence"]


def test_the_first_rank_is_shown_only_where_spans_are_compared(own_root, address):
    republish(own_root, "UPDATE Ensemble SET span_rank = NULL", "DELETE FROM SpanCurve", "DELETE FROM SpanPair")
    with browse(own_root) as client:
        answer = client.get(f"{address}/subspaces?rank=3")
        data = client.get(f"{address}/subspaces.json").json()
    assert answer.status_code == 200
    assert "Too few seeds" in data["sentence"]
    assert (data["rank"], data["claim"], data["pairs"]) == (None, None, [])
    assert "captured" not in figures_of(answer.text)
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(answer.text))


def test_a_control_stands_beside_the_ensemble_at_the_same_rank(own_root, address, data):
    assert data["sides"] == []
    tables = ("Ensemble", "Member", "SpanCurve", "SpanMember")
    copies = [f"INSERT INTO {t} SELECT * REPLACE ('control' AS ensemble) FROM {t}" for t in tables]
    changed = "UPDATE SpanCurve SET mean = mean / 2 WHERE ensemble = 'control' AND curve = 'cross'"
    republish(own_root, *copies, "UPDATE Ensemble SET control_of = 'topk-96' WHERE ensemble = 'control'", changed)
    with browse(own_root) as client:
        sides = client.get(f"{address}/subspaces.json").json()["sides"]
        text = text_of(client.get(f"{address}/subspaces").text)
    assert [(side["ensemble"], side["is_control"]) for side in sides] == [("topk-96", False), ("control", True)]
    own, control = (side["levels"]["cross"]["mean"] for side in sides)
    assert control == pytest.approx(own / 2)
    assert "Beside the control" in text


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_has_every_figure_with_n_and_data(shown):
    drawn = figures_of(shown)
    assert {"captured", "angles", "spectrum", "pursuit", "predictability"} == drawn.keys()
    for figure in drawn.values():
        assert_valid_plotly(figure)
    assert shown.count("<summary>the numbers</summary>") == len(drawn)
    for caption in re.findall(r"<figcaption>.*?</figcaption>", shown, re.DOTALL):
        assert re.search(r"n = |members", caption)
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(shown))


@pytest.mark.parametrize(("matrix", "is_own"), [("overlap", False), ("angle", False), ("energy", True)])
def test_the_heat_map_draws_what_was_chosen(client, address, matrix, is_own):
    path = f"subspaces?rank=2&matrix={matrix}"
    page, data = client.get(f"{address}/{path}").text, client.get(f"{address}/{path.replace('?', '.json?')}").json()
    trace = figures_of(page)["angles"]["data"][0]
    at = {(pair["seed"], pair["other"]): pair[matrix] for pair in data["pairs"]}
    for row, seed in zip(trace["z"], trace["y"], strict=True):
        for value, other in zip(row, trace["x"], strict=True):
            wanted = at[int(seed), int(other)] if is_own or seed != other else None
            assert value == pytest.approx(wanted, abs=1e-4)
    open_pair = cell_links(trace)[0][1]
    assert client.get(open_pair).status_code == 200


def test_every_link_answers(client, address, shown):
    base = f"{address}/subspaces"
    there = [link for link in links(shown) if link.startswith("/s/") and "/project" not in link]
    assert {f"{base}/{name}.{kind}" for name in TABLES for kind in ("csv", "parquet")} <= set(there)
    for link in there:
        assert client.get(link).status_code == 200, link


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("", "SpanCurve"),
        ("/curves", "SpanCurve"),
        ("/residuals", "SpanResidual"),
        ("/predictability", "SpanPrediction"),
    ],
)
def test_plain_downloads_are_every_row_of_the_store(client, address, stored, name, table, kind):
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[kind]
    rows = read(BytesIO(client.get(f"{address}/subspaces{name}.{kind}").content)).to_pylist()
    wanted = stored(f"SELECT * FROM {table} ORDER BY ALL")
    assert len(rows) == len(wanted)
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other)


@pytest.mark.parametrize(
    ("name", "table", "key", "lists"),
    [
        ("pairs", "SpanPair", ("seed", "other"), {"energy": "energies", "overlap": "overlaps"}),
        ("spectra", "SpanMember", ("seed",), {k: f"{k}_values" for k in ("stable", "unstable", "random")}),
        ("features", "FeatureSpan", ("seed", "feature"), {"own": "own", "others": "others"}),
    ],
)
def test_downloads_of_lists_have_a_row_for_each_entry(client, address, stored, name, table, key, lists):
    rows = pyarrow.parquet.read_table(BytesIO(client.get(f"{address}/subspaces/{name}.parquet").content)).to_pylist()
    wanted = []
    for row in stored(f"SELECT * FROM {table} ORDER BY {', '.join(key)}"):
        for i in range(max(len(row[column]) for column in lists.values())):
            at = tuple(row[k] for k in key)
            wanted.append((*at, *(row[c][i] if i < len(row[c]) else None for c in lists.values())))
    assert [tuple(row[k] for k in (*key, *lists)) for row in rows] == wanted


def test_another_theta_is_said_to_move_the_map_alone(client, address, data):
    page = client.get(f"{address}/subspaces?theta=0.55").text
    text = text_of(page)
    assert "which only the map follows" in text
    assert " ".join(data["sentence"].split()) in text
    assert any(link.startswith(f"{address}/subspaces/project?") and "theta=0.55" in link for link in links(page))
    assert "which only the map follows" not in text_of(client.get(f"{address}/subspaces").text)


def test_other_pages_lead_here_and_methods_define_it(client, address):
    for path in (address, f"{address}/members"):
        assert any(link.split("?")[0] == f"{address}/subspaces" for link in links(client.get(path).text))
    methods = client.get("/methods").text
    assert all(f'id="{name}"' in methods for name in ("spans", "map"))
    for word in ("Effective rank", "Captured energy", "Overlap", "Principal angles", "Pursuit", "Predictability"):
        assert f"<b>{word}</b>" in methods


def test_a_features_page_holds_its_energies_beside_a_random_spans(client, address, stored, ensemble):
    ranks = [row["rank"] for row in stored("SELECT DISTINCT rank FROM SpanCurve ORDER BY rank")]
    row = stored("SELECT * FROM FeatureSpan ORDER BY len(own) DESC, seed, feature LIMIT 1")[0]
    at = min(ranks.index(ensemble["span_rank"]), len(row["own"]) - 1, len(row["others"]) - 1)
    text = text_of(client.get(f"{address}/{row['seed']}/{row['feature']}").text)
    for value in (row["own"][at], row["others"][at], ranks[at] / ensemble["d_in"]):
        assert f"{100 * value:.1f} %" in text
    assert f"top {ranks[at]} directions" in text
    for row in stored("SELECT seed, feature FROM Feature WHERE dead LIMIT 1"):
        assert "How well such spans come back" not in client.get(f"{address}/{row['seed']}/{row['feature']}").text


def test_a_feature_of_a_member_that_is_left_out_says_why_it_has_no_energies(own_root, address, stored):
    feature = stored("SELECT feature FROM FeatureSpan WHERE seed = 0 LIMIT 1")[0]["feature"]
    republish(own_root, "UPDATE FeatureSpan SET own = [], others = [] WHERE seed = 0")
    with browse(own_root) as client:
        found = client.get(f"{address}/0/{feature}.json").json()["subspace"]
        text = text_of(client.get(f"{address}/0/{feature}").text)
    assert (found["rank"], found["own_energy"], found["others_energy"]) == (None, None, None)
    assert "too few unstable features whose span could be compared" in text


# -- the map -----------------------------------------------------------------------------------------------------


def test_the_map_has_a_point_for_every_feature_that_is_drawn(client, address, stored, ensemble):
    data = client.get(f"{address}/subspaces/map.json").json()
    wanted = stored(
        "SELECT seed, feature, x, y, n_matched_07 FROM FeatureSpan JOIN (SELECT ensemble, seed, feature, "
        "len(list_filter(cosines, lambda c: c >= 0.7::FLOAT)) AS n_matched_07 FROM Feature) USING (ensemble, seed, feature) "
        "WHERE x IS NOT NULL ORDER BY seed, feature"
    )
    points = data["points"]
    assert list(zip(points["seed"], points["feature"], strict=True)) == [
        (row["seed"], row["feature"]) for row in wanted
    ]
    assert points["x"] == pytest.approx([row["x"] for row in wanted], abs=1e-3)
    assert points["y"] == pytest.approx([row["y"] for row in wanted], abs=1e-3)
    n = ensemble["n_comparisons"]
    bounds = bucket_bounds(n, ensemble["epsilon"])
    named = [
        "stable" if row["n_matched_07"] >= bounds.stable else "unstable" if row["n_matched_07"] <= bounds.unstable else "middle"
        for row in wanted
    ]  # fmt: skip
    assert points["bucket"] == named
    assert points["stability"] == pytest.approx([row["n_matched_07"] / n for row in wanted])
    assert (data["n"], data["n_chosen"], all(points["chosen"])) == (len(wanted), None, True)
    assert {f.name for f in fields(MapPage) if not f.name.startswith(("nav_", "figure_"))} == data.keys()


def test_the_company_of_a_bucket_is_counted_among_the_nearest_points(client, address):
    data = client.get(f"{address}/subspaces/map.json").json()
    points = {name: np.array(values) for name, values in data["points"].items()}
    places = np.stack([points["x"], points["y"]], 1)
    distance = ((places[:, None] - places[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :N_NEAR]
    assert data["company"]
    for found in data["company"]:
        mine = np.flatnonzero(points["bucket"] == found["bucket"])
        other = points["seed"][near[mine]] != points["seed"][mine, None]
        same = points["bucket"][near[mine]] == found["bucket"]
        assert found["n"] == len(mine)
        assert found["other_seeds"] == pytest.approx(other.mean(), abs=0.01)  # places are rounded here
        assert found["same_bucket"] == pytest.approx(same.mean(), abs=0.01)
        n = len(places)
        chance = np.mean([(points["seed"] != seed).sum() / (n - 1) for seed in points["seed"][mine]])
        assert found["other_seeds_by_chance"] == pytest.approx(chance)


def test_a_filter_greys_points_and_removes_none(client, address):
    whole = client.get(f"{address}/subspaces/map.json").json()
    for asked in ("bucket=unstable", "seed=1", "bucket=stable&seed=2", "density_min=0.01", "stability_max=0.5"):
        data = client.get(f"{address}/subspaces/map.json?{asked}").json()
        table = client.get(f"{address}/features.json?{asked}&dead=exclude&limit=500").json()
        found = {(row["seed"], row["feature"]) for row in table["rows"]}
        assert table["total"] == len(found)
        points = data["points"]
        assert (points["seed"], points["feature"]) == (whole["points"]["seed"], whole["points"]["feature"])
        keys = zip(points["seed"], points["feature"], strict=True)
        assert points["chosen"] == [key in found for key in keys]
        assert data["n_chosen"] == sum(points["chosen"]) < data["n"]
        page = client.get(f"{address}/subspaces/map?{asked}").text
        drawn = figures_of(page)["map"]["data"]
        assert sum(len(trace["x"]) for trace in drawn) == data["n"]
        grey = drawn[0]
        assert grey["name"] == f"not in the filter {data['n'] - data['n_chosen']:,}"
        assert grey["marker"]["color"] == "@track"
        assert f"The filter finds {data['n_chosen']:,}" in text_of(page)


@pytest.mark.parametrize("colour", ["bucket", "seed"])
def test_the_map_is_valid_counts_in_its_legend_and_tells_groups_by_more_than_colour(client, address, colour):
    page = client.get(f"{address}/subspaces/map?colour={colour}").text
    figure = figures_of(page)["map"]
    plain = {**figure, "data": [t | {"marker": t["marker"] | {"color": "#000"}} for t in figure["data"]]}
    assert plotly.graph_objects.Figure(plain).data
    assert {trace["type"] for trace in figure["data"]} == {"scattergl"}
    assert figure["layout"]["showlegend"]
    for trace in figure["data"]:
        assert trace["name"].endswith(f" {len(trace['x']):,}")
        assert len(trace["x"]) == len(trace["customdata"]) == len(trace["text"])
    if colour == "bucket":
        assert len({trace["marker"]["symbol"] for trace in figure["data"]}) == len(figure["data"])
    assert len({trace["marker"]["color"] for trace in figure["data"]}) == len(figure["data"])
    point = figure["data"][0]
    seed, feature = re.fullmatch(r"/(\d+)/(\d+)", point["customdata"][0]).groups()
    known = client.get(f"{address}/{seed}/{feature}.json").json()
    words = point["text"][0].split("<br>")
    assert (
        words[0] == f"seed {seed} #{feature}: {known['bucket']}, {known['n_matched']} of {known['n_comparisons']} seeds"
    )
    assert client.get(point["meta"]["base"] + point["customdata"][0] + point["meta"]["query"]).status_code == 200
    assert "t-SNE of unit decoder rows, perplexity" in text_of(page)


def test_coordinates_are_downloaded_as_drawn(client, address):
    data = client.get(f"{address}/subspaces/map.json?bucket=unstable").json()["points"]
    for kind, read in (("csv", pyarrow.csv.read_csv), ("parquet", pyarrow.parquet.read_table)):
        table = read(BytesIO(client.get(f"{address}/subspaces/map.{kind}?bucket=unstable").content))
        assert table.to_pydict() == data


def test_markup_in_tokens_and_labels_stays_text_in_a_points_words(own_root, address):
    republish(own_root, f"UPDATE Feature SET explanation = '{EVIL}' WHERE n_active > 0")
    with browse(own_root) as client:
        page = client.get(f"{address}/subspaces/map").text
    words = [text for trace in figures_of(page)["map"]["data"] for text in trace["text"]]
    assert any("&lt;script&gt;" in text for text in words)
    assert not [text for text in words if "<script" in text]
    assert EVIL not in page


def test_the_maps_form_moves_the_address_of_the_page_around_it(client, address):
    base = f"http://127.0.0.1{address}/subspaces"
    asked = {"HX-Request": "true", "HX-Trigger": "map-form"}
    inside = client.get(f"{address}/subspaces/map?bucket=unstable&rank=2", headers=asked | {"HX-Current-URL": base})
    assert inside.headers["HX-Push-Url"] == f"{address}/subspaces?bucket=unstable&rank=2"
    alone = client.get(f"{address}/subspaces/map?bucket=unstable", headers=asked | {"HX-Current-URL": f"{base}/map"})
    assert alone.headers["HX-Push-Url"] == f"{address}/subspaces/map?bucket=unstable"
    fetched = client.get(f"{address}/subspaces/map", headers={"HX-Request": "true", "HX-Trigger": "map-drawn"})
    assert "HX-Push-Url" not in fetched.headers


# -- what was not computed ---------------------------------------------------------------------------------------


def test_without_spans_the_page_names_the_command_and_offers_the_job(own_root, address):
    republish(own_root, *NO_SPANS)
    with browse(own_root) as client:
        data, page = client.get(f"{address}/subspaces.json").json(), client.get(f"{address}/subspaces").text
        drawn = client.get(f"{address}/subspaces/map")
        table = client.get(f"{address}/subspaces.parquet")
        feature = client.get(f"{address}/0/0")
    assert [entry["command"] for entry in data["missing"]] == ["seedscope analyze small --only subspaces"]
    assert "seedscope analyze small --only subspaces" in text_of(page)
    assert 'name="only" value="subspaces"' in page
    assert "was not computed" in data["sentence"]
    assert figures_of(page) == {}
    assert drawn.status_code == 200
    assert "seedscope analyze small --only subspaces" in text_of(drawn.text)
    assert pyarrow.parquet.read_table(BytesIO(table.content)).num_rows == 0
    assert "How well such spans come back" not in feature.text
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(page) + text_of(drawn.text))


def test_one_member_alone_says_why_there_is_nothing(own_root, address):
    republish(own_root, *NO_SPANS, "UPDATE Ensemble SET n_members = 1")
    with browse(own_root) as client:
        answer, drawn = client.get(f"{address}/subspaces"), client.get(f"{address}/subspaces/map")
        data = client.get(f"{address}/subspaces.json").json()
    assert (answer.status_code, drawn.status_code) == (200, 200)
    assert "spans are compared among seeds, and the ensemble has one" in text_of(answer.text)
    assert data["missing"][0]["command"] is None
    assert "Project any set" not in answer.text
    assert "Compute now" not in answer.text


def test_decoders_alone_have_spans_and_a_map_without_words(tmp_path):
    publish_study(tmp_path, "mine", {"topk": (members_that_agree(), {})}, only=("match", "subspaces"))
    with browse(tmp_path) as client:
        page, drawn = client.get("/s/mine/topk/subspaces").text, client.get("/s/mine/topk/subspaces/map")
        data = client.get("/s/mine/topk/subspaces.json").json()
    assert data["claim"] is not None
    assert "activations" not in {line["curve"] for line in data["lines"]}
    assert 'name="trigger"' not in page + drawn.text
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(page) + text_of(drawn.text))


@pytest.mark.parametrize("query", ["rank=0", "rank=x", "matrix=nothing", "colour=none", "bucket=most", "seed=77"])
def test_values_that_are_no_use_are_refused_with_what_is_expected(client, address, query):
    answer = client.get(f"{address}/subspaces/map?{query}")
    assert answer.status_code in (404, 422)
    assert "Traceback" not in answer.text
