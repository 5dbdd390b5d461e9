"""Addresses that nobody's page links to: refused in words, whatever is asked for and by whichever method."""

import csv
import io
import sys
from urllib.parse import quote

import pyarrow as pa
import pytest
from fastapi import Request
from starlette.testclient import TestClient

from seedscope.app.downloads import ENCODERS
from seedscope.app.live.client import LiveEngine
from seedscope.app.live.process import EngineProcess
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.app.store.feature_query import SORTS

DIGITS = ("²", "٣", "1²", "３", "𝟛", "1e3", "+1", "0x1", "1_0")
HUGE = ("1e300", "-1e300", "1e39", "1e999", "-1e999", "nan", "٣", "1e", "--1")


@pytest.fixture
def strict(study_root):
    """A browser to which a fault is an answer, not an exception."""
    with TestClient(
        create_app(Settings(study_root)), base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        yield client


@pytest.mark.parametrize("sort", [sort for sort in SORTS if sort != "predicted"])  # of one SAE: see test_predict
@pytest.mark.parametrize("name", ["after", "before"])
def test_places_in_a_list_that_no_value_has_are_refused(strict, address, sort, name):
    for value in HUGE:
        answer = strict.get(f"{address}/features.json", params={"sort": sort, name: f"{value}_0_0"})
        assert answer.status_code == 422, (value, answer.text)
        assert answer.json()["problems"][0]["name"] == name
    for value in ("inf", "-inf", "0.5", "3.4028234663852886e38", "1e-300"):
        assert strict.get(f"{address}/features.json", params={"sort": sort, name: f"{value}_0_0"}).status_code == 200


@pytest.mark.parametrize("digits", DIGITS)
def test_digits_of_other_scripts_are_no_numbers(strict, address, digits):
    text = quote(digits)
    for path in ("0/1/neighbours.json?members=", "0/1/neighbours?members=0,", "subspaces/project.json?members=",
                 "subspaces/project.csv?members=", "0/1/project.json?members=", "features.json?id=", "features.json?id=0/",
                 "features.json?at=0/", "features.json?after=0.5_0_"):  # fmt: skip
        answer = strict.get(f"{address}/{path}{text}")
        assert answer.status_code == 422, (path, answer.text)
    for path in (f"{text}/1.json", f"0/{text}.json"):
        assert strict.get(f"{address}/{path}").status_code == 404


def test_head_answers_as_get(client, address):
    for path in ("/", "/healthz", "/metrics", "/static/app.css", "/docs", "/jobs", "/manual", address, f"{address}/features.csv",
                 f"{address}/features.parquet", f"{address}/0/1.json", f"{address}/features.json?theta=9", "/nowhere"):  # fmt: skip
        for packed in ("gzip", "identity"):
            headers = {"Accept-Encoding": packed}
            get, head = client.get(path, headers=headers), client.head(path, headers=headers)
            assert head.content == b""
            assert head.status_code == get.status_code, path
            told = ("content-type", "etag", "content-security-policy", "cache-control", "content-encoding")
            assert [head.headers.get(name) for name in told] == [get.headers.get(name) for name in told], path
    assert client.head(address, headers={"If-None-Match": client.get(address).headers["etag"]}).status_code == 304
    assert client.post("/healthz", headers={"Origin": "http://127.0.0.1"}).status_code == 405


class DownProcess(EngineProcess):
    """An engine that is still loading."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.stdin.read()"]


def test_data_is_never_answered_with_a_page(strict, address, tmp_path):
    strict.app.state.live = LiveEngine(DownProcess(tmp_path))
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    try:
        for path in ("subspaces/project.csv?bucket=unstable", "subspaces/project.parquet?bucket=unstable",
                     "subspaces/project/curves.csv?bucket=unstable", "0/1/neighbours.json"):  # fmt: skip
            answer = strict.get(f"{address}/{path}", headers=browser)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["content-type"] == "application/json"
            assert "starting" in answer.json()["says"]
        for path in ("features.csv?theta=9", "features.parquet?nope=1", "subspaces/project.csv?members=x"):
            answer = strict.get(f"{address}/{path}", headers=browser)
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/json"), path
        assert strict.get("/s/nope/nope/features.csv", headers=browser).headers["content-type"] == "application/json"
    finally:
        strict.app.state.live.close()


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")']


def test_texts_that_a_spreadsheet_would_run_are_harmless_in_csv_alone():
    texts = [*FORMULAS, "plain", "a=1", "", None, "'quoted"]
    columns = {"says": pa.array(texts), "n": pa.array([-1.5] * len(texts)), "tokens": pa.array([["=1"]] * len(texts))}
    table = pa.table(columns)
    content = b"".join(ENCODERS["csv"](table.schema, iter(table.to_batches()), {}))
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert [row["says"] for row in rows] == [*("'" + text for text in FORMULAS), "plain", "a=1", "", "", "'quoted"]
    assert {row["n"] for row in rows} == {"-1.5"}  # numbers are numbers
    assert {row["tokens"] for row in rows} == {'["=1"]'}
    parquet = b"".join(ENCODERS["parquet"](table.schema, iter(table.to_batches()), {}))
    assert pa.parquet.read_table(pa.BufferReader(parquet))["says"].to_pylist() == texts


def test_a_fault_of_a_data_address_is_json(strict):
    def broken(request: Request) -> None:
        raise RuntimeError

    strict.app.get("/broken.csv")(broken)
    answer = strict.get("/broken.csv", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/json")
