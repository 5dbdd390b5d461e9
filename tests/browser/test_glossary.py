"""Entries of the glossary: on hover, focus and tap, inside the window, and gone with Escape."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
OPEN = ".entry:popover-open"


@pytest.mark.parametrize("width", [390, 1280])
def test_an_entry_opens_on_hover_focus_and_tap_inside_the_window_and_closes_with_escape(
    browser, server, address, width
):
    context = browser.new_context(viewport={"width": width, "height": 844}, base_url=server, has_touch=width == 390)
    page = context.new_page()
    page.goto(f"{address}/ablation")
    word = page.locator(".masks .term", has_text="EV lost")
    word.scroll_into_view_if_needed()
    if width == 390:
        word.tap()
    else:
        word.hover()
    note = page.locator(OPEN)
    expect(note).to_contain_text("less that with the features removed")
    box = note.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if width == 1280:  # a click keeps it open when the pointer leaves
        word.click()
        page.mouse.move(5, 5)
        page.wait_for_timeout(400)
        expect(note).to_have_count(1)
    page.keyboard.press("Escape")
    expect(note).to_have_count(0)
    if width == 1280:
        page.locator(".masks .term").first.focus()
        page.keyboard.press("Tab")
        expect(note).to_have_count(1)
        assert note.locator("a[href^='/methods#']").get_attribute("href") == "/methods#worth"
    context.close()
