"""What a feature does, on its page, in the table and in downloads: against the store, read on its own."""

import math
import re
from io import BytesIO

import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.formats import short
from seedscope.engine.contract.schema import TRIGGERS
from support.reading import browse, links, parsed, republish, text_of

SCALARS = ("trigger", "trigger_share", "trigger_what", "token_entropy", "top_token_share", "quantiles")
SAYS = {
    "single token": "fires on one token", "family": "fires on a family of tokens", "number": "fires on numbers",
    "punctuation": "fires on punctuation or white space", "substring": "fires on tokens that contain",
    "position": "fires at the start of a window", "previous token": "fires after the token", "other": "no single trigger",
}  # fmt: skip


@pytest.fixture(scope="module")
def features(stored) -> list[dict]:
    return stored("SELECT * EXCLUDE (cosines) FROM Feature ORDER BY seed, feature")


@pytest.fixture(scope="module")
def living(features) -> dict:
    return next(row for row in features if not row["dead"] and row["n_active"] > 30)


@pytest.fixture(scope="module")
def dead(features) -> dict:
    return next(row for row in features if row["dead"])


@pytest.fixture(scope="module")
def at(address):
    return lambda row, query="": f"{address}/{row['seed']}/{row['feature']}{query}"


# -- the page and its twin ---------------------------------------------------------------------------------------


def test_the_twin_says_what_the_store_holds(client, at, features, stored):
    texts = {row["id"]: row["text"] for row in stored("SELECT * FROM Token")}
    for row in features[::37]:
        data = client.get(at(row, ".json")).json()
        assert {name: data[name] for name in SCALARS} == {name: row[name] for name in SCALARS}
        effects = stored(
            "SELECT * FROM Logit WHERE seed = ? AND feature = ? ORDER BY rank", row["seed"], row["feature"]
        )
        for name, sign in (("positive_logits", 1), ("negative_logits", -1)):
            assert len(data[name]) == 10
            assert [tuple(entry.values()) for entry in data[name]] == [
                (texts[e["token"]], e["logit"]) for e in effects if e["sign"] == sign
            ]
            size = [sign * entry["logit"] for entry in data[name]]
            assert size == sorted(size, reverse=True)
        peers = [each for each in features if each["seed"] == row["seed"]]
        assert data["ablation"] == {
            "marginal_ev": row["worth_ev"], "rank": 1 + sum(each["worth_ev"] > row["worth_ev"] for each in peers), "of": 96,
            "marginal_loss_nats": row["worth_loss"],
            "loss_rank": 1 + sum(each["worth_loss"] > row["worth_loss"] for each in peers),
        }  # fmt: skip
        assert data["missing"] == []


def test_a_page_says_in_words_what_the_twin_says_in_numbers(client, at, features):
    one_each = {row["trigger"]: row for row in features if row["n_active"]}
    assert len(one_each) > 3
    for trigger, row in one_each.items():
        page = client.get(at(row)).text
        text = text_of(page)
        assert SAYS[trigger] in text
        assert (
            f"{100 * row['trigger_share']:.0f} % of firings" in text.replace(" in ", " ") or trigger == "single token"
        )
        assert f"entropy {row['token_entropy']:.2f} bits" in text
        median, ninety, ninety_nine = row["quantiles"]
        assert (
            f"median {short(median)} 90 % {short(ninety)} 99 % {short(ninety_nine)} max {short(row['max_activation'])}"
            in text.replace("\xa0", " ")
        )
        assert f"next-token loss {1000 * row['worth_loss']:+.3f} mnat" in text.replace("\xa0", " ")
        assert "first order: removing it, not re-run" in text
        assert "direct logit effect (unscaled)" in text
        assert page.count("<li><code", page.index('class="logit-lists"')) == 20


@pytest.mark.parametrize("view", ["stacked", "snippet", "full"])
def test_contexts_are_shown_in_the_view_that_the_address_names(client, at, living, view, stored):
    page = client.get(at(living, f"?view={view}")).text
    held = stored("SELECT * FROM Context WHERE seed = ? AND feature = ?", living["seed"], living["feature"])
    shown = parsed(page).select(f"div.context.{view}")
    assert len(shown) == len(held)
    assert len(parsed(page).select("div.context")) == len(held)
    (current,) = parsed(page).select(".switch [aria-current=true]")
    assert text_of(current) == view.capitalize()
    for link in links(page, ".switch [href]"):
        assert client.get(link.removesuffix("#contexts")).status_code == 200
    if view == "full":
        texts = {row["id"]: row["text"] for row in stored("SELECT * FROM Token")}
        wanted = "".join(texts[i].replace("\t", "→\t").replace("\n", "⏎\n") for i in held[0]["token_ids"])
        assert wanted in shown[0].text
    if view == "stacked":
        for context in shown:
            assert [e for e in context.select(".peak") if not e.find_parent(class_="after")] == []


def test_links_keep_the_view_and_the_default_is_left_out(client, at, living, address):
    page = client.get(at(living, "?view=full")).text
    assert all("view=full" in link for link in links(page, "a[data-next]") + links(page, "a[data-up]"))
    assert "view=" not in links(client.get(at(living)).text, "a[data-up]")[0]
    rows = links(client.get(f"{address}/features?view=snippet").text, "a.row-link")
    assert all("view=snippet" in row for row in rows)


def test_where_it_is_silent_comes_last_and_is_never_highlighted(client, at, living):
    data = client.get(at(living, ".json")).json()
    silent = [c for c in data["contexts"] if c["group"] == 6]
    assert silent
    assert all(set(c["activations"]) == {0} for c in silent)
    assert [c["group"] for c in data["contexts"]] == sorted(c["group"] for c in data["contexts"])
    for view in ("stacked", "snippet", "full"):
        page = client.get(at(living, f"?view={view}")).text
        tail = page[page.index("Where it is not active") :]
        tail = tail[: tail.index("</details>")]
        assert tail.count('<div class="context ') == len(silent)
        assert 'class="t ' not in tail
        assert "Interval" not in tail


def test_a_feature_that_never_fires_names_its_nearest_living_counterpart(client, at, dead, stored):
    (match,) = stored("SELECT * FROM Match WHERE seed = ? AND feature = ?", dead["seed"], dead["feature"])
    others = [seed for seed in range(4) if seed != dead["seed"]]
    best = max(range(3), key=lambda i: dead["live_cosines"][i])
    page = client.get(at(dead)).text
    wanted = f"{others[best]}/{match['live_partners'][best]}"
    says = page[re.search(r"It never fired on \d", page).start() :].split("</p>")[0]
    assert f'/{wanted}"' in says
    assert f"{dead['live_cosines'][best]:.3f}" in says
    assert not stored(
        "SELECT 1 FROM Feature WHERE seed = ? AND feature = ? AND dead", others[best], match["live_partners"][best]
    )
    assert "no single trigger" not in text_of(page)
    assert 'class="switch"' not in page


def test_token_text_is_never_markup(own_root, address):
    republish(own_root, "UPDATE Token SET text = '<b>&' || id", "UPDATE Feature SET trigger_what = '<i>&x'")
    client = browse(own_root)
    rows = client.get(f"{address}/features.json?limit=500&dead=exclude").json()["rows"]
    pages = [client.get(f"{address}/{row['seed']}/{row['feature']}?view={view}").text
             for row, view in zip(rows[::60], ["stacked", "snippet", "full"] * 9, strict=False)]  # fmt: skip
    for page in [*pages, client.get(f"{address}/features?trigger=single+token").text]:
        assert "&lt;b&gt;&amp;" in page
        assert not re.search(r"<b>&\d|<i>&|&amp;lt;", page)


def test_where_the_hook_point_has_another_width_logits_are_absent_and_pages_say_so(own_root, address):
    republish(own_root, "DELETE FROM Logit")
    client = browse(own_root)
    data, text = client.get(f"{address}/0/5.json").json(), text_of(client.get(f"{address}/0/5").text)
    assert (data["positive_logits"], data["negative_logits"]) == (None, None)
    lacks = {entry["field"]: entry for entry in data["missing"]}
    for name in ("positive_logits", "negative_logits"):
        assert "the hook point does not have the residual stream's width" in lacks[name]["needs"]
        assert lacks[name]["command"] is None
    assert "the hook point does not have the residual stream's width" in text
    assert "Raised" not in text


def test_loss_without_masked_explained_variance_and_the_other_way_round(own_root, address):
    for column, analysis, kept in (("worth_ev", "ablate", "loss"), ("worth_loss", "loss", "ablate")):
        republish(
            own_root, f"UPDATE Feature SET {column} = NULL",
            f"UPDATE Ensemble SET computed = list_filter(computed, lambda c: c != '{analysis}')",
        )  # fmt: skip
        data = browse(own_root).get(f"{address}/0/5.json").json()
        if kept == "loss":
            names = {"marginal_ev", "rank"}
            assert {name for name, value in data["ablation"].items() if value is None} == names
        else:
            assert data["ablation"] is None
            names = {"marginal_loss_nats", "loss_rank"}
        explained = {entry["field"]: entry["command"] for entry in data["missing"]}
        assert {explained[f"ablation.{name}"] for name in names if f"ablation.{name}" in explained} == {
            f"seedscope analyze small --only {analysis}"
        }
        assert browse(own_root).get(f"{address}/0/5").status_code == 200


# -- the table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "seed=1", "bucket=unstable&seed=2", "trigger=punctuation", "dead=only"])
def test_the_facet_counts_what_choosing_a_trigger_finds(client, address, query):
    data = client.get(f"{address}/features.json?{query}").json()
    assert list(data["triggers"]) == list(TRIGGERS)
    others = re.sub(r"&?trigger=\w+", "", query)
    for trigger, n in data["triggers"].items():
        found = client.get(f"{address}/features.json?{others}&trigger={trigger}&limit=500").json()
        assert found["total"] == n
        assert all(row["trigger"] == trigger and row["n_active"] > 0 for row in found["rows"])


def test_the_filter_finds_the_features_that_the_store_has(client, address, features):
    for trigger in TRIGGERS:
        rows = client.get(f"{address}/features.json?trigger={trigger}&sort=feature&limit=500").json()["rows"]
        wanted = {(row["seed"], row["feature"]) for row in features if row["trigger"] == trigger and row["n_active"]}
        assert {(row["seed"], row["feature"]) for row in rows} == wanted


@pytest.mark.parametrize(("sort", "column"), [("loss", "worth_loss"), ("entropy", "token_entropy")])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_the_table_sorts_by_loss_and_by_entropy(client, address, features, sort, column, direction):
    rows = client.get(f"{address}/features.json?sort={sort}&dir={direction}&limit=500").json()["rows"]
    sign = 1 if direction == "asc" else -1
    wanted = sorted(features, key=lambda row: (sign * row[column], row["seed"], row["feature"]))
    assert [(row["seed"], row["feature"]) for row in rows] == [(row["seed"], row["feature"]) for row in wanted]
    assert [row[column] for row in rows] == [row[column] for row in wanted]


def test_a_row_shows_its_trigger_and_a_silent_one_shows_none(client, address, features):
    page = client.get(f"{address}/features?limit=500").text
    rows = parsed(page).select("table.features tbody tr")
    shown = {row.select_one("a.row-link")["href"].split("?")[0]: row.select_one("td.trigger-short") for row in rows}
    assert len(shown) == len(features)
    for row in features:
        cell = shown[f"{address}/{row['seed']}/{row['feature']}"]
        assert (cell.text == "") == (row["n_active"] == 0)
        if row["trigger_what"] and row["n_active"]:
            assert cell.code


@pytest.mark.parametrize(
    "query", ["trigger=word", "trigger=Number", "view=wide", "sort=trigger", "trigger=number&trigger=x"]
)
def test_a_bad_value_is_one_clear_refusal(client, address, query):
    for kind in ("", ".json", ".csv", ".parquet"):
        answer = client.get(f"{address}/features{kind}?{query}")
        assert answer.status_code == 422
    (problem,) = client.get(f"{address}/features.json?{query}").json()["problems"]
    assert problem["expected"]
    assert problem["found"] in {"'word'", "'Number'", "'wide'", "'trigger'", "'x'"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_downloads_carry_what_the_table_shows(client, address, features, kind):
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[kind]
    held = {(row["seed"], row["feature"]): row for row in features}
    content = client.get(f"{address}/features.{kind}?trigger=single token").content
    rows = read(BytesIO(content)).to_pylist()
    assert rows
    for row in rows:
        stored = held[row["seed"], row["feature"]]
        what = stored["trigger_what"]
        is_formula = kind == "csv" and what.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))  # for a spreadsheet
        assert (row["trigger"], row["trigger_what"]) == ("single token", f"'{what}" if is_formula else what)
        for name in ("worth_loss", "trigger_share", "token_entropy", "top_token_share"):
            assert math.isclose(row[name], stored[name], rel_tol=1e-6)
