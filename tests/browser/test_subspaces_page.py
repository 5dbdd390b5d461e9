"""The page of spans in a browser: ranks redraw it, the map draws when reached, a filter greys it, a point opens its feature."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from support.listening import complaints_of

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """A page whose console is clean but for what software rendering says of its own slowness."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=server)
    page = context.new_page()
    complaints = complaints_of(page)
    yield page
    context.close()
    assert not [text for text in complaints if "GL Driver Message" not in text]


def test_a_rank_redraws_the_page_and_leaves_the_map_alone(page: Page, address: str) -> None:
    page.goto(f"{address}/subspaces")
    expect(page.locator("#fig-captured .plot-container")).to_be_visible()
    page.evaluate("window.untouched = true")
    before = page.locator("#answer .lead").inner_text()
    page.locator("label:has(#rank-2)").click()
    expect(page).to_have_url(re.compile("rank=2"))
    expect(page.locator("#answer .lead")).not_to_have_text(before)
    expect(page.locator("#fig-captured figcaption")).to_contain_text("rank 2")
    page.locator("label:has(#matrix-angle)").click()
    expect(page).to_have_url(re.compile("rank=2.*matrix=angle|matrix=angle.*rank=2"))
    expect(page.locator("#fig-angles h2")).to_contain_text("principal angles")
    assert page.evaluate("window.untouched"), "the page was reloaded"


def test_the_map_draws_is_filtered_in_place_and_a_point_opens_its_feature(page: Page, address: str) -> None:
    page.goto(f"{address}/subspaces?rank=2")
    page.locator("#map").scroll_into_view_if_needed()
    plot = page.locator("#fig-map .plot")
    expect(plot.locator("canvas").first).to_be_visible()
    page.locator("#map-bucket").select_option("unstable")
    expect(page).to_have_url(re.compile(r"/subspaces\?.*bucket=unstable"))
    expect(page).to_have_url(re.compile("rank=2"))
    expect(page.locator("#fig-map")).to_contain_text("The filter finds")
    expect(plot.locator("canvas").first).to_be_visible()
    plot.scroll_into_view_if_needed()
    x, y, name = plot.evaluate(
        """(node) => {
          const trace = node._fullData.find((t) => t.name.startsWith("unstable")), { xaxis, yaxis } = node._fullLayout;
          const box = node.querySelector(".nsewdrag").getBoundingClientRect();
          return [box.x + xaxis.d2p(trace.x[0]), box.y + yaxis.d2p(trace.y[0]), trace.customdata[0]];
        }"""
    )
    assert re.fullmatch(r"/\d+/\d+", name)
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    expect(plot.locator(".hoverlayer .hovertext")).to_be_visible()
    page.mouse.click(x, y)
    expect(page).to_have_url(re.compile(rf"{address}/\d+/\d+"))
