"""Sets and features projected on demand: pages and twins over a real engine, against plain NumPy, and what is refused."""

import csv
import io
import math
from itertools import combinations

import numpy as np
import pyarrow.parquet
import pytest

from seedscope.app.figures.spans import CURVES, CapturedCurve, captured_figure
from seedscope.engine.saes import sae
from support.golden import unit_rows
from support.reading import answered, assert_valid_plotly, browse, figures_of, links, text_of, twin
from support.studies import members_that_agree, publish_study


@pytest.fixture(scope="module")
def here(address) -> str:
    return f"{address}/subspaces/project"


@pytest.fixture(scope="module")
def rows(ensemble_saes: sae.SAE) -> np.ndarray:
    return unit_rows(ensemble_saes.W_dec.detach().double().numpy())


@pytest.fixture(scope="module")
def members_of(client, address):
    """{seed: features} of a filter of the feature table."""

    def find(query: str) -> dict[int, list[int]]:
        held: dict[int, list[int]] = {}
        for line in csv.DictReader(io.StringIO(client.get(f"{address}/features.csv?{query}").text)):
            held.setdefault(int(line["seed"]), []).append(int(line["feature"]))
        return {seed: sorted(features) for seed, features in sorted(held.items())}

    return find


def directions(rows: np.ndarray, rank: int) -> np.ndarray:
    return np.linalg.svd(rows, full_matrices=False)[2][:rank]


def plain(sentence: str) -> str:
    """With the spaces that `text_of` has."""
    return " ".join(sentence.split())


# -- a set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query", ["bucket=unstable&theta=0.8", "dead=exclude&density_min=0.001", "bucket=middle&epsilon=0.2"]
)
def test_the_twin_projects_what_the_feature_table_finds(client, here, members_of, rows, query):
    told, sets = answered(client, f"{here}.json?{query}&rank=3").json(), members_of(query)
    listed = list(csv.DictReader(io.StringIO(answered(client, f"{here}.csv?{query}&rank=3").text)))
    assert {(int(line["seed"]), int(line["feature"])) for line in listed} == {(s, f) for s in sets for f in sets[s]}
    assert {m["seed"]: m["n"] for m in told["members"]} == {s: len(f) for s, f in sets.items()}
    assert told["n"] == told["total"] == sum(map(len, sets.values()))
    for member in told["members"]:
        values = np.linalg.svd(rows[member["seed"], sets[member["seed"]]], compute_uv=False)
        share = values / values.sum()
        assert member["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
    spans = [directions(rows[s, f], 3) for s, f in sets.items()]
    shared = np.mean([((a @ b.T) ** 2).sum() / 3 for a, b in combinations(spans, 2)])
    assert told["overlap"]["mean"][told["overlap"]["ranks"].index(3)] == pytest.approx(shared, abs=1e-4)


def test_energies_of_features_and_the_curve_are_of_one_projection(client, here):
    told = answered(client, f"{here}.json?dead=exclude&rank=3").json()
    listed = list(csv.DictReader(io.StringIO(answered(client, f"{here}.csv?dead=exclude&rank=3").text)))
    cross = next(curve for curve in told["curves"] if curve["name"] == "cross")
    at = cross["ranks"].index(3)
    assert cross["n_pairs"][at] == 12
    per_seed = [np.mean([float(line["others"]) for line in listed if line["seed"] == str(s)]) for s in range(4)]
    assert np.mean(per_seed) == pytest.approx(cross["mean"][at], abs=0.03)
    within = next(curve for curve in told["curves"] if curve["name"] == "within")
    own = [np.mean([float(line["own"]) for line in listed if line["seed"] == str(s)]) for s in range(4)]
    assert np.mean(own) == pytest.approx(within["mean"][at], abs=0.03)
    assert {curve["name"] for curve in told["curves"]} >= {"within", "cross", "random_set"}


def test_the_page_says_what_the_twin_says(client, here):
    path = f"{here}?dead=exclude&rank=3&members=0,2,3"
    told, page = answered(client, twin(path)).json(), answered(client, path).text
    text = text_of(page)
    assert plain(told["sentence"]) in text
    assert f"{told['n']:,} features of this filter of 3 seeds" in told["sentence"]
    assert "3 of 128" in told["sentence"]
    assert all(plain(remark) in text for remark in told["remarks"])
    first = told["features"][0]
    assert f"{first['seed']}/ #{first['feature']}" in text
    figures = figures_of(page)
    assert_valid_plotly(figures["projected"])
    drawn = {trace["name"] for trace in figures["projected"]["data"]}
    assert {"own seed", "another seed", "random, r/d"} <= drawn
    assert "without dead ones" in text


def test_features_are_sorted_and_paged(client, here):
    def listed(query: str) -> list[dict]:
        return answered(client, f"{here}.json?dead=exclude&rank=3&{query}").json()["features"]

    for order in ("others", "own", "difference"):
        for direction, sign in (("desc", -1), ("asc", 1)):
            values = [feature[order] for feature in listed(f"order={order}&dir={direction}")]
            assert values == sorted(values, key=lambda value: sign * value)
    first, second = listed("page=1"), listed("page=2")
    assert first[-1]["others"] >= second[0]["others"]
    assert not {(f["seed"], f["feature"]) for f in first} & {(f["seed"], f["feature"]) for f in second}
    for feature in first:
        assert feature["difference"] == pytest.approx(feature["own"] - feature["others"], abs=1e-6)


def test_seed_and_index_list_features_and_leave_the_spans_alone(client, here):
    whole = answered(client, f"{here}.json?dead=exclude&rank=3").json()
    some = answered(client, f"{here}.json?dead=exclude&rank=3&seed=2").json()
    assert some["curves"] == whole["curves"]
    assert {feature["seed"] for feature in some["features"]} == {2}
    assert some["total"] < whole["total"] == some["n"]
    assert any("all seeds" in remark for remark in some["remarks"])


def test_curves_are_downloaded_as_they_are_drawn(client, here):
    told = answered(client, f"{here}.json?dead=exclude&rank=3").json()
    lines = pyarrow.parquet.read_table(
        io.BytesIO(answered(client, f"{here}/curves.parquet?dead=exclude&rank=3").content)
    ).to_pylist()
    for curve in [*told["curves"], told["overlap"]]:
        mine = [line for line in lines if line["curve"] == curve["name"]]
        assert [line["rank"] for line in mine] == curve["ranks"]
        assert [line["mean"] for line in mine] == curve["mean"]
    assert {line["random_subspace"] for line in lines if line["rank"] == 128} == {1.0}
    table = answered(client, f"{here}.parquet?dead=exclude&rank=3")
    assert pyarrow.parquet.read_table(io.BytesIO(table.content)).num_rows == told["n"]


def test_a_set_smaller_than_the_rank_says_where_its_curve_stops(client, here):
    told = answered(client, f"{here}.json?dead=exclude&rank=100").json()
    cross = next(curve for curve in told["curves"] if curve["name"] == "cross")
    assert cross["mean"][cross["ranks"].index(100)] is None
    assert told["sentence"].startswith("No span of these sets has 100 directions")
    assert any("stop before it" in remark for remark in told["remarks"])
    assert {feature["others"] for feature in told["features"]} == {None}
    page = answered(client, f"{here}?dead=exclude&rank=100").text
    largest = max(member["n_fitted"] for member in told["members"])
    assert f"Take rank {largest}" in text_of(page)
    again = answered(client, f"{here}.json?dead=exclude&rank={largest}").json()
    assert any(feature["others"] is not None for feature in again["features"])


@pytest.mark.parametrize(
    ("query", "name"),
    [("rank=0", "rank"), ("rank=129", "rank"), ("rank=x", "rank"), ("members=a", "members"), ("members=0,17", "members"),
     ("members=-1", "members"), ("order=size", "order"), ("page=0", "page"), ("page=9999", "page"), ("bucket=odd", "bucket"),
     ("colour=red", "colour")],
)  # fmt: skip
def test_bad_values_are_refused_by_name(client, here, query, name):
    refused = answered(client, f"{here}.json?{query}")
    assert refused.status_code == 422
    assert [problem["name"] for problem in refused.json()["problems"]] == [name]


def test_one_seed_is_refused_and_the_form_stays(client, here):
    refused = client.get(f"{here}?members=2", headers={"HX-Request": "true"})
    assert "Found one seed (2)" in text_of(refused.text)
    assert 'name="members"' in refused.text
    twin, table = (client.get(f"{here}.{kind}?members=2") for kind in ("json", "csv"))
    assert refused.status_code == twin.status_code == table.status_code == 422
    assert "found one seed (2)" in twin.json()["says"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("q=no-such-token-anywhere", "Found 0 features of this filter"),
        ("bucket=stable&theta=1", "Found 0 stable features"),
    ],
)
def test_a_filter_that_finds_nothing_says_so_and_what_to_do(client, here, query, says):
    page, told = client.get(f"{here}?{query}"), client.get(f"{here}.json?{query}").json()
    assert page.status_code == 200
    assert says in text_of(page.text)
    assert "wider filter" in told["sentence"]
    assert told["curves"] == told["features"] == []
    assert client.get(f"{here}.csv?{query}").status_code == 422


def test_an_unknown_seed_and_ensemble_are_not_found(client, here, address):
    assert client.get(f"{here}?seed=99").status_code == 404
    assert client.get(f"{address}x/subspaces/project").status_code == 404


def test_seeds_come_with_commas_or_repeated(client, here):
    comma = answered(client, f"{here}.json?dead=exclude&members=0,2").json()
    repeated = answered(client, f"{here}.json?dead=exclude&members=0&members=2").json()
    assert comma == repeated
    assert [member["seed"] for member in comma["members"]] == [0, 2]


def test_within_another_page_the_address_stays(client, here, address):
    path = f"{here}?dead=exclude&rank=3"
    inside = answered(
        client, path, headers={"HX-Request": "true", "HX-Current-URL": f"http://127.0.0.1{address}/subspaces"}
    )
    alone = answered(client, path, headers={"HX-Request": "true", "HX-Current-URL": f"http://127.0.0.1{here}?rank=9"})
    assert "HX-Push-Url" not in inside.headers
    assert alone.headers["HX-Push-Url"] == path
    assert "<h1>" in alone.text
    assert "<h1>" not in inside.text


def test_chips_take_one_part_out_of_the_filter(client, here):
    page = answered(client, f"{here}?dead=exclude&density_min=0.0001&theta=0.6&rank=3").text
    chips = [link for link in links(page) if link.startswith(here) and "hx" not in link]
    filters = [{*link.partition("?")[2].split("&")} for link in chips]
    assert {"theta=0.6", "dead=exclude", "rank=3"} in filters
    assert {"dead=exclude", "density_min=0.0001", "rank=3"} in filters


def test_the_feature_table_hands_its_filter_on(client, here, address):
    page = client.get(f"{address}/features?bucket=middle&theta=0.6&sort=density&dir=asc").text
    assert f"{here}?theta=0.6&bucket=middle" in links(page)


# -- one feature -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy(client, address) -> dict:
    table = client.get(f"{address}/features.json?seed=1&sort=density").json()
    return table["rows"][3]


def test_a_feature_is_projected_as_numpy_projects_it(client, address, members_of, rows, busy):
    told = answered(client, f"{address}/1/{busy['feature']}/project.json?bucket=middle").json()
    sets = members_of("bucket=middle")
    mine = rows[1, busy["feature"]]
    assert [each["seed"] for each in told["seeds"]] == [s for s in sets if s != 1]
    energies = []
    for each in told["seeds"]:
        spans = directions(rows[each["seed"], sets[each["seed"]]], 128)
        assert each["n_rank"] == len(sets[each["seed"]])
        for rank, value in zip(told["ranks"], each["energy"], strict=True):
            if rank <= each["n_rank"]:
                assert value == pytest.approx(((spans[:rank] @ mine) ** 2).sum(), abs=1e-4)
            else:
                assert value is None
        energies.append(each["energy"][told["ranks"].index(told["rank"])])
    known = [value for value in energies if value is not None]
    at = told["ranks"].index(told["rank"])
    assert told["mean"][at] == pytest.approx(np.mean(known))
    assert (told["low"][at], told["high"][at]) == pytest.approx((min(known), max(known)))
    assert abs(told["rank"] - 16) <= 2


def test_controls_are_the_living_features_nearest_in_density(client, address, members_of, rows, busy):
    told = answered(client, f"{address}/1/{busy['feature']}/project.json").json()
    living = [
        r for r in client.get(f"{address}/features.json?seed=1&dead=exclude&limit=200").json()["rows"] if r["n_active"]
    ]
    distance = {
        r["feature"]: abs(math.log(r["n_active"] / busy["n_active"])) for r in living if r["feature"] != busy["feature"]
    }
    nearest = sorted(distance, key=lambda feature: (distance[feature], feature))[:20]
    assert told["controls"] == nearest
    sets = members_of("bucket=unstable")
    at = told["ranks"].index(2)
    each = [
        np.mean([((directions(rows[s, f], 2) @ rows[1, control]) ** 2).sum() for s, f in sets.items() if s != 1])
        for control in nearest
    ]
    assert told["control_mean"][at] == pytest.approx(np.mean(each), abs=1e-4)
    assert told["control_low"][at] == pytest.approx(np.quantile(each, 0.05), abs=1e-4)
    assert told["control_high"][at] == pytest.approx(np.quantile(each, 0.95), abs=1e-4)


def test_the_page_of_a_feature_asks_when_it_is_opened_and_draws_what_the_twin_says(client, address, busy):
    path = f"{address}/1/{busy['feature']}/project"
    assert f'hx-get="{path}"' in client.get(f"{address}/1/{busy['feature']}").text
    told, page = answered(client, f"{path}.json").json(), answered(client, path).text
    assert plain(told["sentence"]) in text_of(page)
    assert '<svg class="energy"' in page
    assert f"lowest to highest of {len(told['seeds'])} seeds" in text_of(page)


@pytest.mark.parametrize(
    ("query", "name"), [("bucket=dead", "bucket"), ("members=9", "members"), ("members=z", "members")]
)
def test_bad_values_for_a_feature_are_refused_by_name(client, address, query, name):
    refused = client.get(f"{address}/1/5/project.json?{query}")
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["name"] == name
    assert client.get(f"{address}/1/5000/project").status_code == 404


def test_without_a_set_in_any_other_seed_the_engine_says_so(client, address):
    refused = answered(client, f"{address}/1/5/project.json?bucket=stable&theta=1")
    assert refused.status_code == 422
    assert "take another bucket" in refused.json()["says"]


# -- decoders alone ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Five members with a few undirected rows, of which nothing but decoders is known."""
    root = tmp_path_factory.mktemp("decoders")
    members = members_that_agree()
    publish_study(root, "mine", {"topk": (members, {})})
    with browse(root) as client:
        yield client, (members.W_dec.detach().norm(dim=-1) > 0).numpy()


def test_without_activity_all_rows_that_have_a_direction_are_projected(decoders):
    client, directed = decoders
    path = "/s/mine/topk/subspaces/project?rank=2"
    told, page = answered(client, twin(path)).json(), answered(client, path).text
    assert [member["n"] for member in told["members"]] == directed.sum(1).tolist()
    assert [member["n_undirected"] for member in told["members"]] == (~directed).sum(1).tolist()
    assert f"{(~directed).sum()} features without a direction are left out." in told["remarks"]
    assert told["features"][0]["top_tokens"] is None
    assert "density" not in text_of(page)


def test_without_activity_a_feature_is_compared_with_any_others(decoders):
    client, directed = decoders
    seed, feature = np.argwhere(directed)[0]
    told = answered(client, f"/s/mine/topk/{seed}/{feature}/project.json?bucket=stable").json()
    assert len(set(told["controls"])) == 20
    assert feature not in told["controls"]
    assert directed[seed, told["controls"]].all()
    assert "20 features drawn at random" in told["sentence"]


def test_a_row_without_a_direction_is_not_offered_and_refused(decoders):
    client, directed = decoders
    seed, feature = np.argwhere(~directed)[0]
    assert "Project this feature" not in client.get(f"/s/mine/topk/{seed}/{feature}").text
    refused = answered(client, f"/s/mine/topk/{seed}/{feature}/project.json?bucket=stable")
    assert refused.status_code == 422
    assert "has a direction" in refused.json()["says"]


# -- the figure ------------------------------------------------------------------------------------------------------


def curve(name: str, mean: tuple, spread: float | None = 0.01) -> CapturedCurve:
    ranks = (1, 4, 16, 64, 128)
    return CapturedCurve(name, ranks, mean, tuple(spread if m is not None else None for m in mean), (6,) * 5)


def test_the_figure_draws_every_curve_the_null_and_the_mark():
    curves = [curve(name, (0.1 + i / 50, 0.2 + i / 50, 0.4 + i / 50, 0.8, None)) for i, name in enumerate(CURVES[:5])]
    figure = captured_figure(curves, d=128, rank=16, n="40 unstable features of 3 seeds")
    assert_valid_plotly(figure.plot)
    lines = {trace["name"]: trace for trace in figure.plot["data"] if "customdata" in trace}
    assert len(lines) == 6
    assert lines["random, r/d"]["y"] == [1 / 128, 4 / 128, 16 / 128, 0.5, 1]
    assert lines["random, r/d"]["line"]["color"] == "@null"
    assert lines["another seed"]["line"]["color"] == "@unstable"
    assert figure.plot["layout"]["shapes"][0]["x0"] == 16
    assert all(sum(map(bool, trace["text"])) == 1 for trace in lines.values())
    assert "42\u00a0%" in figure.title
    assert "40 unstable features of 3 seeds" in figure.reading
    assert len(figure.table) == 5 * 4 + 5


def test_a_set_that_is_no_bucket_has_no_bucket_colour():
    figure = captured_figure(
        [curve("cross", (0.1, 0.2, 0.3, 0.4, 0.5), None)], d=128, rank=None, n="9", subject="features", bucket=None
    )
    roles = {trace["line"]["color"] for trace in figure.plot["data"]}
    assert roles == {"@accent", "@null"}
    assert figure.plot["layout"]["shapes"] == []
    assert figure.title.endswith("?")
