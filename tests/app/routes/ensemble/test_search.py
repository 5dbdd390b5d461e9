"""Searches of the feature table: what is found, why, in which order; suggestions. Against the store's rows, counted here."""

import re

import pytest

from seedscope.app.formats import hit_runs
from seedscope.app.store.feature_query import FeatureQuery
from support.reading import browse, parsed, republish
from support.studies import ENSEMBLE, STUDY

N = 4 * 96


@pytest.fixture(scope="module")
def features(stored) -> list[dict]:
    return stored(
        "SELECT seed, feature, n_active, top_token_ids, top_token_counts, explanation, score FROM Feature ORDER BY seed, feature"
    )


@pytest.fixture(scope="module")
def tokens(stored) -> list[str]:
    return [row["text"] for row in stored("SELECT text FROM Token ORDER BY id")]


@pytest.fixture(scope="module")
def words(stored) -> dict[tuple[int, int], set[str]]:
    held: dict[tuple[int, int], set[str]] = {}
    for row in stored("SELECT word, seed, feature FROM Word"):
        held.setdefault((row["seed"], row["feature"]), set()).add(row["word"])
    return held


def firings(row: dict, tokens: list[str], means) -> int:
    """How often a feature fires on those of its top tokens that a search means."""
    return sum(
        n for i, n in zip(row["top_token_ids"], row["top_token_counts"], strict=True) if i >= 0 and means(tokens[i])
    )


def key(row: dict) -> tuple[int, int]:
    return row["seed"], row["feature"]


@pytest.fixture(scope="module")
def common(features, tokens) -> str:
    """A word token with a space in front that several features fire on, and that is a part of other tokens."""
    held = {tokens[i] for row in features for i in row["top_token_ids"] if i >= 0}
    spaced = [text for text in held if re.fullmatch(r" [a-z]{2,}", text)]
    return max(spaced, key=lambda t: (sum(firings(r, tokens, lambda x: x == t) > 0 for r in features), t))


def test_a_token_in_quotes_is_that_token_and_stands_by_its_share_of_firings(client, address, features, tokens, common):
    shares = {
        key(row): firings(row, tokens, lambda text: text == common) / row["n_active"]
        for row in features
        if firings(row, tokens, lambda text: text == common)
    }
    wanted = sorted(shares, key=lambda place: (-shares[place], place))
    data = client.get(f"{address}/features.json", params={"q": f'"{common}"', "limit": 500}).json()
    assert [key(row) for row in data["rows"]] == wanted
    assert (data["filter"]["sort"], data["total"]) == ("relevance", len(wanted))
    assert data["found_by"] == {"token": len(wanted), "explanation": 0}
    for row in data["rows"]:
        assert row["hit_share"] == pytest.approx(shares[key(row)], abs=1e-12)
        assert [row["top_tokens"][i] for i in row["hits"]] == [common]
        assert row["top_token_shares"][row["hits"][0]] == pytest.approx(shares[key(row)], abs=1e-12)
        assert row["found_by"] == ["token"]
    page = parsed(client.get(f"{address}/features", params={"q": f'"{common}"'}).text)
    first = page.select_one("table.features tbody tr")
    place = wanted[0]
    assert first.select_one(".row-link").get_text() == f"{place[0]}/#{place[1]}"
    assert first.select_one("mark code").get_text() == common
    assert f"{100 * shares[place]:.0f}\u00a0%" in first.select_one("mark").get_text()
    assert first.select_one(".found-by").get_text() == "token"


def test_a_search_without_quotes_finds_both_ways_tokens_first(client, address, features, tokens, words, common):
    part = common.strip()
    by_token = {
        key(r): firings(r, tokens, lambda text: part in text.lower()) / r["n_active"]
        for r in features
        if firings(r, tokens, lambda text: part in text.lower())
    }
    by_word = {place for place, held in words.items() if any(word.startswith(part) for word in held)}
    scores = {key(row): row["score"] or 0 for row in features}
    relevance = {place: by_token.get(place, scores[place] - 1) for place in {*by_token, *by_word}}
    wanted = sorted(relevance, key=lambda place: (-relevance[place], place))
    data = client.get(f"{address}/features.json", params={"q": part, "limit": 500}).json()
    assert [key(row) for row in data["rows"]] == wanted
    assert data["found_by"] == {"token": len(by_token), "explanation": len(by_word)}
    assert by_word - set(by_token), "the study has none that only its explanation finds"
    for row in data["rows"]:
        assert ("token" in row["found_by"], "explanation" in row["found_by"]) == (
            key(row) in by_token,
            key(row) in by_word,
        )
    for hit, places in (("token", set(by_token)), ("explanation", by_word)):
        alone = client.get(f"{address}/features.json", params={"q": part, "limit": 500, "hit": hit}).json()
        assert {key(row) for row in alone["rows"]} == places
        assert alone["total"] == data["found_by"][hit]
    page = parsed(client.get(f"{address}/features", params={"q": part, "hit": "explanation"}).text)
    for line in page.select("table.features tbody tr"):
        assert "explanation" in line.select_one(".label-of .found-by").get_text()
    assert page.select_one(".found-in a").get_text(" ", strip=True) == "everywhere"


def test_pages_and_steps_of_a_search_cover_it_once_in_order(client, address, common):
    whole = client.get(f"{address}/features.json", params={"q": common.strip()[:2], "limit": 500}).json()
    order = [key(row) for row in whole["rows"]]
    assert len(order) == whole["total"] > 20
    for direction in ("desc", "asc"):
        query = {"q": common.strip()[:2], "limit": 7, "dir": direction}
        seen, after, back = [], None, None
        while True:
            data = client.get(f"{address}/features.json", params=query | ({"after": after} if after else {})).json()
            seen.append([key(row) for row in data["rows"]])
            if not data["after"]:
                back = data["before"]
                break
            after = data["after"]
        flat = [place for rows in seen for place in rows]
        values = [row["relevance"] for row in whole["rows"]]
        assert sorted(flat) == sorted(order)
        assert flat == order if direction == "desc" else [values[order.index(p)] for p in flat] == sorted(values)
        earlier = client.get(f"{address}/features.json", params=query | {"before": back}).json()
        assert [key(row) for row in earlier["rows"]] == flat[-len(seen[-1]) - 7 : -len(seen[-1])]
    found = client.app.state.studies.get(STUDY).features(FeatureQuery(ENSEMBLE, q=common.strip()[:2]))
    for index in (0, 3, len(order) - 1):
        place = found.place(*order[index])
        assert (place.position, place.total) == (index + 1, len(order))
        assert (place.previous, place.next) == (order[index - 1] if index else None, [*order, None][index + 1])


def test_another_order_of_a_search_is_kept_and_ends_with_it(client, address, common):
    def pushed(**query: str) -> str:
        return client.get(f"{address}/features", params=query, headers={"HX-Request": "true"}).headers["hx-push-url"]

    assert pushed(q="def", sort="relevance") == f"{address}/features?q=def"
    assert pushed(q="def", sort="stability") == f"{address}/features?q=def&sort=stability"
    assert pushed(q="", sort="relevance", hit="token") == f"{address}/features"
    assert pushed(q="def", hit="token") == f"{address}/features?q=def&hit=token"
    data = client.get(f"{address}/features.json?q=def&sort=density&limit=500").json()
    counts = [row["n_active"] for row in data["rows"]]
    assert counts == sorted(counts, reverse=True)
    assert client.get(f"{address}/features.json?sort=relevance").json()["filter"]["sort"] == "stability"


def test_suggestions_are_searches_that_find_what_they_say(client, address, common):
    here = f"{address}/features/suggest.json"
    answer = client.get(here, params={"q": common.strip()[:2]}).json()["suggestions"]
    assert 0 < len(answer) <= 8
    assert {each["hit"] for each in answer} <= {"token", "explanation"}
    exact = client.get(here, params={"q": common.strip()}).json()["suggestions"]
    assert exact[0] | {"n_features": 0} == {
        "hit": "token", "text": common, "shown": common, "q": f'"{common}"', "n_features": 0
    }  # fmt: skip
    unseen = client.get(here, params={"q": '"⏎'}).json()["suggestions"]
    assert any("\n" in each["text"] for each in unseen)
    for each in [*answer, *exact, *unseen]:
        found = client.get(f"{address}/features.json", params={"q": each["q"], "hit": each["hit"]}).json()
        assert found["total"] == each["n_features"] > 0, each
    for nothing in ("", "no such token anywhere"):
        assert client.get(here, params={"q": nothing}).json()["suggestions"] == []
    assert client.get(here, params={"p": "x"}).status_code == 422


def test_without_explanations_tokens_alone_are_searched_and_suggested(own_root, address):
    republish(
        own_root,
        "DELETE FROM Word",
        "UPDATE Feature SET explanation = NULL, explainer = NULL, score = NULL",
        "UPDATE Ensemble SET computed = list_filter(computed, lambda c: c != 'explain')",
    )
    client = browse(own_root)
    assert client.get(f"{address}/features.json?q=e&hit=token").status_code == 200
    refused = client.get(f"{address}/features.json?q=e&hit=explanation")
    assert (refused.status_code, "explanation" in refused.text) == (422, True)
    assert not parsed(client.get(f"{address}/features?q=e").text).select(".found-in")
    suggested = client.get(f"{address}/features/suggest.json?q=e").json()["suggestions"]
    assert {each["hit"] for each in suggested} == {"token"}


@pytest.mark.parametrize(
    ("q", "marked"),
    [("tok", ["tok", "tok"]), ("token", ["token", "token"]), ("token ", ["token"]), ("any tok", ["any", "tok", "tok"]), ('"(', [])],
)  # fmt: skip
def test_words_that_are_found_are_marked(q, marked):
    text = 'any token after "tokens", manyfold'
    runs = hit_runs(text, q)
    assert "".join(run for run, _ in runs) == text
    assert [run for run, is_hit in runs if is_hit] == marked
