"""Work that is missing, started from the page that says so, watched there and cancelled from another."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from seedscope.engine.studies.publish import publish
from support.listening import complaints_of
from support.studies import members_that_agree, publish_study

pytestmark = pytest.mark.browser
MINUTES = 120_000


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory, serve: Callable[[Path], str], study_root: Path) -> str:
    """The address of a root with the small study, less the loss, and one that was imported and not analysed."""
    root = tmp_path_factory.mktemp("lacking") / "root"
    shutil.copytree(study_root, root)
    for part in (root / "small" / "parts").glob("*/loss"):
        shutil.rmtree(part)
    publish(root / "small")
    publish_study(root, "mine", {"topk": (members_that_agree(), {})})
    (root / "mine" / "CURRENT").unlink()
    return serve(root)


@pytest.fixture(params=[pytest.param(1280, marks=pytest.mark.slow), 390])
def page(browser: Browser, lacking: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page whose console must stay clean."""
    context = browser.new_context(viewport={"width": request.param, "height": 844}, base_url=lacking)
    page = context.new_page()
    complaints = complaints_of(page)
    yield page
    context.close()
    assert not complaints


def test_work_started_on_a_page_is_followed_there_and_cancelled_among_the_jobs(page: Page) -> None:
    page.goto("/s/small")
    page.locator("#not-computed").get_by_role("button", name="Compute now").click()
    job = page.locator("#not-computed .job")
    expect(job.locator(".flag")).to_have_text(re.compile("running|queued"))
    expect(page.locator("#jobs-link .count")).to_have_text("1")
    expect(job).to_contain_text("tokens", timeout=MINUTES)  # the stage: asked for again and again
    expect(job.locator("progress")).to_have_attribute("value", re.compile(r"[01]\.\d+"), timeout=MINUTES)
    expect(page).to_have_url(re.compile("/s/small$"))

    page.locator("#jobs-link").click()
    expect(page).to_have_url(re.compile("/jobs$"))
    first = page.locator("article").first
    first.locator("details summary").click()
    expect(first.locator("details")).to_contain_text("tokenizing", timeout=MINUTES)
    cancel = first.get_by_role("button", name="Cancel")
    cancel.focus()
    page.wait_for_timeout(2_500)  # the job has been drawn anew twice
    expect(cancel).to_be_focused()
    expect(first.locator("details pre")).to_be_visible()
    page.keyboard.press("Enter")
    expect(first.locator(".flag")).to_have_text("cancelled", timeout=30_000)
    expect(first).to_contain_text("what was finished is kept")
    expect(page.locator("#jobs-link .count")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]

    first.get_by_role("button", name="Try again").click()
    expect(first.locator(".flag")).to_have_text(re.compile("running|queued"))
    first.get_by_role("button", name="Cancel").click()
    expect(first.locator(".flag")).to_have_text("cancelled", timeout=30_000)
    page.goto("/s/small")
    expect(page.locator("#not-computed").get_by_role("button", name="Compute now")).to_be_visible()


@pytest.mark.slow
def test_when_results_are_published_the_page_offers_them_and_stays(browser: Browser, lacking: str) -> None:
    context = browser.new_context(base_url=lacking)
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_role("link", name="mine")).to_have_count(0)
    waiting = page.locator(".waiting")
    waiting.get_by_role("button", name="Compute now").click()
    expect(waiting).to_contain_text("new results of mine are published", timeout=MINUTES)
    page.wait_for_timeout(1_500)
    expect(page.get_by_role("link", name="mine", exact=True)).to_have_count(0)  # nothing jumps
    waiting.get_by_role("link", name="Reload this page").click()
    page.locator(".study-card").get_by_role("link", name="mine").click()
    expect(page.get_by_role("link", name="topk", exact=True)).to_be_visible()
    context.close()


def test_without_scripts_a_job_is_started_seen_and_cancelled(browser: Browser, lacking: str) -> None:
    context = browser.new_context(base_url=lacking, java_script_enabled=False)
    page = context.new_page()
    page.goto("/s/small/topk-96/ablation")
    page.get_by_role("button", name="Compute now").click()
    expect(page).to_have_url(re.compile(r"/jobs#job-[0-9a-f]{16}$"))
    expect(page.locator("article").first).to_contain_text("seedscope analyze small --only loss")
    page.locator("article").first.get_by_role("button", name="Cancel").click()
    expect(page).to_have_url(re.compile(r"/jobs#job-[0-9a-f]{16}$"))
    for _ in range(50):
        page.reload()
        if "cancelled" in page.locator("article .flag").first.inner_text():
            break
        page.wait_for_timeout(200)
    expect(page.locator("article .flag").first).to_have_text("cancelled")
    context.close()


def test_a_refusal_is_shown_where_the_page_is(browser: Browser, lacking: str) -> None:
    """The study is gone by the time the button is pressed: the form then names one that nobody knows."""
    context = browser.new_context(base_url=lacking)
    page = context.new_page()
    page.goto("/s/small")
    page.locator("#not-computed input[name=study]").evaluate("node => { node.value = 'gone' }")
    page.get_by_role("button", name="Compute now").click()
    expect(page.locator("#main")).to_contain_text("This job is refused")
    expect(page.locator("#main")).to_contain_text("gone")
    context.close()
