"""Every page, at five widths and in both schemes: nothing scrolls sideways, no label lies on another, axe finds nothing serious."""

from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page

from support.listening import complaints_of

WIDTHS = (1920, 1280, 1024, 768, 390)
AXE_AT = (1280, 390)
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PAGES = (
    "/", "/methods", "/manual", "/manual/commands", "/jobs", "/docs", "{study}", "{study}/pool", "{ensemble}",
    "{ensemble}/features", "{ensemble}/features?q=the", "{ensemble}/features?theta=7", "{ensemble}/members",
    "{ensemble}/members?a=0&b=2", "{ensemble}/buckets", "{ensemble}/ablation", "{ensemble}/subspaces",
    "{ensemble}/explanations", "{ensemble}/trajectory", "{ensemble}/try", "{ensemble}/0/5?theta=0.8", "{ensemble}/0/5/scored",
)  # fmt: skip
AT_LENGTH = ("/manual/commands", "{ensemble}/features?q=the", "{ensemble}/members?a=0&b=2", "{ensemble}/0/5/scored")
# Texts of figures whose boxes lie on each other by more than a pixel; of one and the same kind and figure.
OVERLAPS = """() => {
  const found = [];
  for (const plot of document.querySelectorAll(".plot")) {
    for (const kind of [".annotation-text", ".xtick text", ".ytick text", ".legendtext", ".bartext"]) {
      const boxes = [...plot.querySelectorAll(kind)].filter((t) => t.textContent.trim()).map((t) => [t, t.getBoundingClientRect()])
        .filter(([, b]) => b.width && b.height);
      boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 2 && tall > 2) found.push(`${plot.closest("figure").id}: ${kind} ${t.textContent} on ${u.textContent}`);
      }));
    }
  }
  return found;
}"""
SERIOUS = """async () => {
  const result = await axe.run(document, { resultTypes: ["violations"] });
  return result.violations.filter((v) => ["serious", "critical"].includes(v.impact))
    .flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 160)}`));
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, server: str):
    context = browser.new_context(base_url=server)
    page = context.new_page()
    yield page
    context.close()


def drawn(page: Page) -> None:
    """Wait until scripts have seen the window's new size, and every figure is drawn and as wide as its place."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function(
        """() => [...document.querySelectorAll(".plot[data-figure]")].every((plot) => {
          const svg = plot.querySelector(".main-svg");
          return svg && Math.abs(svg.getBoundingClientRect().width - plot.clientWidth) < 2;
        })"""
    )


def _with_length(path: str) -> object:
    """Pages that are others with a filter stand with the long tests: each costs ten seconds."""
    return pytest.param(path, marks=pytest.mark.slow) if path in AT_LENGTH else path


@pytest.mark.parametrize("path", list(map(_with_length, PAGES)))
def test_a_page_fits_reads_and_can_be_reached_by_everybody(page: Page, address: str, path: str) -> None:
    study = address.rsplit("/", 1)[0]
    complaints = complaints_of(page)
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.goto(path.format(study=study, ensemble=address))
    page.evaluate(AXE)
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        drawn(page)
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        found += [f"{width}: scrolls sideways by {over} px"] if over > 0 else []
        found += [f"{width}: {each}" for each in page.evaluate(OVERLAPS)]
        for scheme in ("light", "dark") if width in AXE_AT else ():
            page.emulate_media(color_scheme=scheme)
            found += [f"{width} {scheme}: {each}" for each in page.evaluate(SERIOUS)]
    page.emulate_media(color_scheme="light")
    assert not found, "\n".join(found)
    assert not [said for said in complaints if "422" not in said]
