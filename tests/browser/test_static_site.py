"""A static site in a real browser, opened as files and from a file server: what it shows is what the dashboard shows."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, expect
from starlette.testclient import TestClient

from seedscope.app.site import ensemble_data
from seedscope.app.site.make import make_site
from seedscope.app.site.wasm import FILES, PACKAGE, VERSION
from support.listening import complaints_of
from support.studies import ENSEMBLE, LISTED, STUDY

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WRITTEN = "seedscope.filter.write(seedscope.filter.read(query))"
SORTS = ("stability", "density", "worth", "loss", "max", "entropy", "score", "cofiring", "feature")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a file server over a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def duckdb_wasm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of DuckDB-WASM, from the registry that npm is set to."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on the PATH")
    folder = tmp_path_factory.mktemp("package")
    subprocess.run(
        [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True, capture_output=True, timeout=300
    )
    (package,) = folder.iterdir()
    return package


@pytest.fixture(scope="module")
def duckdb_folder(study_root: Path, duckdb_wasm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same site with DuckDB, in blocks of fewer lines than the table has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble_data, "QUERIED_ROWS", 40)
        folder = tmp_path_factory.mktemp("site") / "with duckdb"
        return make_site(study_root, STUDY, folder, filter=f"id={LISTED}", duckdb_wasm=duckdb_wasm).folder


@pytest.fixture(scope="module", params=["file", "http", "duckdb"])
def site(request: pytest.FixtureRequest, site_folder: Path) -> Iterator[str]:
    """The address of the site's folder: opened as files, served, and served with DuckDB."""
    if request.param == "file":
        yield site_folder.as_uri()
        return
    folder = request.getfixturevalue("duckdb_folder") if request.param == "duckdb" else site_folder
    with served(folder) as address:
        yield address


@pytest.fixture
def with_duckdb(duckdb_folder: Path) -> Iterator[str]:
    """The address of the site with DuckDB."""
    with served(duckdb_folder) as address:
        yield address


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A page that asks for nothing outside the folder, and whose console stays clean."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    complaints = complaints_of(page)
    yield page
    page.evaluate("0")
    context.close()
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []
    assert not complaints


@lru_cache(maxsize=2)
def parsed(html: str) -> BeautifulSoup:
    """A page without notes of the glossary, what is hidden, and what the folder has not."""
    soup = BeautifulSoup(html, "html.parser")
    for each in soup.select(".entry, .term.mark, .star, .to-compare, [hidden]"):
        each.decompose()
    return soup


def said(html: str, selector: str) -> list[str]:
    """The texts of what a selector finds, blanks as one."""
    return [" ".join(each.get_text(" ").split()) for each in parsed(html).select(selector)]


def titles(html: str, selector: str) -> list[str]:
    return [str(each.get("title")) for each in parsed(html).select(selector)]


def open_feature(page: Page, site: str, place: str) -> str:
    page.goto("about:blank")
    page.goto(f"{site}/s/{ENSEMBLE}/feature.html#{place}")
    expect(page.locator("#up")).not_to_have_text("")
    expect(page.locator("#site-feature")).to_be_visible()
    return page.content()


SAME = (
    ".stability-card .big", ".stability-card .pill", ".stability-card p:has(> b)",
    ".stability-card svg a title", "#counterparts tbody tr",
    "#contexts .context", "#explanation .said", ".score b", ".quantiles dd", ".top-tokens li", "p.trigger", ".logits li",
    ".energies dd", "#label-agreement", "svg.histogram title", "svg.course title", "#contexts > p, #contexts > div > p",
)  # fmt: skip


def test_a_feature_reads_as_on_the_dashboard(page: Page, site: str, client: TestClient, address: str) -> None:
    rows = client.get(f"{address}/features/page.json?id={LISTED}&limit=500").json()["rows"]
    by_bucket = {row["bucket"]: f"{row['seed']}/{row['feature']}" for row in rows}
    assert len(by_bucket) == 4
    compared = set()
    for place in by_bucket.values():
        here, there = open_feature(page, site, place), client.get(f"{address}/{place}").text
        for selector in SAME:
            assert said(here, selector) == said(there, selector), (place, selector)
            compared |= {selector} if said(here, selector) else set()
        assert titles(here, "#contexts .t, #counterparts .t") == titles(there, "#contexts .t, #counterparts .t")
        worth = said(there, "dl.facts.right dd")
        assert said(here, "dl.facts.right dd:not([hidden])")[: len(worth)] == worth
    assert compared >= set(SAME) - {"svg.course title"}


def test_the_table_reads_and_sorts_as_on_the_dashboard(page: Page, site: str, client: TestClient, address: str) -> None:
    page.goto(f"{site}/s/{ENSEMBLE}/features.html")
    body = page.locator("[data-list] tbody")
    expect(body.locator("tr")).to_have_count(50)
    assert page.locator("#total").inner_text() == "96 features"
    there = client.get(f"{address}/features?id={LISTED}&sort=stability").text
    cells = "[data-list] tbody td"
    assert said(page.content(), cells) == said(there, cells)
    assert said(page.content(), f"{cells} title") == said(there, f"{cells} title")
    for sort in SORTS:
        for way in ("asc", "desc"):
            page.evaluate(f"location.hash = 'sort={sort}&dir={way}'")
            expect(page.locator(f"th[data-sort={sort}]")).to_have_attribute("aria-sort", f"{way}ending")
            rows = client.get(f"{address}/features/page.json?id={LISTED}&sort={sort}&dir={way}").json()["rows"]
            assert body.locator(".row-link").all_inner_texts() == [
                f"{row['seed']}/#{row['feature']}" for row in rows
            ], (sort, way)


def test_filters_leave_what_they_leave_on_the_dashboard(
    page: Page, site: str, client: TestClient, address: str
) -> None:
    page.goto(f"{site}/s/{ENSEMBLE}/features.html")
    page.locator("#bucket-unstable").click()
    expect(page).to_have_url(re.compile(r"#bucket=unstable$"))
    total = page.locator("#total")
    for query in ("bucket=unstable", "bucket=unstable&seed=2",
                  "trigger=other", "score_min=0.7", "stability_min=0.5&stability_max=0.9",
                  "density_min=0.001&density_max=0.05", "q=self", "q=any token", 'q=" self"', "q=%235", "bucket=dead"):  # fmt: skip
        page.evaluate("query => { location.hash = query }", query)
        page.wait_for_function(f"query => document.getElementById('results').dataset.state === {WRITTEN}", arg=query)
        twin = client.get(f"{address}/features.json?id={LISTED}&{query}").json()
        bucket = f"{twin['filter']['bucket']} " if twin["filter"]["bucket"] else ""
        expect(total, query).to_have_text(f"{twin['total']} {bucket}features")
        assert page.locator(".row-link b").all_inner_texts() == [f"#{row['feature']}" for row in twin["rows"]], query
        shown = {
            item.split("\n")[0]: int(item.split("\n")[-1])
            for item in page.locator("[data-facet=bucket] li").all_inner_texts()
        }
        assert shown == twin["buckets"], query
        triggers = dict(item.split("\n") for item in page.locator("[data-facet=trigger] li").all_inner_texts())
        assert {name: int(n) for name, n in triggers.items()} == {
            "no single trigger" if name == "other" else name: n
            for name, n in twin["triggers"].items() if n or name == twin["filter"]["trigger"]
        }  # fmt: skip
    page.evaluate("location.hash = ''")
    page.locator("input[name=q]").fill("return")
    expect(page).to_have_url(re.compile("#q=return$"))
    expect(page.locator("mark").first).to_be_visible()


def test_a_permalink_opens_and_one_for_other_data_says_so(
    page: Page, site: str, client: TestClient, address: str
) -> None:
    twin = client.get(f"{address}/1/5.json").json()
    open_feature(page, site, f"1/5?v={twin['digest']}")
    expect(page.locator("#other-data")).to_be_hidden()
    assert page.locator("#copy-link").get_attribute("data-copy") == f"#1/5?v={twin['digest']}"
    open_feature(page, site, "1/5?v=0123456789abcdef")
    there = client.get(f"{address}/1/5?v=0123456789abcdef").text
    assert said(page.content(), "#other-data") == said(there, ".notice[role=alert]")
    page.goto(f"{site}/weights.html#{twin['sae_digest']}/5")
    expect(page).to_have_url(f"{site}/s/{ENSEMBLE}/feature.html#1/5")
    for place, says in (
        ("1/96", "expected 0 to 95"),
        ("77/5", "expected one of 0, 1, 2, 3"),
        ("1/90", "not in this copy"),
        ("x", "feature.html#"),
    ):
        page.goto("about:blank")
        page.goto(f"{site}/s/{ENSEMBLE}/feature.html#{place}")
        expect(page.locator("#site-failed")).to_contain_text(says)
        expect(page.locator("#site-feature")).to_be_hidden()


def test_keys_lead_from_the_overview_through_a_filter_and_back(
    page: Page, site: str, client: TestClient, address: str
) -> None:
    page.goto(f"{site}/index.html")
    page.locator(f"a[href^='s/{ENSEMBLE}/']").first.click()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    page.locator(".bucket-count.middle").click()
    expect(page.locator("[data-list] tbody tr").first).to_be_visible()
    rows = client.get(f"{address}/features/page.json?id={LISTED}&bucket=middle").json()["rows"]
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("#up")).to_have_text(f"2 of {len(rows)} middle")
    page.keyboard.press("j")
    expect(page.locator("h1")).to_contain_text(f"#{rows[2]['feature']}")
    expect(page.locator("#up")).to_have_text(f"3 of {len(rows)} middle")
    page.keyboard.press("u")
    expect(page.locator("tr.selected b")).to_have_text(f"#{rows[2]['feature']}")


def test_every_page_opens_and_fits_a_phone(browser: Browser, site: str, site_folder: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    page = context.new_page()
    complaints = complaints_of(page)
    for file in sorted(site_folder.rglob("*.html")):
        name = file.relative_to(site_folder).as_posix()
        page.goto(f"{site}/{name}{'#0/3' if file.name == 'feature.html' else ''}")
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, name
        assert page.locator("h1").count() == 1, name
    context.close()
    # Software rendering is slow and says so.
    assert [text for text in complaints if "GPU stall" not in text] == []


def test_duckdb_loads_the_lines_of_a_page_alone(browser: Browser, with_duckdb: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    page.goto(f"{with_duckdb}/s/{ENSEMBLE}/features.html#seed=1&sort=feature")
    expect(page.locator("[data-list] tbody tr")).to_have_count(24)
    expect(page.locator("#whole-table")).to_be_hidden()
    assert set(FILES) <= set(asked)
    assert {name for name in asked if name.startswith("rows-")} == {"rows-0.js", "rows-1.js"}  # lines 24 to 47 of 96
    page.close()


def test_without_duckdb_the_whole_table_is_loaded_and_says_so(
    browser: Browser, with_duckdb: str, duckdb_folder: Path
) -> None:
    page = browser.new_page()
    page.route("**/duckdb-eh.wasm", lambda route: route.abort())
    page.goto(f"{with_duckdb}/s/{ENSEMBLE}/features.html")
    expect(page.locator("#total")).to_have_text("96 features")
    expect(page.locator("#whole-table")).to_be_visible()
    page.goto(f"{duckdb_folder.as_uri()}/s/{ENSEMBLE}/features.html")
    expect(page.locator("#total")).to_have_text("96 features")
    expect(page.locator("#whole-table")).to_be_hidden()
    page.close()
