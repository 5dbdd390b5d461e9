"""On a phone, by touch: compare a feature with its counterpart; star five, share the list, export it and read it back."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_a_feature_and_its_counterpart_in_seed_3_stand_below_each_other(phone: Page, address: str) -> None:
    phone.goto(f"{address}/0/5?theta=0.6")
    phone.get_by_role("link", name=re.compile("Compare with #.* of seed 3")).tap()
    expect(phone).to_have_url(re.compile(r"/compare\?a=.*theta=0\.6"))
    expect(phone.locator("#between")).to_contain_text("B is A’s counterpart")
    assert overflow(phone) <= 0
    a, b = (phone.locator(f"[data-section=contexts] .side.{side}").bounding_box() for side in "ab")
    assert a["y"] + a["height"] <= b["y"], "contexts stand below each other"
    assert a["x"] == b["x"]
    phone.get_by_role("link", name="Swap").tap()
    expect(phone.locator("#between")).to_contain_text("A is B’s counterpart")


def test_five_starred_features_are_a_list_to_share_to_export_and_to_read_back(
    phone: Page, browser: Browser, server: str, address: str, tmp_path: Path
) -> None:
    phone.goto(f"{address}/features?sort=density")
    stars = phone.locator("tbody .star")
    wanted = []
    for i in range(4):
        stars.nth(i).tap()
        wanted.append("/".join(stars.nth(i).get_attribute("data-star").split("/")[2:]))
        expect(stars.nth(i)).to_have_attribute("aria-pressed", "true")
    phone.locator("tbody tr").nth(6).locator(".row-link").tap()
    phone.locator(".feature-head .star").tap()
    wanted.append("/".join(phone.locator(".feature-head .star").get_attribute("data-star").split("/")[2:]))
    mine = phone.locator("[data-my-list]")
    expect(mine).to_have_text("My list5")
    mine.tap()
    expect(phone.locator(".row-link")).to_have_count(5)
    assert [text.replace("#", "") for text in phone.locator(".row-link").all_inner_texts()] == wanted
    assert overflow(phone) <= 0
    note = phone.locator("[data-note]").nth(1)
    note.fill('fires on "x", says\nnothing')
    note.blur()
    shared = phone.url

    files = {}
    for kind in ("json", "csv"):
        with phone.expect_download() as download:
            phone.locator("[data-export]", has_text=re.compile(f"^{kind}$")).tap()
        files[kind] = tmp_path / f"list.{kind}"
        download.value.save_as(files[kind])
    exported = json.loads(files["json"].read_text())
    assert [entry["id"] for entry in exported["listed"]] == wanted
    assert exported["listed"][1]["note"].startswith('fires on "x"')

    for file in files.values():  # in a browser that keeps nothing yet
        context = browser.new_context(base_url=server, viewport={"width": 390, "height": 844})
        fresh = context.new_page()
        fresh.goto(shared)
        expect(fresh.locator(".row-link")).to_have_count(5)
        expect(fresh.locator("tbody .star[aria-pressed=true]")).to_have_count(0)
        fresh.goto("/list")
        expect(fresh.locator("#my-list")).to_contain_text("Nothing is starred yet")
        fresh.locator("[data-import]").set_input_files(file)
        expect(fresh.locator("#my-list li")).to_have_count(5)
        fresh.locator("[data-my-list]").click()
        assert [text.replace("#", "") for text in fresh.locator(".row-link").all_inner_texts()] == wanted
        expect(fresh.locator("[data-note]").nth(1)).to_have_value(re.compile('^fires on "x", says'))
        context.close()


def test_an_explanation_of_ones_own_is_the_features_note_and_stays_in_the_browser(page: Page, address: str) -> None:
    page.goto(f"{address}/0/7")
    own = page.get_by_label("Your explanation")
    own.fill("s and j are text here")
    own.blur()
    expect(page.locator(".feature-head .star")).to_have_attribute("aria-pressed", "true")
    page.goto(f"{address}/list?id=0/7")
    expect(page.locator("[data-note]")).to_have_value("s and j are text here")
    page.goto(f"{address}/0/7")
    expect(own).to_have_value("s and j are text here")
    page.once("dialog", lambda dialog: dialog.dismiss())  # unstarring would lose it
    page.locator(".feature-head .star").click()
    expect(page.locator(".feature-head .star")).to_have_attribute("aria-pressed", "true")
    own.fill("")
    own.blur()
    page.reload()
    expect(own).to_have_value("")
    expect(page.locator("[data-my-list] .count")).to_have_text("1")
    page.goto(f"{address}/0/7?embed=true")
    expect(page.locator("[data-own]")).to_have_count(0)


def test_the_key_s_stars_the_selected_row_and_the_open_feature(page: Page, address: str) -> None:
    page.goto(f"{address}/features")
    page.keyboard.press("j")
    page.keyboard.press("s")
    expect(page.locator("tr.selected .star")).to_have_attribute("aria-pressed", "true")
    page.goto(f"{address}/0/7")
    page.keyboard.press("s")
    expect(page.locator("[data-my-list] .count")).to_have_text("2")
    page.keyboard.press("s")
    expect(page.locator("[data-my-list] .count")).to_have_text("1")
