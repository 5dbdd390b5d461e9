"""What a visitor comes for, by touch alone on a screen of 390 px; comparing and lists: see test_compare_and_lists."""

import csv
import io
import re

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser
TOUCHED = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture
def touched(browser: Browser, server: str):
    permissions = ["clipboard-read", "clipboard-write"]
    context = browser.new_context(**TOUCHED, base_url=server, permissions=permissions, accept_downloads=True)
    yield context.new_page()
    context.close()


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def judged(page: Page) -> tuple[str, ...]:
    """(bucket and matches, p, every counterpart) as a feature's page says them."""
    expect(page.get_by_role("heading", level=1)).to_contain_text("Feature #")
    places = (".stability-card .big-row", ".stability-card .big", ".counterparts tbody")
    return tuple(page.locator(place).first.inner_text() for place in places)


def test_the_first_visit_by_touch(touched: Page, browser: Browser, server: str, address: str) -> None:
    page = touched
    # Landed, an unstable but active feature is two taps away.
    page.goto("/")
    page.get_by_role("link", name=re.compile("Unstable but active")).tap()
    expect(page.locator("#results h1")).to_contain_text("unstable features")
    row = page.locator("tbody tr").first
    assert float(re.search(r"([\d.]+)\s%", row.inner_text())[1]) > 0, "it fires"
    row.locator(".row-link").tap()
    expect(page.locator(".stability-card .pill").first).to_have_text("unstable")
    assert fits(page)

    # θ = 0.8 over five pages, and all the way back.
    page.goto(address)
    slider = page.get_by_role("slider", name="match threshold θ")
    slider.fill("0.8")
    expect(page).to_have_url(re.compile("theta=0.8"))
    for name in ("Features", "Seeds", "Buckets", "Ablation", "Training"):
        page.locator(".tabs").get_by_role("link", name=name, exact=True).tap()
        expect(page.locator('.tabs [aria-current="page"]')).to_have_text(name)
        expect(page.locator(".lens-says")).to_have_text("θ 0.80")
        assert fits(page), name
    for name in ("Ablation", "Buckets", "Seeds", "Features", "Overview"):
        page.go_back()
        expect(page.locator('.tabs [aria-current="page"]')).to_have_text(name)
        expect(page.locator(".lens-says")).to_have_text("θ 0.80")
    assert slider.input_value() == "0.8"

    # A link copied at θ = 0.5 opens in another phone with the same bucket, p and matches.
    page.goto(f"{address}/features?theta=0.5&bucket=middle")
    page.locator(".row-link").nth(2).tap()
    own = judged(page)
    assert "middle" in own[0]
    page.get_by_role("button", name="Copy link").tap()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    other = browser.new_context(**TOUCHED, base_url=server)
    fresh = other.new_page()
    fresh.goto(page.evaluate("navigator.clipboard.readText()"))
    assert judged(fresh) == own
    expect(fresh.locator(".lens-says")).to_have_text("θ 0.50")
    other.close()

    # " return" with its space is searched as a token: every row says where it fires on it.
    page.goto(f"{address}/features")
    box = page.get_by_role("combobox", name="Search features")
    box.tap()
    box.fill(" return")
    page.locator("#suggestions [role=option]", has_text=re.compile(r"return")).first.tap()
    expect(page).to_have_url(re.compile("q=%22%20return%22|q=%22\\+return%22"))
    expect(page.locator("tbody mark code").first).to_have_text(re.compile("return"))
    assert {text.strip() for text in page.locator("tbody mark code").all_text_contents()} == {"return"}
    assert fits(page)

    # A filter set by hand is exported and read back with what it was judged by.
    page.goto(f"{address}/features?theta=0.6&rule=mutual")
    page.locator(".filters-button").tap()
    page.get_by_role("slider", name="tolerance ε").fill("0.1")
    expect(page).to_have_url(re.compile("epsilon=0.1"))
    page.locator("#rail").get_by_role("link", name="unstable").tap()
    expect(page).to_have_url(re.compile("bucket=unstable"))
    page.get_by_role("button", name=re.compile("^Show ")).tap()
    total = int(page.locator("#results").get_attribute("data-total"))
    page.locator("#download").tap()
    with page.expect_download() as saved:
        page.get_by_role("link", name="CSV").tap()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    digest = page.request.get(f"{address}.json").json()["ensemble"]["digest"]
    assert len(rows) == total > 0
    assert {tuple(row[name] for name in ("theta", "epsilon", "rule", "digest", "bucket")) for row in rows} == {
        ("0.6", "0.1", "mutual", digest, "unstable")
    }
    page.goto(rows[0]["permalink"])
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Feature #{rows[0]['feature']}")
    expect(page.locator(".stability-card .pill").first).to_have_text("unstable")
    assert fits(page)
