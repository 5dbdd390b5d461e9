"""The scatter of the buckets' page: points that are filtered in place and lead to their features, and WebGL for many of them."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from seedscope.app.figures import scatter

pytestmark = pytest.mark.browser


def test_points_are_drawn_filtered_in_place_and_lead_to_their_features(page: Page, address: str) -> None:
    page.goto(f"{address}/buckets")
    plot = page.locator("#fig-scatter .plot")
    expect(plot.locator(".plot-container")).to_be_visible()
    page.evaluate("window.untouched = true")
    page.get_by_label("metric").select_option("max")
    expect(page).to_have_url(re.compile("metric=max"))
    page.get_by_label("bucket in colour").select_option("unstable")
    expect(page).to_have_url(re.compile("bucket=unstable"))
    expect(page.locator("#fig-scatter")).to_contain_text("The filter finds")
    assert page.evaluate("window.untouched"), "the page was reloaded"
    page.wait_for_function("document.querySelector('#fig-scatter .plot')._fullLayout?.xaxis")
    # Where the first unstable point stands on the screen; the pale ones lie under it.
    plot.scroll_into_view_if_needed()
    x, y, name = plot.evaluate(
        """(node) => {
          const trace = node._fullData.find((t) => t.name === "unstable"), { xaxis, yaxis } = node._fullLayout;
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


def test_webgl_draws_under_the_pages_own_policy(
    browser: Browser, server: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "MOST_SVG", 0)
    page = browser.new_page(base_url=server)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{address}/buckets")
    expect(page.locator("#fig-scatter canvas").first).to_be_visible()
    page.wait_for_function("document.querySelector('#fig-scatter .plot')._fullLayout?.xaxis")
    assert page.evaluate("document.querySelector('#fig-scatter .plot')._fullData[0].type") == "scattergl"
    page.close()
    # Software rendering is slow and says so.
    assert not [text for text in complaints if "GL Driver Message" not in text]
