"""A study of decoders alone, as a person sees it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from support.listening import complaints_of
from support.studies import members_that_agree, publish_study

pytestmark = pytest.mark.browser
HERE = "/s/mine/topk"
SOURCES = [{"source": f"/data/checkpoints/layer-7/trainer-{i}/sae_weights.safetensors"} for i in range(5)]


@pytest.fixture(scope="module")
def decoders_only(tmp_path_factory: pytest.TempPathFactory, serve: Callable[[Path], str]) -> str:
    """The address of a root with one study of two ensembles and no model."""
    root = tmp_path_factory.mktemp("decoders")
    made = {
        "topk": (members_that_agree(), {}),
        "pair": (members_that_agree(members=2, seed=1), {"shared_start": "yes"}),
    }
    publish_study(root, "mine", made, origins=SOURCES)
    return serve(root)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.slow)])
def test_pages_fit_and_complain_of_nothing(browser: Browser, decoders_only: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, base_url=decoders_only)
    page = context.new_page()
    complaints = complaints_of(page)
    paths = ("/", "/s/mine", HERE, f"{HERE}/features", f"{HERE}/1/5", f"{HERE}/0/0", f"{HERE}/members", "/s/mine/pair",
             f"{HERE}/members?a=0&b=2")  # fmt: skip
    for path in paths:
        page.goto(path, wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} scrolls sideways"
        for figure in page.locator("[data-figure]").all():
            expect(figure.locator(".plot-container")).to_be_visible()
    context.close()
    assert not complaints


def test_from_the_study_to_a_feature_and_its_permanent_address(browser: Browser, decoders_only: str) -> None:
    context = browser.new_context(base_url=decoders_only)
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_text("decoders only")).to_be_visible()
    page.locator(".study-card").get_by_role("link", name="mine").click()
    expect(page.get_by_text(SOURCES[3]["source"])).to_be_visible()
    expect(page.get_by_text("seedscope analyze mine --model DIR_OR_ID --hookpoint NAME --tokens FILE")).to_be_visible()
    page.locator(".ensemble-card h2").get_by_role("link", name="topk").click()
    page.get_by_role("link", name="Features", exact=True).click()
    search = page.get_by_role("searchbox")
    search.fill("def")  # tokens are not known: nothing is asked, and the page stays
    search.fill("#17")
    expect(page.locator("#results h1")).to_contain_text("5 features")
    expect(page).to_have_url(re.compile("id=17"))
    page.locator("tbody .row-link").first.click()
    expect(page.get_by_role("heading", level=2).first).to_contain_text("Agreement (start unknown)")
    here = page.url.partition("?")[0]
    page.get_by_role("link", name="permanent link to these weights").click()
    expect(page).to_have_url(re.compile(re.escape(here) + r"\?v=[0-9a-f]{16}$"))
    context.close()
