"""Work in the feature table: search, choose, walk, filter, come back, export; at a desk and on a phone."""

import csv
import io
import json
import re

import pytest
from playwright.sync_api import Browser, Page, expect

from support.listening import complaints_of

pytestmark = pytest.mark.browser


def count(page: Page) -> int:
    return int(page.locator("#results").get_attribute("data-total"))


def common_token(page: Page, address: str) -> dict:
    """The first token that is suggested for " r"."""
    answer = page.request.get(f"{address}/features/suggest.json?q=%22%20r").json()["suggestions"]
    return next(each for each in answer if each["hit"] == "token")


def test_a_token_is_searched_by_its_suggestion_and_the_list_walked_by_keys(page: Page, address: str) -> None:
    page.goto(f"{address}/features")
    token = common_token(page, address)
    page.keyboard.press("/")
    box = page.get_by_role("combobox", name="Search features")
    expect(box).to_be_focused()
    box.fill('" r')  # at once: htmx calls each request that is overtaken an error
    expect(box).to_have_attribute("aria-expanded", "true")
    assert page.locator("#suggestions [role=option]").count() <= 8
    expect(page).to_have_url(re.compile("q="))  # the table followed
    page.keyboard.press("ArrowDown")
    first = page.locator("#suggestions [role=option]").first
    expect(first).to_have_attribute("aria-selected", "true")
    assert box.get_attribute("aria-activedescendant") == first.get_attribute("id")
    page.keyboard.press("Enter")
    expect(box).to_have_value(token["q"])
    expect(page.locator("#results")).to_have_attribute("data-total", str(token["n_features"]))
    expect(page.locator("#found-count")).to_have_text(re.compile(rf"^{token['n_features']} feature"))
    hit = page.locator("tbody tr").first.locator("mark")
    expect(hit).to_be_visible()
    assert hit.locator("code").text_content() == token["text"]
    assert re.search(r"\d+\s%", hit.inner_text())
    expect(page.locator("#suggestions")).to_be_hidden()

    # Keys go past the last row, on to the next page and back; a slider with the focus does not swallow them.
    page.goto(f"{address}/features?sort=feature")
    slider = page.get_by_role("slider", name="match threshold")
    slider.focus()
    for _ in range(50):
        page.keyboard.press("j")
    names = page.locator(".row-link")
    expect(names.nth(49).locator("xpath=ancestor::tr")).to_have_class("selected")
    last = names.nth(49).inner_text()
    page.keyboard.press("j")
    expect(page).to_have_url(re.compile("after="))
    expect(page.locator("tbody tr").first).to_have_class("selected")
    page.keyboard.press("k")
    expect(page.locator("tr.selected .row-link")).to_have_text(last)
    page.keyboard.press("j")
    expect(page.locator("tbody tr").first).to_have_class("selected")

    # A click beside the link opens the row; up leads to its page and row, also after steps.
    row = page.locator("tbody tr").nth(5)
    row.locator(".bucket-cell").click(position={"x": 2, "y": 4})
    expect(page.locator("[data-up]")).to_contain_text("56 of ")
    page.keyboard.press("n")
    expect(page.locator("[data-up]")).to_contain_text("57 of ")
    heading = page.get_by_role("heading", level=1).inner_text()
    page.keyboard.press("u")
    expect(page.locator("tr.selected b")).to_have_text(re.search(r"#\d+", heading)[0])
    expect(page.locator("tr.selected")).to_be_in_viewport()
    assert page.locator("tbody tr").nth(6).get_attribute("class") == "selected"
    with page.context.expect_page() as opened:
        page.locator("tbody tr").nth(2).locator(".strip-cell").click(modifiers=["Control"])
    opened.value.close()

    # The focus stays where it was, arrow keys still move the slider, and an export reads back what is shown.
    facet = page.locator("#bucket-unstable")
    facet.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("bucket=unstable"))
    expect(facet).to_be_focused()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(r"theta=0\.69"))
    expect(slider).to_be_focused()
    expect(page.locator("#found-count")).to_contain_text("feature")
    page.locator("#download").click()
    with page.expect_download() as saved:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    assert len(rows) == count(page)
    assert {(row["theta"], row["rule"], row["bucket"]) for row in rows} == {("0.69", "argmax", "unstable")}
    assert all(
        re.fullmatch("[0-9a-f]{16}", row["digest"]) and json.loads(row["top_tokens"]) is not None for row in rows
    )


def test_handles_over_the_densities_filter_the_rows(page: Page, address: str) -> None:
    page.goto(f"{address}/features?density_max=0.5")
    before, low, high = (
        count(page),
        *(page.get_by_role("slider", name=f"{end} density") for end in ("lowest", "highest")),
    )
    field = page.get_by_role("spinbutton", name="density at least")
    expect(low).to_have_attribute("aria-valuetext", "no bound")
    assert float(high.get_attribute("aria-valuetext").removesuffix(" %")) == pytest.approx(50, rel=0.15)
    bars = page.locator("#density-bars path").get_attribute("d")

    # Dragged: the field is filled, and the rows are those of this density at least.
    low.scroll_into_view_if_needed()
    box = low.bounding_box()
    left, y = box["x"] + box["height"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(left, y)
    page.mouse.down()
    page.mouse.move(left + (box["width"] - box["height"]) * 0.6, y, steps=5)
    page.mouse.up()
    expect(page).to_have_url(re.compile("density_min="))
    dragged = float(field.input_value()) / 100
    assert dragged == pytest.approx(10 ** (-0.4 * int(low.get_attribute("max")) / 8), rel=0.5)
    found = page.request.get(f"{address}/features.json?density_min={dragged!r}&density_max=0.5&limit=500").json()
    expect(page.locator("#results")).to_have_attribute("data-total", str(found["total"]))
    assert 0 < found["total"] < before
    assert all(row["density"] >= dragged for row in found["rows"])
    assert page.locator("#density-bars path").get_attribute("d") == bars  # what the bounds leave out is still shown

    # By keys, as far as the other handle; what is typed moves a handle; at its end there is no bound.
    low.press("End")
    assert int(low.input_value()) == int(high.input_value()) - 1
    field.fill("0.5")
    expect(low).to_have_attribute("aria-valuetext", re.compile(r"^0\.[456]\d* %$"))
    expect(page).to_have_url(re.compile(r"density_min=0\.005"))
    low.press("Home")
    expect(field).to_have_value("")
    expect(page.locator("#results")).to_have_attribute("data-total", str(before))
    expect(page).not_to_have_url(re.compile("density_min"))

    page.locator("#bucket-unstable").click()
    expect(page.locator("#density-bars path")).not_to_have_attribute("d", bars)


@pytest.mark.parametrize("width", [390, 768, 1024, 1280, 1920])
def test_the_table_fits_at_every_width(browser: Browser, server: str, address: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, base_url=server)
    page = context.new_page()
    for query in ("", "?q=e", "?sort=loss", "?q=e&hit=explanation"):
        page.goto(f"{address}/features{query}")
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, query
    context.close()


def test_on_a_phone_filters_are_a_sheet_and_numbers_have_names(browser: Browser, server: str, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, base_url=server, has_touch=True)
    page = context.new_page()
    complaints = complaints_of(page)
    page.goto(f"{address}/features")
    sheet, before = page.locator("#rail"), count(page)
    expect(sheet).to_be_hidden()
    page.get_by_role("button", name="Filters", exact=True).tap()
    expect(sheet).to_be_visible()
    assert sheet.bounding_box()["y"] + sheet.bounding_box()["height"] == pytest.approx(844, abs=1)
    sheet.get_by_role("link", name="unstable").tap()
    expect(page).to_have_url(re.compile("bucket=unstable"))
    assert 0 < count(page) < before
    show = page.get_by_role("button", name=re.compile("^Show "))
    expect(show).to_have_text(f"Show {count(page):,}")
    show.tap()
    expect(sheet).to_be_hidden()
    page.locator("#sort-choice").select_option("density")
    expect(page).to_have_url(re.compile("sort=density"))
    assert "bucket=unstable" in page.url
    first = page.locator("tbody tr").first
    label = "getComputedStyle(node, '::before').content"
    named = first.locator("td[data-label]")
    assert named.count() >= 3
    for i in range(named.count()):
        assert named.nth(i).evaluate(f"node => {label}") == f'"{named.nth(i).get_attribute("data-label")}"'
    lefts = {page.locator("svg.strip").nth(i).bounding_box()["x"] for i in range(10)}
    assert len(lefts) == 1, "strips are not aligned"
    box = page.locator("input.search")
    assert box.evaluate("node => node.clientWidth") > 250
    token = common_token(page, address)
    page.goto(f"{address}/features")
    box.fill(token["text"])
    expect(page).to_have_url(re.compile("q="))
    page.locator("#suggestions [role=option]").first.tap()
    expect(page).to_have_url(re.compile("q=%22"))  # what was typed has left; rows stay where they are
    expect(page.locator("tbody mark").first).to_be_visible()
    page.locator("tbody tr").first.locator(".strip-cell").tap()
    expect(page.locator("[data-up]")).to_contain_text("1 of ")
    context.close()
    assert not complaints
