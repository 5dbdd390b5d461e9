"""What `/metrics` says: requests by route, however many addresses there are, and refusals too."""

import shutil
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from seedscope.app.main import LONGEST_FORM, create_app
from seedscope.app.settings import Settings
from support.studies import STUDY

NAME = "seedscope_request_seconds"


@pytest.fixture
def browser(study_root) -> TestClient:
    return TestClient(create_app(Settings(study_root)), base_url="http://127.0.0.1")


def scraped(browser: TestClient) -> dict[tuple[str, ...], float]:
    """{(sample, its labels' values): value}."""
    answer = browser.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_requests_are_counted_by_route_and_not_by_address(browser, address):
    for feature in range(3):
        assert browser.get(f"{address}/0/{feature}").status_code == 200
    assert browser.get(f"{address}/0/9999").status_code == 404
    found = scraped(browser)
    route = "/s/{study}/{ensemble}/{seed}/{feature}"
    counts = {
        labels: value
        for (name, *labels), value in found.items()
        if name == f"{NAME}_count"
        for labels in [tuple(labels)]
    }
    assert counts["GET", route, "200"] == 3
    assert counts["GET", route, "404"] == 1
    assert sum(counts.values()) == 4, "the scrape itself ends after it is answered"
    assert 0 < found[f"{NAME}_sum", "GET", route, "200"] < 60
    assert scraped(browser)[f"{NAME}_count", "GET", "/metrics", "200"] == 1


def test_what_no_route_takes_and_what_the_guard_refuses_is_counted_without_its_address(browser):
    browser.get(f"/nothing/{STUDY}/here/at/all/of/it")
    browser.get("/", headers={"Host": "evil.example"})
    found = scraped(browser)
    assert found[f"{NAME}_count", "GET", "(no route)", "404"] == 1
    assert found[f"{NAME}_count", "GET", "(no route)", "403"] == 1


def test_a_request_that_is_too_long_is_no_fault_of_the_server(browser):
    whole = {"content": b"x" * (LONGEST_FORM + 1)}
    parts = {"content": iter([b"x" * LONGEST_FORM, b"x"])}  # no length is told before
    for body in (whole, parts):
        headers = {"Content-Type": "application/json", "Origin": str(browser.base_url)}
        assert browser.post("/stability/0123456789abcdef", **body, headers=headers).status_code == 413
    found = scraped(browser)
    assert {labels[3]: value for labels, value in found.items() if labels[:2] == (f"{NAME}_count", "POST")} == {
        "413": 2
    }


def test_studies_jobs_and_the_process_are_told(browser):
    found = scraped(browser)
    assert found["seedscope_studies",] == 1
    assert found["seedscope_jobs_active",] == 0
    assert found["process_resident_memory_bytes",] > 1e7


def test_methods_that_no_route_knows_are_one_label(browser):
    for i in range(50):
        browser.request(f"M{i}", "/", headers={"Origin": "http://127.0.0.1"})
        browser.request("GET", f"/{i}/nowhere")
    found = scraped(browser)
    labels = {
        labels[:2] for name, *labels in map(tuple, found) for labels in [tuple(labels)] if name == f"{NAME}_count"
    }
    assert labels <= {("other", "(no route)"), ("GET", "(no route)"), ("other", "/")}


def test_lines_the_event_loop_and_the_live_engine_are_told(study_root, address, tmp_path):
    root = shutil.copytree(study_root, tmp_path / "root")  # whose engine does not run yet
    with TestClient(create_app(Settings(root, device="cpu")), base_url="http://127.0.0.1") as browser:
        before = scraped(browser)
        assert before["seedscope_live_up",] == 0  # a scraper starts no engine
        for name in ("pages_line", "pages_running", "live_line", "live_under_way"):
            assert before[f"seedscope_{name}",] == 0
        until = time.monotonic() + 150
        while browser.get(f"{address}/0/1/neighbours.json").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        found = scraped(browser)
    assert found["seedscope_live_up",] == 1
    assert found["seedscope_live_starts_total",] >= 1
    assert found["seedscope_live_queue",] == 0
    assert found["seedscope_live_device_bytes",] > 1000
    assert found["seedscope_live_resident_memory_bytes",] > 1e8
    assert found["seedscope_live_seconds_count", "neighbours", "answered"] == 1
    assert found["seedscope_live_seconds_count", "neighbours", "absent"] >= 1
    assert found["seedscope_event_loop_lag_seconds_count",] > 1
