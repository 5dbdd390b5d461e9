"""What the server writes down: a line per request where that is asked for, each kind of fault once a second, no secrets."""

import json
import logging
import re

import pytest
from starlette.testclient import TestClient

from seedscope.app.logs import SPEAKERS, OncePerSecond, configure_logs
from seedscope.app.main import create_app
from seedscope.app.metrics import UNMATCHED
from seedscope.app.settings import Settings

TOKEN = "a-secret-of-twenty-four"


@pytest.fixture
def configure():
    """As `configure_logs`, undone at the end."""
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate, logging.getLogger(name).level)
              for name in (*SPEAKERS, "seedscope.requests")}  # fmt: skip
    yield configure_logs
    for name, (handlers, propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def browser(study_root):
    app = create_app(Settings(study_root))
    app.get("/broken")(lambda: 1 / 0)
    app.get("/broken.json")(lambda: 1 / 0)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def test_a_request_is_a_json_object_with_its_id_route_status_and_time(browser, configure, capsys, address):
    configure("json")
    answers = [browser.get(path) for path in (address, "/s/nope", "/static/app.css", "/nowhere/at/all")]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["request"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/s/{study}/{ensemble}", 200), ("/s/{study}", 404), ("/static/{name:path}", 200), (UNMATCHED, 404),
    ]  # fmt: skip
    for line in lines:
        assert 0 < line["seconds"] < 60
        assert (line["method"], line["level"]) == ("GET", "info")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


@pytest.mark.parametrize("format", ["text", "json", "brief"])
def test_texts_and_tokens_are_not_written_down(study_root, configure, capfd, address, format):
    configure(format)
    with TestClient(
        create_app(Settings(study_root, host="0.0.0.0", token=TOKEN)), base_url="http://127.0.0.1"
    ) as client:
        client.get(f"/?token={TOKEN}", follow_redirects=True)
        client.get("/", headers={"Authorization": f"Bearer {TOKEN}"})
        client.get(f"{address}/features?q=private")
        client.get(f"{address}/features.json?unknown=private")
        client.get(f"/?token={TOKEN}x")
    said = capfd.readouterr().err
    assert TOKEN not in said
    assert "private" not in said
    assert bool(said) == (format != "brief")


def test_a_fault_is_written_down_once_with_its_id_and_answered_with_a_page_that_shows_it(browser, configure, capsys):
    configure("brief")
    page = browser.get("/broken")
    assert page.status_code == 500
    id = page.headers["x-request-id"]
    assert id in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    said = capsys.readouterr().err
    assert said.count("ZeroDivisionError: division by zero") == 1
    assert id in said
    twin = browser.get("/broken.json")
    assert (twin.status_code, twin.json()["status"], twin.json()["id"]) == (500, 500, twin.headers["x-request-id"])
    assert "ZeroDivisionError" not in twin.text + page.text


def test_ids_differ_and_stand_on_every_refusal(browser, address):
    refusals = [browser.get(path) for path in ("/s/nope", f"{address}/features?theta=9", "/nowhere", "/docs?x=1") * 2]
    assert len({answer.headers["x-request-id"] for answer in refusals}) == 8
    for answer in refusals:
        if answer.status_code != 200:
            assert answer.headers["x-request-id"] in answer.text
    assert browser.get("/s/nope.json").json()["id"]


def test_a_kind_of_fault_is_written_once_a_second(caplog):
    now = [0.0]
    filter = OncePerSecond(lambda: now[0])

    def record(text: str, *arguments: object, level: int = logging.ERROR) -> logging.LogRecord:
        return logging.LogRecord("x", level, "", 0, text, arguments, None)

    assert [filter.filter(record("no descriptor")) for _ in range(100)].count(True) == 1
    assert filter.filter(record("another"))
    assert sum(filter.filter(record("of %s", i)) for i in range(100)) == 1
    assert all(filter.filter(record("a request", level=logging.INFO)) for _ in range(100))
    now[0] = 1.0
    again = record("no descriptor")
    assert filter.filter(again)
    assert again.dropped == 99
    for i in range(5000):
        filter.filter(record(f"{i:05}"))
    assert len(filter._seen) <= 1000


def test_a_flood_of_faults_grows_the_log_by_a_line_a_second(browser, configure, capsys):
    configure("brief")
    for _ in range(200):
        browser.get("/broken")
    said = capsys.readouterr().err
    assert said.count("Traceback") <= 30  # seconds that this took, not requests
    assert len(said) < 400_000
