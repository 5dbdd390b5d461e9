"""Explanations as a person reads them: scored contexts on a click, search, a phone; markup in a text does nothing."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from playwright.sync_api import Browser, Page, expect

from support.listening import complaints_of

pytestmark = pytest.mark.browser
HOSTILE = (
    "</p></td><script>document.title = ''owned'';window.hit = 1</script><img src=x onerror=\"window.hit = 2\">"
    '<a href="javascript:window.hit=3">x</a>" onmouseover="window.hit = 4" autofocus onfocus="window.hit = 5" x="'
)


@pytest.fixture
def hostile_server(serve: Callable[[Path], str], study_root: Path, tmp_path: Path) -> str:
    """The small study with markup in every explanation, explainer, failure and word."""
    folder = tmp_path / "root" / "small"
    folder.mkdir(parents=True)
    name = (study_root / "small" / "CURRENT").read_text().split()[0]
    shutil.copy(study_root / "small" / name, folder)
    with duckdb.connect(str(folder / name)) as connection:
        for statement in (
            f"UPDATE Feature SET explanation = '{HOSTILE}', explainer = '{HOSTILE}'",
            f"UPDATE Explanation SET explainer = '{HOSTILE}'",
            f"UPDATE Explanation SET text = '{HOSTILE}' WHERE text IS NOT NULL",
            f"UPDATE Explanation SET failure = '{HOSTILE}' WHERE failure IS NOT NULL",
            f"UPDATE Score SET explainer = '{HOSTILE}'",
        ):
            connection.execute(statement)
    shutil.copy(study_root / "small" / "CURRENT", folder)
    return serve(folder.parent)


def open_explained(page: Page, address: str) -> None:
    page.goto(f"{address}/features?sort=score")
    page.locator(".row-link").first.click()
    expect(page.locator("#explanation .said")).to_be_visible()


def test_scored_contexts_come_on_a_click_as_hits_and_misses(page: Page, address: str) -> None:
    open_explained(page, address)
    card = page.locator("#explanation")
    here = page.url
    expect(card.locator(".scored")).to_have_count(0)
    card.locator("summary").click()
    expect(card.locator(".scored h3").first).to_contain_text("hits")
    expect(card.locator(".scored .t.on")).not_to_have_count(0)
    data = page.request.get(re.sub(r"\?.*", "", here) + "/scored.json").json()
    near_misses = sum(context["near_miss"] for group in data["groups"] for context in group["contexts"])
    expect(card.locator(".scored .flag")).to_have_count(near_misses)
    expect(card.locator(".scored .context")).to_have_count(sum(len(group["contexts"]) for group in data["groups"]))
    assert page.url == here


def test_a_search_finds_words_of_explanations_and_a_facet_narrows_by_score(page: Page, address: str) -> None:
    page.goto(f"{address}/features?sort=score")
    words = page.locator("td.label-of").first.inner_text()
    word = max(re.findall(r"\w+", words), key=len)
    page.locator("input.search").fill(word[:-1])
    expect(page).to_have_url(re.compile(f"q={word[:-1]}"))
    expect(page.locator("td.label-of").first).to_contain_text(words)
    page.goto(f"{address}/features")
    page.get_by_role("link", name=re.compile("≥ 0.7")).click()
    expect(page).to_have_url(re.compile("score_min=0.7"))
    page.get_by_role("slider", name="match threshold").fill("0.5")
    expect(page).to_have_url(re.compile("score_min=0.7.*theta=0.5|theta=0.5.*score_min=0.7"))


def test_from_the_overview_to_the_explanations_and_theta_in_place(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="Explanations", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("How well are features explained?")
    expect(page.locator("#fig-scores .plot-container")).to_be_visible()
    expect(page.locator(".how")).to_contain_text("not thereby the feature’s meaning")
    page.evaluate("window.untouched = true")
    lead = page.locator(".lead").inner_text()
    page.get_by_role("slider", name="match threshold").fill("0.5")
    expect(page).to_have_url(re.compile("theta=0.5"))
    expect(page.locator(".lead")).not_to_have_text(lead)
    assert page.evaluate("window.untouched"), "the page was reloaded"
    page.locator("#words td a").first.click()
    expect(page).to_have_url(re.compile("features.*q="))
    expect(page.locator("#results tbody tr")).not_to_have_count(0)


@pytest.mark.parametrize("path", ["explanations", "features?sort=score", "0/5", "0/5/scored"])
def test_nothing_scrolls_sideways_on_a_phone(browser: Browser, server: str, address: str, path: str) -> None:
    page = browser.new_page(base_url=server, viewport={"width": 390, "height": 844})
    complaints = complaints_of(page)
    page.goto(f"{address}/{path}")
    for summary in page.locator("#explanation summary, #words summary").all():
        summary.click()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
    assert not complaints


def test_markup_in_explanations_does_nothing(browser: Browser, hostile_server: str, address: str) -> None:
    page = browser.new_page(base_url=hostile_server)
    complaints = complaints_of(page)
    for path in ("features", "features?q=script", "features?sort=score", "0/5", "0/5/scored", "explanations", ""):
        page.goto(f"{address}/{path}".rstrip("/"))
        for summary in page.locator("#explanation summary").all():
            summary.click()
            page.wait_for_load_state("networkidle")
            page.keyboard.press("Escape")
        if page.locator(".said").count():
            page.locator(".said").first.hover()
            expect(page.locator(".said").first).to_contain_text("<script>")
        assert page.evaluate("window.hit === undefined && document.title !== 'owned'")
        assert page.locator("main script, main img, main [onerror], main [onmouseover], main [onfocus]").count() == 0
        assert page.locator('[href^="javascript:"]').count() == 0
    page.close()
    assert not complaints
