"""Studies of which not everything was computed: pages work from what there is, and say what adds the rest."""

import re
from dataclasses import fields
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.routes.ensemble.members import MembersPage
from seedscope.app.routes.ensemble.overview import EnsemblePage
from seedscope.app.routes.ensemble.table import TablePage
from seedscope.app.routes.feature.permalink import FeaturePage
from seedscope.app.routes.home import StudyPage
from seedscope.app.store.feature_query import FeatureQuery
from support.golden import unit_rows
from support.reading import answered, assert_valid_plotly, browse, figures_of, links, main_of, republish, text_of, twin
from support.studies import members_that_agree, publish_study

MINE, PAIR = "/s/mine/topk", "/s/mine/pair"
PAGES = {
    "/s/mine": StudyPage, MINE: EnsemblePage, f"{MINE}?theta=0.555&dead=count": EnsemblePage, PAIR: EnsemblePage,
    f"{MINE}/features": TablePage, f"{PAIR}/features?bucket=dead": TablePage, f"{MINE}/1/5": FeaturePage,
    f"{MINE}/0/0": FeaturePage, f"{PAIR}/1/3?rule=mutual": FeaturePage, f"{MINE}/members": MembersPage,
    f"{MINE}/members?a=0&b=2&theta=0.505": MembersPage, f"{PAIR}/members?a=1&b=0&dead=count": MembersPage,
}  # fmt: skip
ADDS_ACTIVITY = "seedscope analyze mine --model DIR_OR_ID --tokens FILE"
OF_ACTIVITY = {
    "dead", "top_tokens", "density", "n_active", "n_tokens", "mean_activation", "max_activation", "quantiles", "trigger",
    "trigger_share", "trigger_what", "token_entropy", "top_token_share", "contexts", "histogram", "histogram_edges",
}  # fmt: skip
OF_LOSS = {"ablation.marginal_loss_nats", "ablation.loss_rank"}
UNKNOWN = {"asked_digest", "source", "library", "trained_on", "hookpoint"}  # of the address and of the files
UNKNOWN |= {"predicted"}  # of one SAE alone: here p is measured


@pytest.fixture(scope="module")
def decoders():
    """Five members with a few undirected rows, and a pair of which less is known."""
    return {"topk": members_that_agree(), "pair": members_that_agree(members=2, seed=1)}


@pytest.fixture(scope="module")
def client(tmp_path_factory, decoders):
    root = tmp_path_factory.mktemp("decoders")
    known = {"topk": {"hookpoint": "blocks.7.hook_resid_pre"}, "pair": {"shared_start": "yes"}}
    publish_study(root, "mine", {name: (decoders[name], known[name]) for name in decoders})
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def measured(tmp_path_factory, language_model, corpus):
    """A study with a model: activity, but no worth; one of its ensembles reads nobody knows what."""
    root = tmp_path_factory.mktemp("measured")
    publish_study(
        root, "measured",
        {"read": (members_that_agree(d_in=128, members=3), {"hookpoint": "blocks.2.hook_resid_post", "shared_start": "no"}),
         "lost": (members_that_agree(d_in=128, members=3, seed=1), {})},
        model=language_model, texts=corpus.held_out, only=("match", "activity"),
    )  # fmt: skip
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def best(decoders) -> np.ndarray:
    """(members, d_sae, comparisons) largest cosines; -1 for rows without a direction."""
    rows = decoders["topk"].W_dec.detach().double().numpy()
    directed = np.linalg.norm(rows, axis=-1) > 0
    rows = unit_rows(np.where(directed[..., None], rows, 1))
    found = [
        [np.where(directed[b], rows[a] @ rows[b].T, -1).max(1) for b in range(len(rows)) if b != a]
        for a in range(len(rows))
    ]
    return np.where(directed[..., None], np.stack(found).transpose(0, 2, 1), -1)


# -- decoders alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_pages_and_twins_answer_and_never_show_what_is_not_there(client, path):
    page, data = client.get(path), client.get(twin(path))
    assert (page.status_code, data.status_code) == (200, 200)
    assert set(data.json()) == {f.name for f in fields(PAGES[path]) if not f.name.startswith(("nav_", "figure_"))}
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(page.text))
    assert main_of(client.get(path, headers={"HX-Request": "true"}).text) in page.text


@pytest.mark.parametrize("path", PAGES)
def test_every_link_of_a_page_answers(client, path):
    page = client.get(path).text
    for link in {re.sub(r"\d+", "N", link): link for link in links(page) if link.startswith("/")}.values():
        assert answered(client, link).status_code == 200, link


@pytest.mark.parametrize("theta", [0.5, 0.7, 0.9])
def test_buckets_are_those_of_all_features_with_a_direction(client, best, theta):
    n_matched, bare = (best >= theta).sum(2), best.max(2) == -1
    assert (np.abs(best - theta) > 1e-5).all()
    data = client.get(f"{MINE}.json?theta={theta}").json()
    wanted = {
        "stable": (n_matched == 4) & ~bare, "middle": (n_matched > 0) & (n_matched < 4) & ~bare,
        "unstable": (n_matched == 0) & ~bare, "dead": bare,
    }  # fmt: skip
    assert data["buckets"] == {bucket: chosen.sum() for bucket, chosen in wanted.items()}
    assert all(data["buckets"].values())
    for member in data["members"]:
        mine = ~bare[member["seed"]]
        assert member["stable"] == pytest.approx(wanted["stable"][member["seed"]][mine].mean())
        assert (member["ev"], member["l0"], member["n_dead"]) == (None, None, None)
    table = client.get(f"{MINE}/features.json?limit=500&theta={theta}").json()
    assert table["buckets"] == data["buckets"]
    for row in table["rows"]:
        assert row["n_matched"] == n_matched[row["seed"], row["feature"]]
        paired = best[row["seed"], row["feature"]]
        assert row["mean_cosine"] == (
            None if bare[row["seed"], row["feature"]] else pytest.approx(paired.mean(), abs=1e-5)
        )


def test_counting_all_in_judges_rows_without_a_direction_as_unstable(client, best):
    data = client.get(f"{MINE}.json?dead=count").json()
    assert data["buckets"]["dead"] == 0
    assert data["buckets"]["unstable"] == (best < 0.7).all(2).sum()


def test_absent_results_are_null_and_each_says_what_computes_it(client):
    data = client.get(f"{MINE}/1/5.json").json()
    null = {name for name, value in data.items() if value is None}
    of_matches = {f"matches.{name}" for match in data["matches"] for name, value in match.items() if value is None}
    explained = {entry["field"]: entry for entry in data["missing"]}
    assert null >= OF_ACTIVITY | {"ablation"}
    assert null - UNKNOWN | of_matches == set(explained) - OF_LOSS
    for field in OF_ACTIVITY | OF_LOSS | {"ablation", "matches.live_partner", "positive_logits", "negative_logits"}:
        assert explained[field]["command"] == ADDS_ACTIVITY
        assert "no model" in explained[field]["needs"]
    assert explained["explanations"]["command"] == ADDS_ACTIVITY
    assert explained["subspace"]["command"] == "seedscope analyze mine --only subspaces"
    table = client.get(f"{MINE}/features.json?limit=500").json()
    assert table["triggers"] is None
    for row in table["rows"]:
        assert {
            row[name]
            for name in (
                "density",
                "n_active",
                "max_activation",
                "worth_ev",
                "worth_loss",
                "trigger",
                "token_entropy",
                "top_tokens",
            )
        } == {None}
    overview = client.get(f"{MINE}.json").json()
    assert (overview["masked_ev"], overview["masked_n"]) == (None, None)
    assert {median for _, median in overview["bucket_densities"].values()} == {None}


def test_a_row_without_a_direction_is_known_to_match_nothing(client):
    data = client.get(f"{MINE}/0/0.json").json()
    assert (data["dead"], data["bucket"], data["decoder_norm"], data["n_matched"]) == (True, "dead", 0, 0)
    assert "dead" not in {entry["field"] for entry in data["missing"]}
    assert {match["partner"] for match in data["matches"]} == {None}
    text = text_of(client.get(f"{MINE}/0/0").text)
    assert "Its decoder row is zero or not finite" in text
    assert "never fired" not in text
    assert {row["feature"] for row in client.get(f"{MINE}/features.json?bucket=dead").json()["rows"]} == {0, 1}
    assert client.get(f"{MINE}/features.json?dead=exclude").json()["total"] == 5 * 48 - 2


@pytest.mark.parametrize(
    ("query", "found", "instead"),
    [
        ("sort=density", "'density'", "stability or feature"), ("sort=max", "'max'", "stability or feature"),
        ("sort=worth&dir=asc", "'worth'", "stability or feature"), ("density_min=0", "0.0", "no filter by density"),
        ("density_max=0.5", "0.5", "no filter by density"), ("q=def", "'def'", "#INDEX"), ("rule=live", "'live'", "argmax, mutual"),
        ("trigger=number", "'number'", "no filter by trigger"), ("sort=entropy", "'entropy'", "stability or feature"),
        ("sort=loss", "'loss'", "stability or feature"),
    ],
)  # fmt: skip
def test_what_needs_activity_is_refused_with_what_adds_it(client, query, found, instead):
    for path in (f"{MINE}/features", f"{MINE}/1/5"):
        data, page = client.get(f"{path}.json?{query}"), client.get(f"{path}?{query}")
        assert (data.status_code, page.status_code) == (422, 422)
        (problem,) = data.json()["problems"]
        assert problem["found"] == found
        assert instead in problem["expected"]
        assert ADDS_ACTIVITY in problem["expected"]
        assert ADDS_ACTIVITY in text_of(page.text)
    for kind in ("csv", "parquet"):
        assert client.get(f"{MINE}/features.{kind}?{query}").status_code == 422


def test_the_table_offers_only_what_can_be_answered(client):
    page = client.get(f"{MINE}/features").text
    assert not re.search(
        r'sort=(density|worth|max|loss|entropy)|[?;&]trigger=|name="density_m|value="live"|value="count"|density-range',
        page,
    )
    assert ADDS_ACTIVITY in text_of(page)
    assert client.get(f"{MINE}/features.json").json()["densities"] is None
    assert client.get(f"{MINE}/features?q=%2317").status_code == 200


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_downloads_leave_empty_what_is_not_known(client, kind):
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[kind]

    def table(path: str) -> dict:
        return read(BytesIO(client.get(f"{MINE}/{path}").content)).to_pydict()

    features = table(f"features.{kind}?sort=feature")
    assert len(features["seed"]) == 5 * 48
    for name in ("density", "n_active", "n_tokens", "mean_activation", "max_activation", "worth_ev", "worth_loss", "trigger",
                 "trigger_share", "trigger_what", "token_entropy", "top_token_share"):  # fmt: skip
        assert set(features[name]) == {None}
    assert features["dead"].count(True) == 2
    assert set(features["dead"]) == {True, None}
    pair = table(f"members.{kind}?a=0&b=3")
    assert pair["dead"] == [True, True] + [None] * 46
    matrix = table(f"members.{kind}")
    assert set(matrix["n_living"]) == set(matrix["n_matched_living"]) == {None}
    assert matrix["n_anchors"] == [46] * 4 + [48] * 16


def test_only_figures_that_can_be_drawn_are_and_none_speaks_of_living_features(client):
    page = client.get(MINE)
    drawn = figures_of(page.text)
    assert set(drawn) == {"stability", "cdf", "sweep", "convergence"}
    for figure in drawn.values():
        assert_valid_plotly(figure)
    for path in (MINE, f"{MINE}/members"):
        said = text_of(client.get(path).text).replace("matching with living features alone", "")
        assert "living" not in said
    assert "of features come back" in client.get(f"{MINE}.json").json()["sentence"]


def test_a_random_feature_is_one_that_may_live(client):
    for _ in range(5):
        answer = client.get(f"{MINE}/random", follow_redirects=False)
        assert client.get(twin(answer.headers["location"])).json()["dead"] is None


def test_two_members_are_compared_without_curves_over_seeds(client):
    page = client.get(PAIR)
    assert set(figures_of(page.text)) == {"stability", "sweep"}
    assert re.match(
        r"\d+\s% of features come back in the other seed, \d+\s% do not\.",
        client.get(f"{PAIR}.json").json()["sentence"],
    )
    assert not re.search(r"\b1 (seeds|other seeds|comparisons)\b", text_of(page.text))


def test_pairs_and_neighbours_are_answered_live_without_activity(client):
    stored = client.get(f"{MINE}/members.json?a=3&b=1&limit=500").json()["pair"]
    now = answered(client, f"{MINE}/members/match.json?a=3&b=1&limit=500").json()["pair"]
    assert [line["feature"] for line in now["matched"]] == [line["feature"] for line in stored["matched"]]
    assert {line["dead"] for line in now["matched"] + stored["matched"]} == {None}
    near = answered(client, f"{MINE}/1/5/neighbours.json?k=2").json()["neighbours"]
    assert {(n["dead"], n["top_tokens"]) for n in near} == {(None, None)}
    assert "top tokens" not in text_of(answered(client, f"{MINE}/1/5/neighbours?k=2").text)


# -- a part of it ------------------------------------------------------------------------------------------------


def test_activity_without_worth_shows_what_features_do_and_what_adds_their_worth(measured):
    here, command = "/s/measured/read", "seedscope analyze measured --only ablate"
    overview = measured.get(f"{here}.json").json()
    assert overview["ensemble"]["computed"] == ["match", "activity"]
    assert "of living features come back" in overview["sentence"]
    page = measured.get(here).text
    assert set(figures_of(page)) == {"stability", "density", "cdf", "sweep", "convergence"}
    assert command in text_of(page)
    living = next(r for r in measured.get(f"{here}/features.json?dead=exclude").json()["rows"])
    data = measured.get(f"{here}/{living['seed']}/{living['feature']}.json").json()
    assert {"ablation"} | OF_LOSS < {entry["field"] for entry in data["missing"]}
    assert not OF_ACTIVITY & {entry["field"] for entry in data["missing"]}
    assert data["dead"] is False
    assert data["contexts"]
    refused = measured.get(f"{here}/features.json?sort=worth")
    assert refused.status_code == 422
    assert command in refused.json()["problems"][0]["expected"]
    for answer in (
        f"{here}/features?sort=density",
        f"{here}/features?q=e&density_min=0.001",
        f"{here}/1/4",
        f"{here}/members",
    ):
        assert measured.get(answer).status_code == 200
    assert 'name="density_min_percent"' in measured.get(f"{here}/features").text
    assert "sort=worth" not in measured.get(f"{here}/features").text


def test_an_ensemble_whose_hook_point_nobody_knows_asks_for_it(measured):
    missing = measured.get("/s/measured/lost/1/5.json").json()["missing"]
    needs = next(entry for entry in missing if entry["field"] == "density")
    assert needs["command"] == "seedscope analyze measured --hookpoint NAME"
    assert "hook point" in needs["needs"]
    additions = measured.get("/s/measured.json").json()["additions"]
    assert {(a["command"], *a["ensembles"]) for a in additions} == {
        ("seedscope analyze measured --hookpoint NAME", "lost"), ("seedscope analyze measured --only ablate", "read"),
        ("seedscope analyze measured --only explain", "read"), ("seedscope analyze measured --only loss", "read"),
        ("seedscope analyze measured --only function", "read"),
        ("seedscope analyze measured --only subspaces", "lost", "read"),
        ("seedscope analyze measured --only shared_spans", "lost", "read"),
        ("seedscope analyze measured --only predictor", "read"),
    }  # fmt: skip


def test_where_living_partners_were_not_matched_pages_say_so(own_root, address):
    republish(
        own_root, "DELETE FROM Pair WHERE rule = 'live'", "UPDATE Feature SET live_cosines = []",
        "UPDATE Match SET live_partners = []",
    )  # fmt: skip
    client, command = browse(own_root), "seedscope analyze small --only match"
    refused = client.get(f"{address}/features.json?rule=live")
    assert refused.status_code == 422
    assert command in refused.json()["problems"][0]["expected"]
    data = client.get(f"{address}/0/5.json").json()
    assert {match["live_partner"] for match in data["matches"]} == {None}
    assert {e["command"] for e in data["missing"] if e["field"].startswith("matches.live")} == {command}
    for page in ("", "/features", "/members", "/0/5"):
        shown = client.get(f"{address}{page}")
        assert shown.status_code == 200
        assert 'value="live"' not in shown.text


def test_a_model_that_reads_both_ways_has_no_next_token_loss(own_root, address):
    republish(
        own_root, "UPDATE Study SET causal = false, model = 'bert-base'", "UPDATE Feature SET worth_loss = NULL",
        "UPDATE Ensemble SET computed = list_filter(computed, lambda c: c != 'loss')", "DELETE FROM Logit",
    )  # fmt: skip
    client = browse(own_root)
    explained = {e["field"]: e for e in client.get(f"{address}/0/5.json").json()["missing"]}
    assert set(explained) == OF_LOSS | {"positive_logits", "negative_logits"}
    for field in OF_LOSS | {"positive_logits", "negative_logits"}:
        assert "bert-base every token sees the tokens after it" in explained[field]["needs"]
        assert explained[field]["command"] is None
    assert client.get(f"{address}/features.json?sort=loss").status_code == 422
    for path in ("/s/small", address, f"{address}/0/5"):
        assert "bert-base every token sees the tokens after it" in text_of(client.get(path).text)


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize(
    ("sort", "column"),
    [("worth", "worth_ev"), ("density", "n_active"), ("max", "max_activation"), ("loss", "worth_loss"),
     ("entropy", "token_entropy")],
)  # fmt: skip
def test_paging_passes_values_that_are_not_there_and_puts_them_last(own_root, address, sort, column, direction):
    republish(own_root, f"UPDATE Feature SET {column} = NULL WHERE feature % 3 = 0")
    client = browse(own_root)

    def get(**position: object) -> dict:
        return client.get(
            f"{address}/features.json", params={"sort": sort, "dir": direction, "limit": 70} | position
        ).json()

    pages = [get()]
    while (after := pages[-1]["after"]) and len(pages) < 10:
        pages.append(get(after=after))
    rows = [row for page in pages for row in page["rows"]]
    assert len({(row["seed"], row["feature"]) for row in rows}) == len(rows) == 4 * 96
    values = [row[column] for row in rows]
    held = [value for value in values if value is not None]
    assert values == sorted(held, reverse=direction == "desc") + [None] * 128
    back = [pages[-1]]
    while (before := back[-1]["before"]) and len(back) < 10:
        back.append(get(before=before))
    assert [page["rows"] for page in reversed(back)] == [page["rows"] for page in pages]
    found = client.app.state.studies.get("small").features(
        FeatureQuery("topk-96", sort=sort, descending=direction == "desc")
    )
    order = [(row["seed"], row["feature"]) for row in rows]
    for index in (0, 255, 256, 383):
        place = found.place(*order[index])
        assert (place.position, place.total) == (index + 1, 384)
        assert (place.previous, place.next) == (order[index - 1] if index else None, [*order, None][index + 1])
