"""Every page: what it shows is its JSON, its lists are whole, its addresses mean what they say."""

import html
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.figures.svg_strips import seed_strip
from seedscope.app.routes.ensemble.explanations import ExplanationsPage
from seedscope.app.routes.ensemble.members import MembersPage
from seedscope.app.routes.ensemble.overview import EnsemblePage
from seedscope.app.routes.ensemble.table import TablePage
from seedscope.app.routes.feature.permalink import FeaturePage
from seedscope.app.routes.feature.scored_contexts import ScoredPage
from seedscope.app.routes.home import HomePage, MethodsPage, StudyPage
from seedscope.app.routes.study.pool import PoolPage
from seedscope.app.store.feature_query import SORTS, FeatureQuery
from support.golden import unit_rows
from support.reading import answered, assert_valid_plotly, browse, figures_of, links, main_of, republish, text_of, twin

PAGES = {
    "/": HomePage,
    "/methods": MethodsPage,
    "{study}": StudyPage,
    "{study}/pool": PoolPage,
    "{ensemble}": EnsemblePage,
    "{ensemble}/features": TablePage,
    "{ensemble}/0/5": FeaturePage,
    "{ensemble}/0/5/scored": ScoredPage,
    "{ensemble}/explanations": ExplanationsPage,
    "{ensemble}/members": MembersPage,
    "{ensemble}/members?a=0&b=2": MembersPage,
}
BUCKETS = ("stable", "middle", "unstable", "dead")
VOID = {"meta", "link", "input", "br", "rect", "path", "img"}
HTMX = {"HX-Request": "true"}


@pytest.fixture(scope="module")
def at(address):
    """Fill in a page address."""
    return lambda path: path.format(study=address.rsplit("/", 1)[0], ensemble=address)


@pytest.fixture
def table(client, address):
    """The feature table's JSON under a filter."""

    def get(**parameters: object) -> dict:
        answer = client.get(f"{address}/features.json", params={"limit": 500, **parameters})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return get


@pytest.fixture(scope="module")
def everything(client, address) -> list[dict]:
    """All rows in the table's own order."""
    return client.get(f"{address}/features.json?limit=500").json()["rows"]


@pytest.fixture(scope="module")
def one_of(everything):
    """(seed, feature) of some feature of a bucket."""
    return {bucket: next((r["seed"], r["feature"]) for r in everything if r["bucket"] == bucket) for bucket in BUCKETS}


def keys(rows: list[dict]) -> list[tuple[int, int]]:
    return [(row["seed"], row["feature"]) for row in rows]


# -- pages and their twins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_html_and_its_twin_holds_the_fields_of_its_context(client, at, path):
    page, data = client.get(at(path)), client.get(twin(at(path)))
    assert (page.status_code, data.status_code) == (200, 200)
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.startswith("<!doctype html>")
    assert data.headers["content-type"] == "application/json"
    assert set(data.json()) == {f.name for f in fields(PAGES[path]) if not f.name.startswith(("nav_", "figure_"))}


@pytest.mark.parametrize("path", PAGES)
def test_every_link_and_file_that_a_page_names_answers(client, at, path):
    page = client.get(at(path)).text
    one_per_kind = {re.sub(r"\d+", "N", link): link for link in links(page, "[href], [src]") if link.startswith("/")}
    assert one_per_kind
    for link in one_per_kind.values():
        assert answered(client, link).status_code == 200, link


@pytest.mark.parametrize("path", PAGES)
def test_elements_are_closed_in_the_order_in_which_they_were_opened(client, at, path):
    class Check(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attributes: list) -> None:
            if tag not in VOID:
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attributes: list) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            if tag not in VOID and tag not in ("p", "li"):
                while self.open[-1] in ("p", "li") and self.open[-1] != tag:
                    self.open.pop()
                assert self.open.pop() == tag
            elif tag in self.open:
                assert self.open.pop() == tag

    check = Check()
    check.feed(client.get(at(path)).text)
    assert check.open == []


def test_the_feature_twin_has_every_name_that_was_promised(client, address):
    """INTERFACE: absent results are null, with a list that says what they need; never left out."""
    data = client.get(f"{address}/0/5.json").json()
    promised = (
        "study ensemble seed feature digest sae_digest shared_start data_order stability stability_low stability_high "
        "p_stable p_unstable n_matched n_comparisons bucket theta epsilon null_rate null_p999 dead trigger top_tokens "
        "density n_active n_tokens mean_activation max_activation matches contexts positive_logits negative_logits "
        "explanations ablation subspace missing"
    )
    of_matches = (
        "seed partner cosine runner_up_cosine matched mutual encoder_cosine live_partner live_cosine "
        "hungarian_partner hungarian_cosine hungarian_encoder_cosine encoder_partner active_partner active_correlation"
    )
    assert set(promised.split()) <= set(data)
    assert all(set(of_matches.split()) <= set(match) for match in data["matches"])
    assert all({"group", "tokens", "activations", "document", "position"} <= set(c) for c in data["contexts"])
    explained = {entry["field"] for entry in data["missing"]}
    unknown = {"asked_digest", "source", "trained_on"}  # of the address and of the file, not results
    unknown |= {"predicted"}  # of one SAE alone: here it is measured
    assert {name for name, value in data.items() if value is None} - unknown <= explained


def test_docs_names_every_address_and_healthz_every_study(client):
    paths = client.get("/openapi.json").json()["paths"]
    page = client.get("/docs")
    assert {"/", "/s/{study}", "/s/{study}/{ensemble}/features"} <= set(paths)
    assert all(html.escape(path) in page.text for path in paths)
    assert client.get("/healthz").json() == {"status": "ok", "studies": ["small"]}


# -- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_feature_page_shows_the_numbers_of_its_twin(client, address, one_of, bucket):
    path = "{}/{}/{}".format(address, *one_of[bucket])
    data, text = client.get(f"{path}.json").json(), text_of(client.get(path).text)
    assert data["bucket"] == bucket
    shown = [
        f"{data['stability']:.2f}",
        f"{data['n_matched']} of {data['n_comparisons']} matched",
        f"{data['stability_low']:.2f} – {data['stability_high']:.2f}",
        f"{100 * data['density']:.3f} %",
        f"{data['n_active']:,} of {data['n_tokens']:,}",
        f"{data['max_activation']:.2f} / {data['mean_activation']:.2f}",
        f"{1000 * data['ablation']['marginal_ev']:+.2f} ‰",
        f"rank {data['ablation']['rank']} of {data['ablation']['of']}",
        f"Why {bucket}?",
    ]
    for match in data["matches"]:
        shown.append(f"{match['seed']} #{match['partner']} ")
        shown.append(f"{match['cosine']:.3f} next best {match['runner_up_cosine']:.3f}")
    for _, count in data["top_tokens"]:
        shown.append(f"{count:,}")
    assert [entry for entry in shown if entry not in text] == []


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_features_numbers_agree_with_each_other(client, address, one_of, bucket):
    data = client.get("{}/{}/{}.json".format(address, *one_of[bucket])).json()
    assert data["n_matched"] == sum(match["matched"] for match in data["matches"])
    assert data["stability"] == data["n_matched"] / data["n_comparisons"]
    assert data["density"] == pytest.approx(data["n_active"] / data["n_tokens"])
    assert data["n_active"] == sum(data["histogram"])
    assert data["dead"] == (data["n_active"] == 0) == (data["contexts"] == []) == (bucket == "dead")
    assert [match["seed"] for match in data["matches"]] == [s for s in range(4) if s != data["seed"]]
    for context in data["contexts"]:
        assert len(context["tokens"]) == len(context["activations"])
        assert max(context["activations"]) == pytest.approx(context["activations"][context["peak"]])
    if data["contexts"]:
        assert max(data["contexts"][0]["activations"]) == pytest.approx(data["max_activation"])


def test_partners_and_cosines_are_those_of_the_decoder_matrices(client, address, ensemble_saes):
    rows = unit_rows(ensemble_saes.W_dec.detach().double().numpy())
    for feature in range(0, 96, 24):
        data = client.get(f"{address}/2/{feature}.json").json()
        for match in data["matches"]:
            cosines = rows[2, feature] @ rows[match["seed"]].T
            assert match["partner"] == cosines.argmax()
            assert match["cosine"] == pytest.approx(cosines.max(), abs=1e-5)
            assert match["runner_up_cosine"] == pytest.approx(np.sort(cosines)[-2], abs=1e-5)
            back = rows[match["seed"], match["partner"]] @ rows[2].T
            assert match["mutual"] == (back.argmax() == feature)


def test_the_overview_counts_what_the_table_finds(client, address, table):
    data, page = client.get(f"{address}.json").json(), client.get(address)
    text = text_of(page.text)
    assert sum(data["buckets"].values()) == 4 * 96
    for bucket, n in data["buckets"].items():
        assert table(bucket=bucket)["total"] == n
        assert f"{n:,} {bucket}" in text
    assert data["sentence"].replace("\xa0", " ") in text
    assert sum(member["n_dead"] for member in data["members"]) == data["buckets"]["dead"]
    for member in data["members"]:
        assert f"{member['seed']} {member['ev']:.3f} {member['l0']:.1f} {member['n_dead']}" in text
        living = 96 - member["n_dead"]
        counts = {b: table(bucket=b, seed=member["seed"])["total"] for b in ("stable", "middle", "unstable")}
        assert counts == {b: pytest.approx(member[b] * living) for b in counts}


@pytest.mark.parametrize("theta", [0.3, 0.55, 0.7, 0.9, 1.0])
def test_theta_recounts_matches_as_the_decoder_matrices_say(client, address, ensemble_saes, everything, theta):
    rows = unit_rows(ensemble_saes.W_dec.detach().double().numpy())
    best = np.stack([[(rows[a] @ rows[b].T).max(1) for b in range(4) if b != a] for a in range(4)])
    clear = (np.abs(best - theta) > 1e-5).all(1)
    wanted = (best >= theta).sum(1)
    data = client.get(f"{address}/features.json", params={"limit": 500, "theta": theta}).json()
    assert clear.mean() > 0.95
    for row in data["rows"]:
        if clear[row["seed"], row["feature"]]:
            x = wanted[row["seed"], row["feature"]]
            living = {0: "unstable", 3: "stable"}.get(int(x), "middle")
            assert row["n_matched"] == x
            assert row["bucket"] in (living, "dead")
    assert client.get(f"{address}.json", params={"theta": theta}).json()["buckets"] == data["buckets"]


def test_a_cosine_equal_to_theta_is_a_match_on_every_page(client, address, everything):
    for row in (r for r in everything[::40] if min(r["cosines"]) > 0):
        theta = min(row["cosines"])
        query = f"theta={theta!r}&seed={row['seed']}&id={row['feature']}"
        (listed,) = client.get(f"{address}/features.json?{query}").json()["rows"]
        shown = client.get(f"{address}/{row['seed']}/{row['feature']}.json?theta={theta!r}").json()
        assert listed["n_matched"] == shown["n_matched"] == 3
        (above,) = client.get(f"{address}/features.json?{query.replace(repr(theta), repr(theta + 1e-6))}").json()[
            "rows"
        ]
        assert above["n_matched"] < 3


def test_a_wider_epsilon_moves_features_out_of_the_middle_and_never_the_dead(client, address):
    narrow, wide = (client.get(f"{address}.json?epsilon={e}").json()["buckets"] for e in (0.05, 0.34))
    assert wide["dead"] == narrow["dead"]
    assert wide["middle"] == 0 < narrow["middle"]
    assert wide["stable"] + wide["unstable"] == sum(narrow[b] for b in ("stable", "middle", "unstable"))


@pytest.mark.parametrize("cosine", [0.7, np.float32(0.7), np.nextafter(np.float32(0.7), np.float32(0)), 0.69, 0.71])
def test_a_strip_is_solid_where_the_feature_counts_as_matched(cosine):
    """The last float32 below theta is no match, and must not be drawn or counted as one."""
    matched = np.float32(cosine) >= np.float32(0.7)
    strip = str(seed_strip((float(np.float32(cosine)),), 0.7, "middle", "cosine"))
    assert f"{int(matched)} of 1 seeds match" in strip
    assert ('class="solid" d="M' in strip) == matched


# -- the feature table -------------------------------------------------------------------------------------------


def test_filters_find_exactly_the_rows_that_satisfy_them(table, everything):
    cases = {
        "bucket=unstable": lambda r: r["bucket"] == "unstable",
        "bucket=dead": lambda r: r["bucket"] == "dead",
        "seed=2": lambda r: r["seed"] == 2,
        "dead=exclude": lambda r: r["n_active"] > 0,
        "dead=only": lambda r: r["n_active"] == 0,
        "density_min=0.01": lambda r: r["density"] >= 0.01,
        "density_max=0.01": lambda r: r["density"] <= 0.01,
        "stability_min=0.4": lambda r: r["n_matched"] >= 2,
        "stability_max=0.6666666666666666": lambda r: r["n_matched"] <= 2,
        "stability_min=0.3333333333333333": lambda r: r["n_matched"] >= 1,
        "id=7": lambda r: r["feature"] == 7,
        "q=%235": lambda r: r["feature"] == 5,
        "q=def": lambda r: _says(r, "def"),
        "q=DEF": lambda r: _says(r, "def"),
        "q=any aft": lambda r: _says(r, "any", "aft"),
        "q=After, an": lambda r: _says(r, "after", "an"),
        "q=oken aft": lambda r: _says(r, "oken", "aft"),
        "score_min=0.7": lambda r: r["score"] is not None and np.float32(r["score"]) >= np.float32(0.7),
        "q=no such token": lambda r: False,
        "seed=1&bucket=stable&density_min=0.005": lambda r: (
            r["seed"] == 1 and r["bucket"] == "stable" and r["density"] >= 0.005
        ),
    }
    for query, fits in cases.items():
        found = table(**{"sort": "stability"} | dict(pair.replace("%23", "#").split("=") for pair in query.split("&")))
        wanted = [key for key, row in zip(keys(everything), everything, strict=True) if fits(row)]
        assert keys(found["rows"]) == wanted, query
        assert found["total"] == len(wanted), query
        assert bool(wanted) == (query not in ("q=no such token", "q=oken aft")), query


def _says(row: dict, *words: str) -> bool:
    """Whether a top token holds the text, or the explanation the words, the last as a beginning."""
    held = re.findall(r"\w+", (row["explanation"] or "").lower())
    told = all(word in held for word in words[:-1]) and any(word.startswith(words[-1]) for word in held)
    return told or any(" ".join(words) in token.lower() for token in row["top_tokens"])


@pytest.mark.parametrize(
    "query",
    [{}, {"bucket": "stable"}, {"seed": 1, "density_min": 0.01}, {"seed": 3, "bucket": "dead"}, {"dead": "exclude"}],
)
def test_facets_count_what_choosing_them_would_find(table, query):
    found = table(**query)
    for bucket, n in found["buckets"].items():
        assert table(**query | {"bucket": bucket})["total"] == n
    for seed, n in found["seeds"].items():
        assert table(**query | {"seed": seed})["total"] == n
    without = {k: v for k, v in query.items() if k != "seed"}
    assert sum(found["seeds"].values()) == table(**without)["total"]


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize(
    "sort", [sort for sort in SORTS if sort not in ("relevance", "predicted")]
)  # see test_search, test_predict
def test_paging_visits_every_feature_once_in_order_and_back_again(client, address, table, sort, direction):
    whole = table(sort=sort, dir=direction)["rows"]
    column = {"stability": "n_matched", "density": "n_active", "worth": "worth_ev", "max": "max_activation",
              "loss": "worth_loss", "entropy": "token_entropy", "score": "score", "cofiring": "cofiring"}  # fmt: skip
    values = [row[column.get(sort, "feature")] for row in whole]
    n_known = sum(value is not None for value in values)
    assert all(value is None for value in values[n_known:])  # what has none stands last in either direction
    values = values[:n_known]
    assert values == sorted(values, reverse=direction == "desc")
    assert len(set(keys(whole))) == len(whole) == 4 * 96

    def get(**position: object) -> dict:
        order = {"sort": sort, "dir": direction, "limit": 75}
        return client.get(f"{address}/features.json", params=order | position).json()

    pages = [get()]
    assert pages[0]["before"] is None
    while (after := pages[-1]["after"]) and len(pages) < 10:
        pages.append(get(after=after))
    assert [row for page in pages for row in page["rows"]] == whole
    back = [pages[-1]]
    while (before := back[-1]["before"]) and len(back) < 10:
        back.append(get(before=before))
    assert [keys(page["rows"]) for page in reversed(back)] == [keys(page["rows"]) for page in pages]


def test_the_pagers_links_lead_through_the_list_and_back(client, address):
    path, seen = f"{address}/features?bucket=stable&sort=density", []
    while path and len(seen) < 10:
        page = client.get(path).text
        seen.append(re.findall(r'class="row-link" href="([^"]+)"', page))
        path = next(iter(links(page, "a[rel=next]")), None)
    assert len(seen) > 2
    path = links(page, "a[rel=prev]")[0]
    assert re.findall(r'class="row-link" href="([^"]+)"', client.get(path).text) == seen[-2]


def test_without_a_direction_indices_rise_and_everything_else_falls(table):
    for sort in (sort for sort in SORTS if sort != "predicted"):
        chosen = table(sort=sort, dir="asc" if sort == "feature" else "desc")
        assert table(sort=sort)["rows"] == chosen["rows"]


def test_previous_and_next_on_a_feature_page_walk_the_list_it_was_opened_from(client, address, table):
    query = "bucket=unstable&seed=1&sort=worth&dir=asc&theta=0.75"
    wanted = keys(table(**dict(pair.split("=") for pair in query.split("&")))["rows"])
    path, visited = f"{address}/{wanted[0][0]}/{wanted[0][1]}?{query}", []
    while path and len(visited) < 100:
        page = client.get(path).text
        visited.append(tuple(int(n) for n in re.search(r"/(\d+)/(\d+)\?", path).groups()))
        assert f"{len(visited)} of {len(wanted)} unstable" in text_of(page)
        if len(visited) > 1:
            previous = links(page, "a[data-previous]")[0]
            assert previous.startswith("{}/{}/{}?".format(address, *visited[-2]))
        path = next(iter(links(page, "a[data-next]")), None)
    assert visited == wanted


@pytest.mark.parametrize("sort", [sort for sort in SORTS if sort != "predicted"])
@pytest.mark.parametrize("descending", [True, False])
def test_a_features_place_is_its_index_in_the_list(client, table, sort, descending):
    store = client.app.state.studies.get("small")
    query = FeatureQuery("topk-96", sort=sort, descending=descending, seed=1)
    order = keys(table(sort=sort, dir="desc" if descending else "asc", seed=1)["rows"])
    for index in (0, 1, 40, 94, 95):
        place = store.features(query).place(*order[index])
        assert (place.position, place.total) == (index + 1, 96)
        assert place.previous == (order[index - 1] if index else None)
        assert place.next == (order[index + 1] if index < 95 else None)
    assert store.features(query).place(2, 0) is None


def test_several_readers_at_once_get_what_one_reader_gets(client):
    store = client.app.state.studies.get("small")
    queries = [FeatureQuery("topk-96", theta=t / 20, sort=s) for t in range(10, 20) for s in ("worth", "density")]

    def read(query: FeatureQuery) -> tuple:
        found = store.features(query)
        return found.page(limit=30), found.count(), found.facets()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, queries)) == [read(query) for query in queries]


def test_a_feature_outside_the_filter_says_so(client, address, one_of):
    page = client.get("{}/{}/{}?bucket=dead".format(address, *one_of["stable"])).text
    assert "outside the current filter" in text_of(page)


@pytest.mark.parametrize(
    "query", ["", "?bucket=unstable&theta=0.8", "?q=def&sort=worth", "?bucket=dead&seed=0&id=9999"]
)
def test_downloads_hold_every_row_that_the_table_finds(client, address, query):
    path = f"{address}/features"
    wanted = client.get(f"{path}.json{query}{'&' if query else '?'}limit=500").json()
    parquet = client.get(f"{path}.parquet{query}")
    csv = client.get(f"{path}.csv{query}")
    assert "attachment" in csv.headers["content-disposition"]
    assert csv.headers["content-type"].startswith("text/csv")
    for read in (pyarrow.parquet.read_table(BytesIO(parquet.content)), pyarrow.csv.read_csv(BytesIO(csv.content))):
        rows = read.to_pylist()
        assert keys(rows) == keys(wanted["rows"])
        assert len(rows) == wanted["total"]
        for row, shown in zip(rows, wanted["rows"], strict=True):
            assert (row["bucket"], row["n_matched"]) == (shown["bucket"], shown["n_matched"])
            assert row["stability"] == pytest.approx(row["n_matched"] / 3)
            assert row["worth_ev"] == pytest.approx(shown["worth_ev"], rel=1e-12)


# -- fragments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_htmx_gets_the_main_part_alone_and_a_history_restore_the_whole_page(client, at, path):
    whole, part = client.get(at(path)), client.get(at(path), headers=HTMX)
    restored = client.get(at(path), headers=HTMX | {"HX-History-Restore-Request": "true"})
    assert "<html" not in part.text
    assert main_of(part.text)
    assert main_of(part.text) in whole.text
    assert restored.text == whole.text
    assert all("HX-Request" in answer.headers["vary"] for answer in (whole, part, restored))


def test_a_fragment_pushes_the_shortest_address_of_its_state(client, address):
    def pushed(path: str) -> str:
        return client.get(path, headers=HTMX).headers["HX-Push-Url"]

    table = f"{address}/features"
    assert pushed(f"{table}?theta=0.7&epsilon=0.05&seed=&q=&bucket=stable&sort=stability") == f"{table}?bucket=stable"
    assert pushed(f"{table}?theta=0.60&q=%235") == f"{table}?theta=0.6&id=5"
    assert pushed(f"{address}?theta=0.7&epsilon=0.05") == address
    changed = pushed(f"{address}?theta=0.65")
    assert client.get(twin(changed)).json()["theta"] == 0.65
    assert "HX-Push-Url" not in client.get(table).headers


def test_an_error_answered_to_htmx_replaces_the_main_part(client, address):
    answer = client.get(f"{address}/features?theta=2", headers=HTMX)
    assert answer.status_code == 422
    assert "<html" not in answer.text
    assert (answer.headers["HX-Retarget"], answer.headers["HX-Reswap"]) == ("#main", "innerHTML")


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{ensemble}?theta=2", ["theta", "2", "less than or equal to 1"]),
        ("{ensemble}/features?theta=2", ["theta", "2", "less than or equal to 1"]),
        ("{ensemble}/features?theta=abc", ["theta", "abc", "number"]),
        ("{ensemble}/features?theta=nan", ["theta", "nan"]),
        ("{ensemble}?theta=nan", ["theta", "nan"]),
        ("{ensemble}/0/5?theta=-inf", ["theta", "-inf"]),
        ("{ensemble}/features?epsilon=.5", ["epsilon", ".5", "less than 0.5"]),
        ("{ensemble}?epsilon=0.5", ["epsilon", "0.5", "less than 0.5"]),
        ("{ensemble}/features?bucket=foo", ["bucket", "foo", "'stable', 'middle', 'unstable' or 'dead'"]),
        ("{ensemble}/features?sort=name", ["sort", "name", "'worth'"]),
        ("{ensemble}/features?limit=0", ["limit", "0", "greater than or equal to 1"]),
        ("{ensemble}/features?limit=501", ["limit", "501", "less than or equal to 500"]),
        ("{ensemble}/features?density_min=1.5", ["density_min", "1.5"]),
        ("{ensemble}/features?seed=first", ["seed", "first"]),
        ("{ensemble}/0/5?v=not-hex", ["v", "not-hex"]),
        ("{ensemble}/features?after=malformed", ["after", "malformed", "VALUE_SEED_FEATURE"]),
        ("{ensemble}/features?before=malformed", ["before", "malformed", "VALUE_SEED_FEATURE"]),
        ("{ensemble}/features?after=1.2.3_0_0", ["after", "1.2.3_0_0", "VALUE_SEED_FEATURE"]),
        ("{ensemble}/features?after=._0_0", ["after", "._0_0", "VALUE_SEED_FEATURE"]),
    ],
)
def test_an_unusable_value_is_refused_with_what_was_found_and_what_is_allowed(client, at, path, said):
    data, page = client.get(twin(at(path))), client.get(at(path))
    assert (data.status_code, page.status_code) == (422, 422)
    problem = json.dumps(data.json()["problems"])
    assert [word for word in said if word not in problem] == []
    assert [word for word in said if word not in text_of(page.text)] == []


def test_the_parameters_named_as_allowed_are_those_that_the_page_takes(client, address):
    for path, foreign in ((f"{address}/features", "colour"), (f"{address}/0/5", "limit")):
        (problem,) = client.get(f"{path}.json?{foreign}=7").json()["problems"]
        allowed = problem["expected"].removeprefix("one of ").split(", ")
        assert foreign not in allowed
        refusals = (client.get(f"{path}.json?{name}=?").json().get("problems", []) for name in allowed)
        assert not [p for problems in refusals for p in problems if p["found"] == "an unknown parameter"]


@pytest.mark.parametrize(
    "query",
    [
        "id=" + "9" * 12,
        "id=" + "9" * 60,
        "after=1_" + "9" * 60 + "_0",
        f"after={'9' * 60}_0_0",
        "after=1e-400_0_0",
        "q=%00",
        "q=%25",
    ],
)
def test_values_beyond_all_bounds_are_answered_or_refused_but_break_nothing(client, address, query):
    assert client.get(f"{address}/features.json?{query}").status_code in (200, 422)


@pytest.mark.parametrize(
    ("path", "found", "there_is"),
    [
        ("/s/nope", "nope", "small"),
        ("/s/..%2f..%2fetc", "etc", ""),
        ("/s/nope/topk-96/0/1", "nope", "small"),
        ("{study}/nope", "nope", "topk-96"),
        ("{study}/nope/features", "nope", "topk-96"),
        ("{ensemble}/9/0", "9", "seeds 0, 1, 2, 3"),
        ("{ensemble}/first/0", "first", "seeds 0, 1, 2, 3"),
        ("{ensemble}/features?seed=9", "9", "seeds 0, 1, 2, 3"),
        ("{ensemble}/0/96", "96", "0 to 95"),
        ("{ensemble}/0/-1", "-1", "0 to 95"),
        ("{ensemble}/0/007", "007", "0 to 95"),
        ("{ensemble}/0/" + "9" * 40, "999", "0 to 95"),
        ("/no/such/page", "/no/such/page", ""),
    ],
)
def test_what_does_not_exist_is_refused_with_what_there_is(client, at, path, found, there_is):
    data, page = client.get(twin(at(path))), client.get(at(path))
    assert (data.status_code, page.status_code) == (404, 404)
    assert page.headers["content-type"].startswith("text/html")
    (problem,) = data.json()["problems"]
    assert found in problem["found"]
    assert there_is in problem["expected"]
    assert there_is in text_of(page.text)


def test_a_download_of_an_unknown_seed_is_refused_like_its_page(client, address):
    assert client.get(f"{address}/features.csv?seed=9").status_code == 404


def test_a_client_that_asks_for_json_is_refused_in_json(client):
    answer = client.get("/s/nope", headers={"Accept": "application/json"})
    assert answer.status_code == 404
    assert answer.json()["status"] == 404


# -- permalinks --------------------------------------------------------------------------------------------------


def test_a_permalink_says_when_it_was_made_for_other_data(client, address):
    path = f"{address}/1/3"
    digest = client.get(f"{path}.json").json()["digest"]
    notice = "This link was made for other data"
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    for v, noticed in ((digest, False), (digest[:8], False), (other, True), ("0123456789abcdef", True)):
        page = client.get(f"{path}?v={v}").text
        assert (notice in page) == noticed, v
        assert (f"names <code>{v}</code>" in page) == noticed
        assert client.get(f"{path}.json?v={v}").json()["asked_digest"] == v
    assert notice not in client.get(path).text


def test_the_permalink_on_a_page_leads_to_the_same_feature_with_its_digest(client, address):
    (permalink,) = links(client.get(f"{address}/1/3?bucket=stable&theta=0.8").text, "[data-copy]")
    data = client.get(twin(permalink)).json()
    assert (data["seed"], data["feature"]) == (1, 3)
    assert data["asked_digest"] == data["digest"]


def test_an_embedded_page_is_marked_as_one(client, address):
    assert '<body class="embed">' in client.get(f"{address}/1/3?embed=true").text
    assert '<body class="embed">' not in client.get(f"{address}/1/3").text


def test_a_random_feature_is_a_living_one(client, address):
    for _ in range(5):
        answer = client.get(f"{address}/random", follow_redirects=False)
        assert answer.status_code == 303
        assert client.get(twin(answer.headers["location"])).json()["dead"] is False


# -- figures -----------------------------------------------------------------------------------------------------


STATES = ["", "?theta=0.3", "?theta=0.333", "?theta=1", "?epsilon=0.4", "?rule=hungarian", "?rule=mutual&dead=count"]


@pytest.mark.parametrize("query", STATES)
def test_figures_are_valid_plotly_and_their_curves_count_every_judged_feature(client, address, query):
    drawn = figures_of(client.get(address + query).text)
    assert set(drawn) == {"stability", "density", "ablation", "cdf", "sweep", "convergence"}
    for figure in drawn.values():
        assert_valid_plotly(figure)
    bars = [trace for trace in drawn["stability"]["data"] if trace["type"] == "bar"]
    assert sum(sum(trace["y"]) for trace in bars) == pytest.approx(1)
    for trace in drawn["stability"]["data"]:
        if trace["type"] == "scatter":
            assert sum(trace["y"]) == pytest.approx(1)
    for trace in drawn["cdf"]["data"]:
        if trace["name"] != "one anchor":
            assert trace["y"] == sorted(trace["y"])
            assert trace["y"][-1] == pytest.approx(1)
    sweep = [trace["y"] for trace in drawn["sweep"]["data"] if trace["name"] in ("stable", "middle", "unstable")]
    assert [sum(shares) for shares in zip(*sweep, strict=True)] == pytest.approx([1] * len(sweep[0]))
    assert drawn["convergence"]["data"][0]["y"][-1] == pytest.approx(1)


def test_the_sweep_and_the_distribution_agree_at_theta(client, address):
    """Two ways to the same number: counted by the store, and from the cosines themselves."""
    page = figures_of(client.get(address).text)
    sweep = {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in page["sweep"]["data"]}
    bars = {trace["name"]: sum(trace["y"]) for trace in page["stability"]["data"] if trace["type"] == "bar"}
    assert {bucket: sweep[bucket][0.7] for bucket in bars} == pytest.approx(bars)


# -- studies that come, go and break -----------------------------------------------------------------------------


def test_a_newly_published_store_is_served_at_the_next_request(own_root):
    client = browse(own_root)
    assert client.get("/s/small.json").json()["study"]["corpus_remark"] != "second edition"
    republish(own_root, "UPDATE Study SET corpus_remark = 'second edition'")
    assert client.get("/s/small.json").json()["study"]["corpus_remark"] == "second edition"


def test_a_study_published_later_appears(tmp_path, own_root):
    client = browse(tmp_path / "later")
    assert client.get("/index.json").json()["studies"] == []
    shutil.copytree(own_root, tmp_path / "later")
    assert [card["study"]["study"] for card in client.get("/index.json").json()["studies"]] == ["small"]


def test_an_empty_root_says_how_to_get_a_study(tmp_path):
    answer = browse(tmp_path).get("/")
    assert answer.status_code == 200
    assert "seedscope demo" in text_of(answer.text)
    assert "seedscope demo" in browse(tmp_path).get("/s/small").text


@pytest.mark.parametrize(
    "current",
    [b"", b"study-gone.duckdb\nx\n", b"\xff\xfe\n", b"garbage.duckdb\nx\n"],
    ids=["empty", "gone", "bytes", "garbage"],
)
def test_a_broken_study_does_not_take_the_others_down(own_root, current):
    """Its own page says that it is not there; the home page shows the rest."""
    (own_root / "broken").mkdir()
    (own_root / "broken" / "CURRENT").write_bytes(current)
    (own_root / "broken" / "garbage.duckdb").write_bytes(b"not a database")
    client = browse(own_root)
    assert client.get("/s/broken").status_code == 404
    home = client.get("/")
    assert home.status_code == 200
    assert links(home.text, ".study-card h3 a") == ["/s/small/topk-96"]


def test_a_file_beside_the_studies_is_not_a_study(own_root):
    (own_root / "notes.txt").touch()
    assert browse(own_root).get("/s/notes.txt").status_code == 404


@pytest.mark.parametrize(
    "statement",
    ["UPDATE Study SET schema_version = 99", "ALTER TABLE Study DROP COLUMN corpus_remark"],
    ids=["newer", "other columns"],
)
def test_a_store_of_another_schema_version_asks_to_be_built_again_and_leaves_the_home_page_alone(own_root, statement):
    republish(own_root, "UPDATE Study SET schema_version = 99", *([statement] if "ALTER" in statement else []))
    client = browse(own_root)
    answer = client.get("/s/small")
    assert answer.status_code == 404
    assert "build the study again" in answer.text
    assert client.get("/").status_code == 200


def test_without_living_features_there_is_no_random_one_and_no_endless_search(own_root, monkeypatch):
    republish(own_root, "UPDATE Feature SET dead = true")
    draws = []

    def draw(n: int) -> int:
        draws.append(n)
        assert len(draws) < 1000, "still drawing"
        return len(draws) % n

    monkeypatch.setattr("random.randrange", draw)
    assert browse(own_root).get("/s/small/topk-96/random", follow_redirects=False).status_code == 404


def test_pages_of_an_ensemble_without_living_features_answer(own_root):
    republish(own_root, "UPDATE Feature SET dead = true, n_active = 0, density = 0", "DELETE FROM Context")
    client = browse(own_root)
    for path in ("/s/small", "/s/small/topk-96", "/s/small/topk-96/features", "/s/small/topk-96/0/0"):
        assert client.get(path).status_code == 200
