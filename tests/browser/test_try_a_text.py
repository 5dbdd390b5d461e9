"""A text of one's own, as a person tries it."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from support.listening import complaints_of

pytestmark = pytest.mark.browser
STARTS = 60_000  # ms; the engine loads torch and the model
TEXT = 'def parse(self, text):\n    """Parse a text."""\n    return [int(part) for part in text.split(",")]\n'
HOSTILE = (
    '</textarea></span></label><script>document.title = "owned"; alert(1)</script>'
    '<img src=x onerror="alert(2)"><a href="javascript:alert(3)">x</a>" onfocus=alert(4) autofocus x="'
)


def address_of(address: str, text: str, **more: object) -> str:
    return f"{address}/try?{urlencode({'text': text, **more})}"


def ready(page: Page) -> None:
    """The answer is there, however long the engine takes to start."""
    expect(page.locator("#result .card").first).to_be_visible(timeout=STARTS)


def test_from_the_overview_to_a_token_to_a_feature_in_all_seeds_and_back(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_label("Text to try").fill(TEXT)
    page.get_by_role("button", name="Try it").click()
    ready(page)
    expect(page.get_by_label("Text to try")).to_have_value(TEXT)
    tokens = page.get_by_role("radiogroup")
    listed = page.locator("#listed")

    tokens.locator("label", has_text=re.compile("^ parse$")).click()
    expect(listed.locator("h2")).to_contain_text("token 2 of 31")
    expect(listed.locator("h3")).to_have_count(4)
    expect(page).to_have_url(re.compile("at=1(&|$)"))
    page.keyboard.press("ArrowRight")
    expect(listed.locator("h2")).to_contain_text("token 3 of 31")
    page.keyboard.press("ArrowLeft")
    expect(listed.locator("h2")).to_contain_text("token 2 of 31")

    page.get_by_label("seed whose features are shown").select_option("3")
    expect(listed.locator("h3").first).to_have_text("seed 3")
    expect(page).to_have_url(re.compile("seed=3"))
    here = page.url
    page.get_by_role("button", name=re.compile("in all seeds on this text")).first.click()
    expect(page.get_by_role("heading", name="The same feature in all seeds")).to_be_visible()
    expect(page.locator(".on-text tbody tr")).to_have_count(4)
    expect(page.locator(".aligned .t")).not_to_have_count(0)
    expect(page).to_have_url(re.compile(r"feature=\d+"))

    counterpart = page.locator(".on-text tbody tr").nth(1).get_by_role("link")
    name = counterpart.inner_text()
    counterpart.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Feature {name}")
    page.go_back()
    expect(page.get_by_role("heading", name="The same feature in all seeds")).to_be_visible()
    page.get_by_role("button", name="All features on this text").click()
    expect(listed.locator("h3").first).to_have_text("seed 3")
    page.go_back()
    page.go_back()
    expect(page).to_have_url(here)
    expect(page.get_by_label("Text to try")).to_have_value(TEXT)


def test_the_box_of_a_feature_shows_it_beside_its_counterparts(page: Page, address: str) -> None:
    page.goto(f"{address}/2/17?theta=0.6")
    page.get_by_label("Text to try").fill("import os\nprint(os.environ)")
    page.get_by_role("button", name="Try it").click()
    ready(page)
    expect(page).to_have_url(re.compile("(?=.*seed=2)(?=.*feature=17)(?=.*theta=0.6)"))
    expect(page.locator(".on-text tbody tr").first).to_contain_text("#17")


def test_a_passage_of_the_study_is_run_with_one_click(page: Page, address: str) -> None:
    page.goto(f"{address}/try")
    page.locator(".example").first.click()
    ready(page)
    expect(page.get_by_role("radiogroup")).to_be_visible()


@pytest.mark.parametrize("more", [{}, {"seed": 1, "feature": 5}, {"at": 3}])
def test_markup_in_a_text_runs_nowhere(page: Page, address: str, more: dict) -> None:
    dialogs: list[Dialog] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog), dialog.dismiss()))
    page.goto(address_of(address, HOSTILE, **more))
    ready(page)
    expect(page.get_by_label("Text to try")).to_have_value(HOSTILE)
    page.evaluate("document.querySelector('#try').dataset.old = 'yes'")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#try[data-old]")).to_have_count(0)
    ready(page)
    if "feature" not in more:
        tokens = page.get_by_role("radiogroup").locator("label")
        for i in range(0, tokens.count(), 5):
            tokens.nth(i).click()
            expect(page.locator("#listed h2")).to_contain_text(f"token {i + 1} of")
    assert page.title().startswith("Try a text")
    assert (
        page.locator("#main script, #main img, #main [onerror], #main [onfocus], #main [href^=javascript]").count() == 0
    )
    assert not dialogs


def test_many_arrow_keys_end_at_the_last_token(page: Page, address: str) -> None:
    page.goto(address_of(address, TEXT, at=0))
    ready(page)
    page.get_by_role("radiogroup").locator("input").first.focus()
    for _ in range(17):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#listed h2")).to_contain_text("token 18 of 31")
    expect(page).to_have_url(re.compile("at=17"))


def test_it_works_without_scripts(page: Page, page_without_scripts: Page, address: str) -> None:
    page.goto(address_of(address, TEXT))
    ready(page)  # the engine is up
    page = page_without_scripts
    page.goto(address)
    page.get_by_label("Text to try").fill(TEXT)
    page.get_by_role("button", name="Try it").click()
    page.get_by_role("radiogroup").locator("label", has_text=re.compile("^Parse$")).click()
    page.get_by_role("button", name="List what is active there").click()
    expect(page.locator("#listed h2")).to_contain_text("Parse")
    page.get_by_role("button", name=re.compile("in all seeds on this text")).first.click()
    expect(page.locator(".on-text tbody tr")).to_have_count(4)


def test_a_text_too_long_for_an_address_is_told_and_kept(browser: Browser, server: str, address: str) -> None:
    context = browser.new_context(base_url=server)  # its console may name the refused request
    page = context.new_page()
    page.goto(f"{address}/try")
    text = "é" * 3000
    page.get_by_label("Text to try").fill(text)
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#result")).to_contain_text("at most 8,192")
    expect(page.get_by_label("Text to try")).to_have_value(text)
    page.get_by_label("Text to try").fill("short")
    page.get_by_role("button", name="Run").click()
    ready(page)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_complains_of_nothing(browser: Browser, server: str, address: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, base_url=server)
    page = context.new_page()
    complaints = complaints_of(page)
    long = "x" * 300 + " " + TEXT * 3
    for path in (
        f"{address}/try", address_of(address, TEXT), address_of(address, long), address_of(address, "שלום עולם 😀 \t\x07"),
        address_of(address, long, seed=0, feature=5), address_of(address, TEXT, seed=0, feature=0),
    ):  # fmt: skip
        page.goto(path)
        if "text=" in path:
            ready(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} scrolls sideways"
    context.close()
    assert not complaints


def test_a_page_opened_before_the_engine_is_up_gets_its_answer_by_itself(
    browser: Browser, serve: Callable[[Path], str], own_root: Path, address: str
) -> None:
    context = browser.new_context(base_url=serve(own_root))
    page = context.new_page()
    page.goto(f"{address}/try?text={quote(TEXT)}")
    expect(page.locator("#result .engine")).to_contain_text("The engine is starting")
    expect(page).to_have_title(re.compile("Try a text"))
    page.get_by_label("Text to try").fill("something else meanwhile")
    # This copy of the study has no SAEs and no plan: the answer says so.
    expect(page.locator("#result .engine")).to_contain_text("no study.json", timeout=STARTS)
    expect(page.get_by_label("Text to try")).to_have_value("something else meanwhile")
    context.close()
