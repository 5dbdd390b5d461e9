"""A text on a shared span, and shared spans on the page of a text: against the engine's arrays and the store."""

import html
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from urllib.parse import urlencode

import numpy as np
import pytest
from starlette.testclient import TestClient

from seedscope.app.routes.ensemble.span_text import SpanTextPage
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.queries import LiveQuery, span_id
from seedscope.engine.contract.tables.shared_spans import SharedSpan
from seedscope.engine.live.residents import Residents
from support.reading import answered, browse, parsed, text_of
from support.span_study import N_SEEDS, SPAN_ENSEMBLE, SPAN_STUDY
from support.studies import members_that_agree, publish_study

TEXT = 'def parse(self, text):\n    """Parse a text."""\n    return [int(part) for part in text.split(",")]\n'
BASE = f"/s/{SPAN_STUDY}/{SPAN_ENSEMBLE}"


@pytest.fixture(scope="module")
def browser(span_root) -> Iterator[TestClient]:
    with browse(span_root[0]) as client:
        yield client


@pytest.fixture(scope="module")
def kept(span_root) -> list[SharedSpan]:
    rows = Studies(span_root[0]).get(SPAN_STUDY).rows(SharedSpan, "kept")
    return sorted(rows, key=lambda row: row.number)


@pytest.fixture(scope="module")
def query(span_root) -> LiveQuery:
    folder = Studies(span_root[0]).get(SPAN_STUDY).ensemble(SPAN_ENSEMBLE).folder
    return LiveQuery("try", SPAN_STUDY, SPAN_ENSEMBLE, folder, tuple(range(N_SEEDS)), text=TEXT)


@pytest.fixture(scope="module")
def arrays(span_root, query, kept) -> dict:
    """{span, or "all": what an engine of its own answers}."""
    residents = Residents(span_root[0], "cpu")
    asked = [replace(query, span=span) for span in ("all", *(row.span for row in kept))]
    return {each.span: answer.arrays for each, answer in zip(asked, residents.answer(asked), strict=True)}


def get(client, tail: str, text: str = TEXT, **more: object):
    return answered(client, f"{BASE}{tail}?{urlencode({'text': text, **more})}")


# -- a span's own page --------------------------------------------------------------------------------------------


def test_the_twin_holds_strengths_and_raw_projections_of_every_seed(browser, kept, arrays):
    for row in kept:
        data = get(browser, f"/spans/{row.span}/text.json").json()
        assert set(data) == {f.name for f in fields(SpanTextPage) if not f.name.startswith("nav_")}
        assert (data["span"], data["number"], data["rank"], data["n_sharing"]) == (
            row.span, row.number, row.rank, row.n_sharing,
        )  # fmt: skip
        assert "".join(data["tokens"]) == TEXT
        assert data["n_read"] == data["n_all"] == len(data["tokens"])
        found = arrays[row.span]
        assert [one["seed"] for one in data["seeds"]] == list(range(N_SEEDS))
        for one in data["seeds"]:
            np.testing.assert_allclose(one["activations"], found["strength"][0, one["seed"]], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(one["raw"], found["raw"][one["seed"]], rtol=1e-4, atol=1e-4)
            assert one["max_strength"] == max(one["activations"])
            assert one["max_raw"] == max(one["raw"])
            assert one["activations"][one["at"]] == one["max_strength"]
            assert one["n_active"] == sum(strength > 0 for strength in one["activations"])


def test_rows_of_seeds_are_aligned_and_share_one_scale(browser, kept):
    tail = f"/spans/{kept[0].span}/text"
    data, page = get(browser, f"{tail}.json").json(), get(browser, tail).text
    largest = max(one["max_strength"] for one in data["seeds"])
    assert f"the strongest is {largest:.2f}" in text_of(page)
    steps = [int(step) for step in re.findall(r'<span class="t a(\d+)"', page)]
    expected = [
        max(1, round(20 * np.log10(1 + 9 * strength / largest)))
        for one in data["seeds"]
        for strength in one["activations"]
        if strength > 0
    ]
    assert sorted(steps) == sorted(expected)
    for stretch in page.split('<div class="stretch">')[1:]:
        rows = re.findall(r'<span class="tokens" dir="auto">(.*?)</span>\s*</div>', stretch, re.DOTALL)
        assert len(rows) == N_SEEDS
        assert len({re.sub("<[^>]*>", "", row) for row in rows}) == 1
    assert f"{data['seeds'][0]['max_raw']:.2f}" in text_of(page)
    assert page.count("<form") == page.count("</form>")


def test_htmx_gets_the_part_and_links_carry_the_lens(browser, kept):
    tail = f"/spans/{kept[0].span}/text"
    path = f"{BASE}{tail}?{urlencode({'text': TEXT, 'theta': 0.5})}"
    part = answered(browser, path, headers={"HX-Request": "true"}).text
    assert "<header" not in part
    assert 'id="result"' in part
    for link in parsed(part).select("a[href^='/s/']"):
        assert "theta=0.5" in link["href"]
    (form,) = parsed(part).select("form.try-box")
    assert form["action"] == f"{BASE}{tail}"
    assert {field["name"]: field["value"] for field in form.select("input[type=hidden]")} == {"theta": "0.5"}


def test_without_a_text_there_is_the_box(browser, kept):
    page = browser.get(f"{BASE}/spans/{kept[0].span}/text")
    assert page.status_code == 200
    assert parsed(page.text).select("textarea[name=text]")
    data = browser.get(f"{BASE}/spans/{kept[0].span}/text.json").json()
    assert (data["tokens"], data["seeds"], data["missing"]) == (None, None, None)


def test_markup_in_a_text_is_inert(browser, kept):
    tail = f"/spans/{kept[0].span}/text"
    hostile = (
        '</textarea><script>document.title = "owned"</script><img src=x onerror="document.title=1">"\'&amp;{{ 7 * 7 }}'
    )
    plain, page = get(browser, tail, "x").text, get(browser, tail, hostile).text
    for tag in ("script", "img"):
        assert len(parsed(page)(tag)) == len(parsed(plain)(tag))
    assert not any(name.startswith("on") for element in parsed(page)(True) for name in element.attrs)
    assert "{{ 7 * 7 }}" in html.unescape(page)


@pytest.mark.parametrize("span", ["0" * 12, "x", "11dba71dbf7", "%27%20OR%201", "..%2f..", "a" * 400])
@pytest.mark.parametrize("tail", ["text", "text.json"])
def test_a_span_that_is_not_kept_is_refused_with_those_that_are(browser, kept, span, tail):
    answer = browser.get(f"{BASE}/spans/{span}/{tail}?text=x")
    assert answer.status_code == 404
    if "%2f" not in span:
        assert all(row.span in answer.text for row in kept)


def test_an_address_too_long_to_share_is_refused_and_the_text_kept(browser, kept):
    text, tail = "word " * 1700, f"{BASE}/spans/{kept[0].span}/text"
    page = browser.get(tail, params={"text": text})
    assert page.status_code == 422
    assert text in html.unescape(page.text)
    assert browser.get(f"{tail}.json", params={"text": text}).status_code == 422


def test_a_text_beyond_the_context_is_cut_visibly(browser, kept):
    tail = f"/spans/{kept[0].span}/text"
    data = get(browser, f"{tail}.json", TEXT * 4).json()
    assert data["n_read"] == 31 < data["n_all"]
    assert f"Cut after 31 tokens of {data['n_all']}" in text_of(get(browser, tail, TEXT * 4).text)


def test_only_get_is_answered_and_other_sites_are_refused(browser, kept):
    path = f"{BASE}/spans/{kept[0].span}/text"
    assert browser.post(path, data={"text": "x"}, headers={"Origin": "http://127.0.0.1"}).status_code == 405
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert browser.get(f"{path}.json?text=x", headers=foreign).status_code == 403


def test_what_the_live_engine_answers_is_not_kept(browser, kept):
    assert "etag" not in get(browser, f"/spans/{kept[0].span}/text").headers


def test_while_the_engine_starts_the_page_stands_and_asks_again(span_root, kept, tmp_path):
    shutil.copytree(span_root[0] / SPAN_STUDY, tmp_path / SPAN_STUDY)
    with browse(tmp_path) as client:
        path = f"{BASE}/spans/{kept[0].span}/text"
        page = client.get(f"{path}?text=hello")
        assert page.status_code == 202
        (polls,) = parsed(page.text).select("[hx-trigger^=load]")
        assert polls["hx-get"] == f"{path}?text=hello"
        assert client.get(f"{path}.json?text=hello").status_code == 503


# -- the page of a text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_the_page_of_a_text_lists_the_spans_of_the_seed_shown(browser, kept, arrays, seed):
    data = get(browser, "/try.json", seed=seed).json()
    found = arrays["all"]
    ids = [span_id(number) for number in found["span"].tolist()]
    assert {one["span"] for one in data["spans"]} == {row.span for row in kept} == set(ids)
    for one in data["spans"]:
        strength = found["strength"][ids.index(one["span"])]
        np.testing.assert_allclose(one["activations"], strength[seed], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one["max_strengths"], strength.max(1), rtol=1e-4, atol=1e-4)
        assert one["max_strength"] == max(one["activations"])
    order = [one["max_strength"] for one in data["spans"]]
    assert order == sorted(order, reverse=True)
    page = parsed(get(browser, "/try", seed=seed).text)
    card = page.select_one("#text-spans")
    assert f"in seed {seed} · one scale: the strongest is {order[0]:.2f}" in text_of(card)
    shown = [link["href"].partition("?")[0] for link in card.select("tbody a")]
    assert shown == [f"{BASE}/spans/{one['span']}/text" for one in data["spans"]]
    answer = answered(browser, card.select_one("tbody a")["href"])
    assert answer.status_code == 200
    assert "The span in all seeds" in answer.text


def test_rows_of_spans_share_one_scale(browser):
    data, page = get(browser, "/try.json").json(), get(browser, "/try").text
    card = page[page.index('id="text-spans"') :]
    largest = data["spans"][0]["max_strength"]
    steps = [int(step) for step in re.findall(r'<span class="t a(\d+)"', card)]
    expected = [
        max(1, round(20 * np.log10(1 + 9 * strength / largest)))
        for one in data["spans"]
        for strength in one["activations"]
        if strength > 0
    ]
    assert sorted(steps) == sorted(expected)


def test_a_study_without_kept_spans_says_so_and_one_that_was_not_searched_says_nothing(client, address, tmp_path):
    data = answered(client, f"{address}/try.json?text=hello").json()
    assert data["spans"] == []
    assert "No small shared span was kept" in text_of(answered(client, f"{address}/try?text=hello").text)
    answer = client.get(f"{address}/spans/{'0' * 12}/text.json")
    assert answer.status_code == 404
    assert "none was kept" in answer.text
    publish_study(tmp_path, "mine", {"some": (members_that_agree(members=3), {})})
    with browse(tmp_path) as own:
        assert own.get("/s/mine/some/try.json").json()["spans"] is None
        assert own.get(f"/s/mine/some/spans/{'0' * 12}/text.json").status_code == 404
