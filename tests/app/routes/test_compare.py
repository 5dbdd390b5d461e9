"""`/compare`: two features or two ensembles side by side hold what their own pages say, on one scale, under one lens."""

import re

import pytest

from support.reading import answered, links, parsed, text_of
from support.studies import ENSEMBLE, STUDY

BASE = f"{STUDY}/{ENSEMBLE}"


@pytest.fixture(scope="module")
def living(stored) -> dict:
    return stored("SELECT seed, feature FROM Feature WHERE seed = 0 AND n_active > 50 ORDER BY n_active DESC LIMIT 1")[
        0
    ]


@pytest.fixture(scope="module")
def pair(client, address, living) -> tuple[str, str]:
    """A feature and its counterpart in seed 3."""
    twin = client.get(f"{address}/0/{living['feature']}.json").json()
    partner = next(match["rule_partner"] for match in twin["matches"] if match["seed"] == 3)
    return f"{BASE}/0/{living['feature']}", f"{BASE}/3/{partner}"


@pytest.mark.parametrize("lens", ["", "&theta=0.5&epsilon=0.2&rule=mutual&dead=count"])
def test_each_side_is_what_the_features_own_page_says(client, pair, lens):
    a, b = pair
    both = client.get(f"/compare.json?a={a}&b={b}{lens}").json()
    for side, place in zip(both["features"], pair, strict=True):
        assert side == client.get(f"/s/{place}.json?{lens[1:]}").json()
    page = client.get(f"/compare?a={a}&b={b}{lens}")
    own = [parsed(client.get(f"/s/{place}?{lens[1:]}").text) for place in pair]
    sides = [parsed(page.text).select(f'[data-section="stability"] .side.{side}')[0] for side in "ab"]
    for own_page, side in zip(own, sides, strict=True):
        assert text_of(side.select_one(".big")) == text_of(own_page.select_one(".big"))
        assert text_of(side.select_one(".pill")) == text_of(own_page.select_one(".pill"))
        assert str(side.select_one("svg.strip")) == str(own_page.select_one("svg.strip"))


def test_what_holds_between_a_feature_and_its_counterpart_is_the_match(client, address, pair):
    a, b = pair
    match = next(m for m in client.get(f"/s/{a}.json").json()["matches"] if m["seed"] == 3)
    between = client.get(f"/compare.json?a={a}&b={b}").json()["pair"]
    assert between["decoder_cosine"] == match["rule_cosine"]
    assert between["b_of_a"] == {
        "counterpart": match["rule_partner"], "cosine": match["rule_cosine"], "matched": match["matched"], "is_the_other": True,
    }  # fmt: skip
    assert between["a_of_b"]["is_the_other"] == match["mutual"]
    tokens = [{text for text, _ in client.get(f"/s/{place}.json").json()["top_tokens"]} for place in pair]
    assert between["top_tokens_jaccard"] == len(tokens[0] & tokens[1]) / len(tokens[0] | tokens[1])
    swapped = client.get(f"/compare.json?a={b}&b={a}").json()["pair"]
    assert (swapped["decoder_cosine"], swapped["a_of_b"]) == (between["decoder_cosine"], between["b_of_a"])


def test_highlights_of_both_sides_end_at_one_maximum(client, pair, stored):
    a, b = pair
    page = parsed(client.get(f"/compare?a={a}&b={b}&view=full").text)
    peaks = {}
    for side in "ab":
        for token in page.select(f'[data-section="contexts"] .side.{side} .t'):
            (step,) = (int(name[1:]) for name in token["class"] if re.fullmatch(r"a\d+", name))
            peaks.setdefault(float(token["title"]), set()).add(step)
    assert len(peaks) > 10
    steps = [max(steps) for _, steps in sorted(peaks.items())]
    assert steps == sorted(steps), "a stronger activation is never fainter, on whichever side it stands"
    assert "one scale for both" in text_of(page)
    assert page.select('[data-section="contexts"] .switch a[href*="/compare?"]')


def test_a_cosine_that_is_not_stored_is_asked_of_the_live_engine(client, pair, ensemble_saes):
    a, _ = pair
    feature = int(a.rsplit("/", 1)[1])
    twin = client.get(f"/s/{a}.json").json()
    taken = {
        m[name] for m in twin["matches"] if m["seed"] == 2 for name in ("partner", "live_partner", "hungarian_partner")
    }
    other = next(i for i in range(96) if i not in taken and client.get(
        f"/compare.json?a={a}&b={BASE}/2/{i}").json()["pair"]["decoder_cosine"] is None)  # fmt: skip
    page = client.get(f"/compare?a={a}&b={BASE}/2/{other}&theta=0.5").text
    (asks,) = parsed(page).select("#live-cosine")
    assert "theta=0.5" in asks["hx-get"]
    answer = answered(client, asks["hx-get"].replace("/compare/cosine?", "/compare/cosine.json?")).json()
    rows = ensemble_saes.W_dec[0][feature].detach(), ensemble_saes.W_dec[2][other].detach()
    wanted = float(rows[0] @ rows[1] / (rows[0].norm() * rows[1].norm()))
    assert answer["cosine"] == pytest.approx(wanted, abs=1e-5)
    assert f"{answer['cosine']:.3f}" in text_of(answered(client, asks["hx-get"]).text)


def test_features_of_one_sae_are_not_matched_and_no_cosine_is_made_up(client, pair):
    a, _ = pair
    other = f"{BASE}/0/{(int(a.rsplit('/', 1)[1]) + 1) % 96}"
    between = client.get(f"/compare.json?a={a}&b={other}").json()["pair"]
    assert (between["decoder_cosine"], between["b_of_a"]) == (None, None)
    assert "one SAE" in between["counterpart_says"]


def test_two_ensembles_stand_side_by_side_under_the_lens(client, address):
    page = client.get(f"/compare.json?a={BASE}&b={BASE}&theta=0.5").json()
    overview = client.get(f"{address}.json?theta=0.5").json()
    for side in page["ensembles"]:
        assert side["theta"] == 0.5
        assert side["ensemble"] == overview["ensemble"]
        judged = overview["buckets"]["stable"] + overview["buckets"]["middle"] + overview["buckets"]["unstable"]
        assert side["stable"] == overview["buckets"]["stable"] / judged
    text = text_of(client.get(f"/compare?a={BASE}&b={BASE}&theta=0.5").text)
    assert "θ 0.50 0.50" in text
    assert "TopK" in text or "topk" in text


def test_a_missing_side_is_chosen_from_counterparts_or_typed(client, pair):
    page = client.get(f"/compare?a={pair[0]}&theta=0.5")
    choices = links(page.text, ".choices a")
    assert len(choices) == 3
    assert all("theta=0.5" in link and client.get(link).status_code == 200 for link in choices)
    form = parsed(page.text).select_one("form.compare-form")
    assert form.select_one("[name=a]")["value"] == pair[0]
    assert form.select_one("[name=theta]")["value"] == "0.5"
    assert client.get("/compare").status_code == 200
    assert client.get(f"/compare?a=http://127.0.0.1/s/{pair[0]}?theta=0.5&b=/s/{pair[1]}").status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        (f"a=nothing&b={BASE}/0/1", 422, "STUDY/ENSEMBLE/SEED/FEATURE"),
        (f"a={BASE}&b={BASE}/0/1", 422, "is an ensemble"),
        (f"a={BASE}/0/1&b=other/{ENSEMBLE}/0/1", 404, "No study 'other' here"),
        (f"a={BASE}/0/1&b={BASE}/9/1", 404, "seeds 0, 1, 2, 3"),
        (f"a={BASE}/0/1&b={BASE}/1/96", 404, "0 to 95"),
        (f"a={BASE}/0/1&b={BASE}/1/1&rule=live&theta=7", 422, "theta"),
    ],
)
def test_a_bad_address_is_one_clear_error(client, query, status, says):
    answer = client.get(f"/compare?{query}")
    assert answer.status_code == status
    assert says in text_of(answer.text)
    assert len(client.get(f"/compare.json?{query}").json()["problems"]) == 1


def test_every_counterpart_row_leads_to_the_comparison_under_the_lens(client, address, living):
    page = client.get(f"{address}/0/{living['feature']}?theta=0.5&rule=hungarian").text
    comparisons = links(page, ".to-compare a")
    assert len(comparisons) == 3
    for link in comparisons:
        assert "theta=0.5" in link
        assert "rule=hungarian" in link
        assert client.get(link.replace("/compare?", "/compare.json?")).json()["pair"]["b_of_a"]["is_the_other"]


def test_nearest_features_say_what_each_is(client, address, living):
    near = answered(client, f"{address}/0/{living['feature']}/neighbours.json?k=2&members=1,3").json()["neighbours"]
    assert len(near) == 4
    for each in near:
        twin = client.get(f"{address}/{each['seed']}/{each['feature']}.json").json()
        assert each["top_context"] == next(iter(twin["contexts"]), None)
        assert each["explanation"] == (twin["explanations"][0]["text"] if twin["explanations"] else None)
