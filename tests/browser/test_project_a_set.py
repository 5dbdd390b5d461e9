"""Projecting a filter and a feature, as a person does it."""

import re

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
STARTS = 60_000  # ms; the engine loads torch


def test_from_the_feature_table_to_a_projection_to_a_feature_and_its_spans(page: Page, address: str) -> None:
    page.goto(f"{address}/features?dead=exclude")
    page.get_by_role("link", name="How reproducible is this set’s subspace?").click()
    sentence = page.locator("#project-sentence")
    expect(sentence).to_be_visible(timeout=STARTS)
    expect(page.locator("#fig-projected .main-svg").first).to_be_visible(timeout=STARTS)

    page.get_by_role("spinbutton", name="rank").fill("3")
    page.get_by_role("spinbutton", name="rank").press("Enter")
    expect(sentence).to_contain_text("At rank 3 of 128")
    expect(page).to_have_url(re.compile("rank=3"))
    before = sentence.inner_text()
    page.get_by_role("checkbox", name="0", exact=True).uncheck()
    expect(sentence).to_contain_text("of 3 seeds")
    assert sentence.inner_text() != before
    expect(page).to_have_url(re.compile("members=1%2C2%2C3"))
    expect(page.locator("#fig-projected .main-svg").first).to_be_visible()

    page.get_by_role("link", name="in its own").click()
    expect(page.locator("th[aria-sort]")).to_contain_text("in its own")
    page.get_by_role("link", name=re.compile("without dead ones")).click()
    expect(page.locator(".chip.removable")).to_have_count(0)
    page.go_back()
    expect(page.locator(".chip.removable")).to_have_count(1)

    page.locator(".projected-list .row-link").first.click()
    page.get_by_text("Project this feature").click()
    expect(page.locator("#project-feature svg.energy")).to_be_visible(timeout=STARTS)
    page.locator("#project-feature-bucket").select_option("middle")
    expect(page.locator("#project-feature")).to_contain_text("middle features capture", timeout=STARTS)


def test_one_seed_is_refused_in_place_and_the_form_goes_on(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{address}/subspaces/project?dead=exclude&rank=3&members=0,1")
    sentence = page.locator("#project-sentence")
    expect(sentence).to_contain_text("of 2 seeds", timeout=STARTS)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("checkbox", name="2", exact=True).check()
    expect(sentence).to_contain_text("of 3 seeds")
