"""The page of `seedscope diff`, opened from its file: accessible in both schemes, no wider than a phone, nothing asked for."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from support.commands import run

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_diff_is_accessible_and_needs_no_other_file(browser: Browser, study_root, tmp_path, scheme):
    (folder,) = (study_root / "small" / "sae" / "topk-96").iterdir()
    page_file = tmp_path / "diff.html"
    done = run("diff", folder / "seed-0.safetensors", folder / "seed-1.safetensors", "--quiet", "--html", page_file)
    assert done.returncode == 0, done.stderr
    page = browser.new_page(color_scheme=scheme, viewport={"width": 375, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert asked == [page_file.as_uri()]
    page.close()
