"""The feature page: its order on a phone, what a touch tells, panels that open in a dialog, nearest features in sight."""

import re

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
STARTS = 60_000  # ms; the engine loads torch


def test_on_a_phone_stability_explanation_and_activations_come_first_and_a_touch_tells_all(
    phone: Page, address: str
) -> None:
    phone.goto(f"{address}/0/5")
    first = (".stability-card", "#explanation", "#contexts", ".partners-card")
    tops = [phone.locator(f".columns {card}").first.bounding_box()["y"] for card in first]
    assert tops == sorted(tops)
    others = [
        card.bounding_box()["y"]
        for card in phone.locator(".what-it-is > .card:not(.stability-card, #explanation)").all()
    ]
    assert min(others) > tops[-1]
    context = phone.locator("#contexts .context").nth(1)
    source = context.locator(".source")
    expect(source).to_have_css("opacity", "0")
    context.locator(".maximum").tap()
    expect(source).to_have_css("opacity", "1")
    expect(source).to_contain_text(re.compile(r"token [\d,]+"))
    token = context.locator(".t.peak")
    token.tap()
    expect(source).to_contain_text(token.get_attribute("title"))
    assert phone.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    phone.locator(".nearest-card").scroll_into_view_if_needed()
    rows = phone.locator("#nearest tbody tr")
    expect(rows).to_have_count(12, timeout=STARTS)
    expect(rows.filter(has=phone.locator(".one-line"))).not_to_have_count(0)
    expect(rows.filter(has=phone.locator(".label-of"))).not_to_have_count(0)
    assert phone.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_what_opens_late_has_a_dialog_and_gives_the_focus_back(page: Page, address: str) -> None:
    page.goto(f"{address}/0/5")
    opener = page.locator("summary", has_text="scored contexts")
    opener.click()
    dialog = page.get_by_role("dialog", name="Scored contexts")
    expect(dialog.locator(".scored")).to_be_visible()
    assert dialog.bounding_box()["width"] > 600
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    opener.click()
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator("details.panel[open]")).to_have_count(0)


def test_counterparts_are_not_cut_at_any_width(page: Page, address: str) -> None:
    for width in (1920, 1280, 1024, 768, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{address}/0/5")
        card = page.locator(".partners-card").first
        frame = card.bounding_box()
        for cell in card.locator("tbody tr:first-child td").all():
            box = cell.bounding_box()
            assert frame["x"] <= box["x"]
            assert box["x"] + box["width"] <= frame["x"] + frame["width"], width
