"""A person's way through the dashboard."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from support.listening import complaints_of

pytestmark = pytest.mark.browser
LAYOUT_SHIFT = """() => new Promise((done) => {
  let total = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) total += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(total), 400);
})"""


def total(page: Page) -> int:
    return int(page.locator("#results h1").inner_text().split()[0].replace(",", ""))


def test_from_the_studies_to_an_unstable_feature_its_counterpart_and_back(page: Page, address: str) -> None:
    study = address.split("/")[2]
    page.goto("/")
    page.locator(".study-card").get_by_role("link", name=study, exact=True).click()
    expect(page).to_have_url(re.compile(f"{address}$"))  # its only ensemble, at once
    page.get_by_role("link", name="Features", exact=True).click()
    everything = total(page)

    page.locator("#facets").get_by_role("link", name="unstable").click()
    expect(page).to_have_url(re.compile("bucket=unstable"))
    expect(page.locator("#results h1")).to_contain_text("unstable")
    assert 0 < total(page) <= everything

    page.locator("tbody .row-link").nth(2).click()
    expect(page.locator("[data-up]")).to_contain_text("3 of ")
    expect(page.get_by_text("Why unstable?")).to_be_visible()
    here = page.url

    counterpart = page.locator(".counterparts tbody tr").first.locator(".partner a")
    name = counterpart.inner_text()
    counterpart.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Feature {name}")
    page.go_back()
    expect(page).to_have_url(here)

    heading = page.get_by_role("heading", level=1).inner_text()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    permalink = page.evaluate("navigator.clipboard.readText()")
    assert re.search(rf"{address}/\d+/\d+\?v=[0-9a-f]{{16}}$", permalink)
    page.goto(permalink)
    assert page.get_by_role("heading", level=1).inner_text() == heading
    expect(page.locator(".notice")).to_have_count(0)


def test_moving_theta_changes_counts_in_place_and_the_address(page: Page, address: str) -> None:
    page.goto(f"{address}/features?bucket=unstable")
    before = total(page)
    page.evaluate("window.untouched = true")
    page.get_by_role("slider", name="match threshold").fill("0.3")
    expect(page).to_have_url(re.compile("theta=0.3"))
    expect(page.locator(".lens-says")).to_have_text("θ 0.30")
    assert total(page) < before
    assert page.evaluate("window.untouched"), "the page was reloaded"
    page.reload()
    expect(page.get_by_role("slider", name="match threshold")).to_have_value("0.3")
    page.go_back()
    expect(page.locator("#results h1")).to_contain_text(f"{before:,}")


def test_overview_figures_follow_theta(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#fig-stability .plot-container")).to_be_visible()
    title = page.locator("#fig-stability h2").inner_text()
    page.get_by_role("slider", name="match threshold").fill("0.2")
    expect(page.locator("#fig-stability h2")).not_to_have_text(title)
    expect(page.locator("#fig-stability .plot-container")).to_be_visible()


def test_keys_walk_the_list_and_the_filter(page: Page, address: str) -> None:
    page.goto(f"{address}/features")
    for key in ("j", "j", "k"):
        page.keyboard.press(key)
    expect(page.locator("tr.selected")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("[data-up]")).to_contain_text("1 of ")
    page.keyboard.press("j")
    expect(page.locator("[data-up]")).to_contain_text("2 of ")
    page.keyboard.press("u")
    expect(page).to_have_url(re.compile("/features"))
    page.keyboard.press("/")
    page.keyboard.type("#7")
    expect(page.locator("tbody .row-link b").first).to_have_text("#7")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


def test_everything_can_be_read_without_scripts(page_without_scripts: Page, address: str) -> None:
    page = page_without_scripts
    page.goto(f"{address}/features")
    page.locator("#facets").get_by_role("link", name="unstable").click()
    page.get_by_role("link", name="density").click()
    page.locator("tbody .row-link").first.click()
    expect(page.get_by_text("Why unstable?")).to_be_visible()
    page.goto(address)
    page.get_by_text("the numbers").first.click()
    expect(page.locator("#fig-stability table")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.slow)])
def test_pages_fit_and_stay_put(browser: Browser, server: str, address: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, base_url=server)
    page = context.new_page()
    complaints = complaints_of(page)
    study_path = address.rsplit("/", 1)[0]
    ours = (f"{address}/features", f"{address}/0/5", f"{address}/members", f"{address}/members?a=0&b=2")
    for path in ("/", study_path, address, *ours, "/methods", "/docs"):
        page.goto(path, wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} scrolls sideways"
        assert page.evaluate(LAYOUT_SHIFT) < 0.02, f"{path} shifts while loading"
    context.close()
    assert not complaints
