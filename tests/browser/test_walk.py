"""Walks of a new user: from landing to a feature in three clicks, and a lens that stays on the way and in shared links."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(params=["desktop", "phone"])
def visitor(request: pytest.FixtureRequest, browser: Browser, server: str):
    """A page at 1280 px with a mouse, and at 390 px by touch."""
    size = {"width": 1280, "height": 900} if request.param == "desktop" else {"width": 390, "height": 844}
    context = browser.new_context(
        viewport=size,
        has_touch=request.param == "phone",
        base_url=server,
        permissions=["clipboard-read", "clipboard-write"],
    )
    yield context.new_page()
    context.close()


def test_from_landing_to_an_unstable_but_active_feature_in_two_clicks(visitor: Page) -> None:
    visitor.goto("/")
    expect(visitor.locator(".explained")).to_contain_text("its stability is")
    visitor.get_by_role("link", name=re.compile("Unstable but active")).click()
    expect(visitor.locator("#results h1")).to_contain_text("unstable features")
    visitor.locator(".row-link").first.click()
    expect(visitor.get_by_role("heading", level=1)).to_contain_text("Feature #")
    expect(visitor.locator(".big-row .pill, .pill").first).to_have_text("unstable")


def test_theta_stays_over_five_pages_and_back(visitor: Page, address: str) -> None:
    visitor.goto(address)
    slider = visitor.get_by_role("slider", name="match threshold θ")
    slider.fill("0.8")
    expect(visitor.locator(".lens-says")).to_have_text("θ 0.80")
    expect(visitor).to_have_url(re.compile("theta=0.8"))
    for name in ("Features", "Seeds", "Ablation", "Buckets", "Training", "Overview"):
        visitor.locator(".tabs").get_by_role("link", name=name, exact=True).click()
        expect(visitor.locator('.tabs [aria-current="page"]')).to_have_text(name)
        expect(visitor.locator(".lens-says")).to_have_text("θ 0.80")
    assert visitor.get_by_role("slider", name="match threshold θ").input_value() == "0.8"
    visitor.locator(".lens").get_by_role("link", name="reset").click()
    expect(visitor.locator(".lens")).to_have_count(0)
    assert visitor.get_by_role("slider", name="match threshold θ").input_value() == "0.7"


def test_a_copied_link_opens_fresh_with_the_same_bucket_p_and_matches(
    visitor: Page, browser: Browser, address: str
) -> None:
    visitor.goto(f"{address}/features?theta=0.5&bucket=stable")
    visitor.locator(".row-link").nth(2).click()
    expect(visitor.get_by_role("heading", level=1)).to_contain_text("Feature #")
    visitor.get_by_role("button", name="Copy link").click()
    expect(visitor.get_by_role("button", name="Copied")).to_be_visible()
    link = visitor.evaluate("navigator.clipboard.readText()")
    seen = visitor.locator("#stability, .what-it-is > .card").first.inner_text()
    counterparts = visitor.locator(".counterparts tbody").inner_text()
    fresh = browser.new_context(viewport=visitor.viewport_size)
    other = fresh.new_page()
    other.goto(link)
    assert other.locator("#stability, .what-it-is > .card").first.inner_text() == seen
    assert other.locator(".counterparts tbody").inner_text() == counterparts
    fresh.close()


def test_other_ensembles_and_studies_are_one_menu_away_and_unknown_parameters_break_nothing(
    visitor: Page, address: str
) -> None:
    visitor.goto(f"{address}/buckets?utm_source=letter&theta=0.6")
    expect(visitor.locator(".ignored")).to_contain_text("utm_source")
    expect(visitor.locator(".lens-says")).to_have_text("θ 0.60")
    visitor.locator(".crumbs").get_by_role("link", name=address.rsplit("/", 1)[1]).click()
    expect(visitor).to_have_url(re.compile(f"{address}\\?theta=0.6$"))
