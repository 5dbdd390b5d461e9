"""How tests read the dashboard: as text, as JSON, as figures; and how they publish a changed study."""

import json
import re
import shutil
import time
from copy import copy

import bs4
import duckdb
import httpx2
import plotly.graph_objects
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings

ADDRESSES = ("href", "src", "action", "data-copy")


def parsed(page: str) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(page, "html.parser")


def text_of(page: str | bs4.Tag) -> str:
    """What a reader sees, one space between words; entries of the glossary open on demand."""
    element = parsed(page) if isinstance(page, str) else copy(page)
    for closed in element.select(".entry[popover]"):
        closed.decompose()
    return " ".join(element.get_text(" ").replace("\u202f", " ").split())


def twin(path: str) -> str:
    """The `.json` address of a page address."""
    path, _, query = path.partition("?")
    return ("/index.json" if path == "/" else f"{path}.json") + (f"?{query}" if query else "")


def main_of(fragment: str) -> str:
    """A fragment without what moves along around it: crumbs, tabs and the lens of the search box."""
    return fragment.partition('<span id="crumbs-to"')[0].strip()


def links(page: str, selector: str = "[href]") -> list[str]:
    """The addresses of all elements that a CSS selector finds."""
    return [next(e[name] for name in ADDRESSES if e.has_attr(name)) for e in parsed(page).select(selector)]


def answered(client: TestClient, path: str, **options: object) -> httpx2.Response:
    """A page, asked for again while the live engine starts, as the page itself would."""
    until = time.monotonic() + 60
    while (answer := client.get(path, **options)).status_code in (202, 503) and time.monotonic() < until:
        time.sleep(float(answer.headers["retry-after"]) / 5)
    return answer


def figures_of(page: str) -> dict[str, dict]:
    """{figure id: its Plotly dictionary}."""
    figures = parsed(page).select("figure[id^=fig-]")
    return {f["id"].removeprefix("fig-"): json.loads(f.select_one("[data-figure]")["data-figure"]) for f in figures}


def cell_links(trace: dict) -> list[list[str]]:
    """The address of every cell of a heatmap, put together as figures.js does."""
    meta = trace["meta"]
    return [[meta["base"] + row + column for column in meta["columns"]] for row in meta["rows"]]


def assert_valid_plotly(figure: dict) -> None:
    roles = r'"@(stable|middle|unstable|dead|null|ink|soft|accent|member|band|track|heat0|heat1|seed[0-7])"'
    valid = json.loads(re.sub(roles, '"#000"', json.dumps(figure)))
    assert '"@' not in json.dumps(valid)
    assert plotly.graph_objects.Figure(valid).data


def browse(root) -> TestClient:
    return TestClient(create_app(Settings(root)), base_url="http://127.0.0.1")


def republish(root, *statements: str) -> None:
    """Publish a changed copy of the small study under a new name, as the engine does."""
    folder = root / "small"
    name, built_from = (folder / "CURRENT").read_text().splitlines()
    changed = folder / f"study-changed-{name}"
    shutil.copy(folder / name, changed)
    with duckdb.connect(str(changed)) as connection:
        for statement in statements:
            connection.execute(statement)
    (folder / "CURRENT.tmp").write_text(f"{changed.name}\n{built_from}\n")
    (folder / "CURRENT.tmp").replace(folder / "CURRENT")
