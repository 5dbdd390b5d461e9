"""A page of another site reads what is known of an SAE, in a real browser: CORS is what browsers make of headers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from seedscope.app.figures.badge import LIGHT_DARK
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from support.server_here import served_here

pytestmark = pytest.mark.browser
FETCH = """async ([url, body]) => {
    try {
        const sent = body ? {method: "POST", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}} : {};
        const answer = await fetch(url, sent);
        return [answer.status, answer.headers.get("etag"), answer.ok ? await answer.json() : null];
    } catch (error) {
        return String(error);
    }
}"""


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><body style='margin:0'>")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The address of another site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_address[1]}"
        site.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def open_to_it(elsewhere: str, study_root: Path) -> Iterator[str]:
    """The address of a server that lets the other site read."""
    with served_here(create_app(Settings(study_root, allowed_origins=(elsewhere,)))) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def digest(stored) -> str:
    return stored("SELECT sae_digest FROM Member WHERE seed = 0")[0]["sae_digest"]


@pytest.fixture
def reader(browser: Browser, elsewhere: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(elsewhere)
    yield page
    context.close()


def test_a_page_of_a_named_site_reads_and_asks_and_no_other_does(reader, open_to_it, server, digest, address):
    path = f"/stability/{digest}"
    status, etag, answer = reader.evaluate(FETCH, [f"{open_to_it}{path}/3", None])
    assert status == 200
    assert etag.startswith('"')
    assert answer["holders"][0]["feature"] == 3
    status, _, batch = reader.evaluate(FETCH, [f"{open_to_it}{path}", {"features": [4, 3]}])
    assert status == 200
    assert [each["feature"] for each in batch["holders"][0]["features"]] == [4, 3]
    assert batch["holders"][0]["features"][1]["stability"] == answer["holders"][0]["stability"]
    status, _, twin = reader.evaluate(FETCH, [f"{open_to_it}{address}/0/3.json", None])
    assert (status, twin["stability"]) == (200, answer["holders"][0]["stability"])
    for refused in ((f"{open_to_it}{address}.json", None), (f"{open_to_it}/jobs", {"kind": "demo"}),
                    (f"{server}{path}/3", None), (f"{server}{path}", {"features": [3]})):  # fmt: skip
        assert "Failed to fetch" in reader.evaluate(FETCH, list(refused)), refused


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_a_badge_is_painted_in_its_buckets_colour_here_and_elsewhere(
    browser, elsewhere, open_to_it, digest, stored, scheme
):
    """As a picture in another site's page, and opened by itself under this server's policy."""
    rows = stored("SELECT feature, cosines FROM Feature WHERE seed = 0 AND NOT dead ORDER BY feature")
    feature = next(row["feature"] for row in rows if all(cosine < 0.69 for cosine in row["cosines"]))
    ground = LIGHT_DARK["unstable"][scheme == "dark"][0]
    context = browser.new_context(color_scheme=scheme, viewport={"width": 400, "height": 60})
    page = context.new_page()
    page.goto(elsewhere)
    page.evaluate(
        f"""async (url) => {{
            document.documentElement.style.colorScheme = "{scheme}";
            const image = document.createElement("img");
            image.src = url;
            document.body.append(image);
            await image.decode();
        }}""",
        f"{open_to_it}/stability/{digest}/{feature}.svg",
    )
    width = page.evaluate("document.querySelector('img').naturalWidth")
    shown = [page.screenshot()]
    page.goto(f"{open_to_it}/stability/{digest}/{feature}.svg")
    shown.append(page.screenshot())
    context.close()
    for picture in shown:
        red, green, blue = Image.open(BytesIO(picture)).convert("RGB").getpixel((width - 4, 10))
        assert f"#{red:02x}{green:02x}{blue:02x}" == ground
