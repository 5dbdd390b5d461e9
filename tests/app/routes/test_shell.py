"""The frame of every page: tabs, switchers, the lens that every link carries, and what an address holds beyond a page's use."""

import re
from collections import deque
from urllib.parse import parse_qsl, urlsplit

import pytest

from seedscope.app.lens import read_lens
from support.reading import links, parsed, text_of
from support.studies import ENSEMBLE, STUDY

LENS = "theta=0.5&epsilon=0.1&rule=mutual&dead=count"
DATA = re.compile(r"\.(csv|json|parquet)$")
PAGES = (
    "",
    "/features",
    "/members",
    "/buckets",
    "/ablation",
    "/subspaces",
    "/spans",
    "/function",
    "/explanations",
    "/trajectory",
    "/try",
)


def carried(link: str) -> dict[str, str]:
    return {k: v for k, v in parse_qsl(urlsplit(link).query) if k in ("theta", "epsilon", "rule", "dead")}


def kind_of(link: str) -> str:
    """The page that a link opens, whatever feature or seed it is about."""
    path = re.sub(r"/\d+(?=/|$)", "/N", urlsplit(link).path)
    return f"{path}?{','.join(sorted({k for k, _ in parse_qsl(urlsplit(link).query)}))}"


def test_every_link_of_every_page_that_can_be_reached_carries_the_lens(client, address):
    """From the overview along all links to pages: one page of each kind is opened, and all of its links are read."""
    start, wanted = f"{address}?{LENS}", carried(f"?{LENS}")
    waiting, opened, lost = deque([start]), set(), set()
    while waiting:
        page = waiting.popleft()
        if kind_of(page) in opened or len(opened) > 80:
            continue
        opened.add(kind_of(page))
        answer = client.get(page)
        assert answer.status_code in (200, 202), page
        assert carried(str(answer.url)) == wanted, f"{page} leads to {answer.url}"
        for link in links(answer.text, "a[href]:not([data-reset])"):
            if not link.startswith("/s/") or DATA.search(urlsplit(link).path):
                continue
            missing = wanted.keys() - carried(link).keys()
            chosen = "rule" in missing and re.search(
                r"/\d+/\d+\?|/members", link
            )  # choosing a rule may choose the default
            if missing - ({"rule"} if chosen else set()):
                lost.add((kind_of(page), link))
            elif not missing:
                waiting.append(link)
    assert not lost
    assert {kind.partition("?")[0] for kind in opened} >= {f"{address}{page}" for page in PAGES}


@pytest.mark.parametrize("tail", [*PAGES, "/0/5", "/0/5/scored", "/members?a=0&b=2"])
def test_every_page_of_an_ensemble_has_its_tabs_and_says_which_is_open(client, address, tail):
    page = parsed(client.get(f"{address}{tail}").text)
    tabs = page.select(".tabs a")
    names = [tab.text for tab in tabs]
    assert names == [
        "Overview",
        "Features",
        "Seeds",
        "Buckets",
        "Ablation",
        "Subspaces",
        "Spans",
        "Function",
        "Explanations",
        "Training",
        "Try",
    ]
    (current,) = page.select(".tabs a[aria-current=page]")
    wanted = dict(zip(PAGES, names, strict=True)).get(tail.partition("?")[0], "Features")
    assert current.text == wanted


def test_pages_of_a_study_have_tabs_of_their_own(client, address):
    study = address.rsplit("/", 1)[0]
    for tail, name in (("", "Ensembles"), ("/pool", "Pool")):
        assert parsed(client.get(f"{study}{tail}").text).select_one(".tabs [aria-current=page]").text == name


def test_the_lens_is_said_and_reset_keeps_the_rest_of_the_address(client, address):
    page = parsed(client.get(f"{address}/features?{LENS}&bucket=stable").text)
    assert (
        text_of(page.select_one(".lens-says")) == "θ 0.50 · ε 0.1 · match rule: mutual nearest · dead features counted"
    )
    assert page.select_one(".lens [data-reset]")["href"] == f"{address}/features?bucket=stable"
    assert not parsed(client.get(f"{address}/features?theta=0.7&epsilon=0.05&rule=argmax").text).select(".lens")


@pytest.mark.parametrize("tail", ["/ablation", "/trajectory"])
def test_a_page_that_does_not_use_the_lens_says_so_and_shows_the_same(client, address, tail):
    plain, lensed = client.get(f"{address}{tail}"), client.get(f"{address}{tail}?theta=0.5")
    assert "not used on this page" in text_of(parsed(lensed.text).select_one(".lens"))
    assert text_of(parsed(lensed.text).select_one("#main")) == text_of(parsed(plain.text).select_one("#main"))


@pytest.mark.parametrize("tail", ["", "/features", "/members", "/0/5", "/ablation"])
def test_an_unknown_parameter_is_named_and_ignored_on_a_page_and_refused_as_data(client, address, tail):
    page = client.get(f"{address}{tail}?utm_source=letter")
    assert page.status_code == 200
    assert text_of(parsed(page.text).select_one(".ignored")).endswith("no such parameter: utm_source .")
    refused = client.get(f"{address}{tail}.json?utm_source=letter")
    assert refused.status_code == 422
    (problem,) = refused.json()["problems"]
    assert (problem["name"], problem["found"]) == ("utm_source", "an unknown parameter")
    assert refused.json()["without"] == f"{address}{tail}.json"


def test_a_misspelt_parameter_of_a_download_is_refused(client, address):
    assert client.get(f"{address}/features.csv?thetta=0.8").status_code == 422


def test_an_error_page_keeps_the_way_and_offers_the_address_without_the_bad_value(client, address):
    page = parsed(client.get(f"{address}/features?theta=7&bucket=stable").text)
    assert f"{address}/features?bucket=stable" in links(str(page), "#main a")
    assert page.select_one(f'.crumbs a[href="{address}"]') is not None
    assert page.select(".tabs a")


def test_a_copied_link_means_what_the_page_said(client, address):
    """At another theta, epsilon and rule: bucket, p and matches are those of the page that the link was copied from."""
    fields = ("bucket", "stability", "n_matched", "theta", "epsilon", "rule")
    changed = 0
    for feature in range(0, 96, 7):
        page = f"{address}/0/{feature}?theta=0.5&epsilon=0.3&rule=mutual&seed=0"
        link = parsed(client.get(page).text).select_one("[data-copy]")["data-copy"]
        seen, fresh = (client.get(re.sub(r"\?", ".json?", at, count=1)).json() for at in (page, link))
        assert [seen[name] for name in fields] == [fresh[name] for name in fields]
        assert seen["matches"] == fresh["matches"]
        changed += seen["bucket"] != client.get(f"{address}/0/{feature}.json").json()["bucket"]
    assert changed, "the lens changes no bucket here: the test would pass without it"


def test_what_moves_along_when_a_slider_changes_the_page(client, address):
    part = client.get(f"{address}?theta=0.5", headers={"HX-Request": "true"}).text
    swapped = parsed(part).select("[hx-swap-oob]")
    assert {each["id"] for each in swapped} == {"crumbs-to", "tab-row", "search-lens"}
    for each in swapped:
        assert all(carried(link) == {"theta": "0.5"} for link in links(str(each), "a[href]:not([data-reset])"))


def test_the_search_box_asks_under_the_lens(client, address):
    form = parsed(client.get(f"{address}/ablation?theta=0.5").text).select_one("form[role=search]")
    assert form["action"] == f"{address}/features"
    assert {field["name"]: field["value"] for field in form.select("[type=hidden]")} == {"theta": "0.5"}


@pytest.mark.parametrize("query", ["theta=nan", "theta=7", "epsilon=0.5", "rule=best", "dead=only", "theta=0.70"])
def test_what_is_no_lens_is_not_carried(query):
    assert read_lens(dict(parse_qsl(query)), 0.7, 0.05).parameters == {}


def test_names_of_tests_are_those_of_the_small_study(address):
    assert address == f"/s/{STUDY}/{ENSEMBLE}"
