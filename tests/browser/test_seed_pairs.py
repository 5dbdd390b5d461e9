"""Seed x seed, pairs and the live engine, as a person uses them."""

import re

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
STARTS = 60_000  # ms; the engine loads torch


def test_from_the_matrix_to_a_pair_to_a_feature_and_back(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="Seeds", exact=True).click()
    expect(page.locator("#fig-matrix .plot-container")).to_be_visible()
    page.get_by_label("comparison").select_option("2")
    page.get_by_role("button", name="Open the pair").click()
    expect(page).to_have_url(re.compile("a=0&b=2"))
    expect(page.get_by_role("heading", name="Seed 0 in seed 2")).to_be_visible()
    here = page.url
    page.locator(".pair-list tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Feature #")
    page.go_back()
    expect(page).to_have_url(here)


def test_a_click_on_a_cell_opens_its_pair(page: Page, address: str) -> None:
    page.goto(f"{address}/members")
    plot = page.locator("#fig-matrix .plot")
    expect(plot.locator(".plot-container")).to_be_visible()
    # The middle of the drawing area is where four cells meet; a little above and right of it is row 1, column 2.
    area = plot.locator(".nsewdrag").bounding_box()
    page.mouse.click(area["x"] + area["width"] * 0.6, area["y"] + area["height"] * 0.4)
    expect(page).to_have_url(re.compile("a=1&b=2"))


def test_theta_and_rule_change_the_matrix_in_place(page: Page, address: str) -> None:
    page.goto(f"{address}/members?a=0&b=1")
    title = page.locator("#fig-matrix h2").inner_text()
    page.evaluate("window.untouched = true")
    page.get_by_role("slider", name="match threshold").fill("0.4")
    expect(page).to_have_url(re.compile("theta=0.4"))
    expect(page.locator("#fig-matrix h2")).not_to_have_text(title)
    page.locator("#rule-choice").select_option("hungarian")
    expect(page).to_have_url(re.compile("rule=hungarian"))
    expect(page.get_by_text("Hungarian distance")).to_be_visible()
    assert page.evaluate("window.untouched"), "the page was reloaded"


def test_ten_thousand_moves_of_the_slider_are_a_few_requests_and_end_at_the_last(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#fig-stability .plot-container")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        """() => {
          const slider = document.querySelector("#theta");
          for (let i = 0; i <= 10000; i++) {
            slider.value = (0.2 + 0.5 * i / 10000).toFixed(2);
            slider.dispatchEvent(new Event("input", { bubbles: true }));
          }
          slider.value = "0.33";
          slider.dispatchEvent(new Event("input", { bubbles: true }));
          slider.dispatchEvent(new Event("change", { bubbles: true })); // as on release
        }"""
    )
    expect(page).to_have_url(re.compile("theta=0.33"))
    expect(page.locator("#fig-sweep")).to_contain_text("θ = 0.33")
    assert len(asked) < 30


def test_neighbours_are_searched_when_they_come_into_sight(page: Page, address: str) -> None:
    page.goto(f"{address}/1/17")
    panel = page.locator(".nearest-card")
    panel.scroll_into_view_if_needed()
    expect(panel.locator("tbody tr")).to_have_count(12, timeout=STARTS)
    panel.get_by_label("by").select_option("encoder")
    panel.get_by_label("each").select_option("1")
    expect(panel.locator("tbody tr")).to_have_count(4)
    expect(page).to_have_url(re.compile(f"{address}/1/17$"))
    name = panel.locator("tbody .partner a").first.inner_text()
    panel.locator("tbody .partner a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Feature {name}")


def test_a_pair_is_matched_now_under_the_rule_that_is_clicked(page: Page, address: str) -> None:
    page.goto(f"{address}/members?a=0&b=3")
    page.get_by_role("link", name="decoder and encoder", exact=True).click()
    expect(page.locator("#now")).to_contain_text("decoder and encoder, θ = 0.70, matched now", timeout=STARTS)
    expect(page.locator("#now .pair-list")).not_to_have_count(0)
    page.get_by_role("link", name="nearest, absolute cosine").click()
    expect(page.locator("#now")).to_contain_text("absolute cosine")
    expect(page.locator("#now .plot-container")).to_be_visible()
