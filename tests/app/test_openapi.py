"""The OpenAPI description against the server: schemathesis asks every address and holds each answer against it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.store import catalogue
from support.paths import ROOT
from support.serving import serving
from support.studies import ENSEMBLE, STUDY

TOKEN = "a-long-secret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# What schemathesis checks; left out: that every value of the right type is taken, and none of another. Code checks values further
# than their types say (a list of seeds, a feature's index), and an empty value, as forms send it, counts as absent.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip
NAMES = {"study": STUDY, "ensemble": ENSEMBLE, "seed": "0", "feature": "5", "page": "commands", "sae_digest": "0" * 16}


@pytest.fixture(scope="module")
def guarded(study_root: Path) -> Iterator[TestClient]:
    """The small study behind a token, which is sent."""
    with TestClient(
        create_app(Settings(study_root, token=TOKEN)), base_url="http://127.0.0.1", headers=BEARER
    ) as client:
        yield client


@pytest.fixture(scope="module")
def described(guarded: TestClient) -> dict:
    return guarded.get("/openapi.json").json()


def filled(path: str) -> str:
    """An address of the small study; a job that there is not."""
    return re.sub(r"\{(\w+)\}", lambda part: NAMES.get(part[1], "0" * 16), path)


def test_every_operation_names_its_refusals_with_their_content_types(described):
    for path, verbs in described["paths"].items():
        for verb, operation in verbs.items():
            answers = operation["responses"]
            assert "403" in answers, path
            assert ("401" in answers) == (path != "/healthz"), path
            assert ("404" in answers) >= ("{" in path), path
            for status, answer in answers.items():
                has_body = status not in ("303", "304", "307")
                assert bool(answer.get("content")) == has_body, (verb, path, status)
                if status >= "404" and path.endswith(".json"):
                    assert list(answer["content"]) == ["application/json"], (path, status)


def test_every_reference_of_the_description_leads_somewhere(described):
    shapes = described["components"]["schemas"]
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert names
    assert names == set(shapes)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "DELETE"])
def test_an_address_names_the_methods_that_it_takes_to_any_other(guarded, described, method):
    for path, verbs in described["paths"].items():
        answer = guarded.request(method, filled(path), headers={"Origin": "http://127.0.0.1"})
        assert answer.status_code == 405, path
        assert {name.strip() for name in answer.headers["allow"].split(",")} >= {verb.upper() for verb in verbs}, path


def test_trace_repeats_nothing_and_needs_no_origin(guarded):
    answer = guarded.request("TRACE", "/", headers={"X-Secret": "not to be sent back"})
    assert answer.status_code == 405
    assert "not to be sent back" not in answer.text


def wait_for_engine(address: str) -> None:
    """Until the live engine answers, so that what it says is seen, and not only that it starts."""
    asked = Request(f"{address}/s/{STUDY}/{ENSEMBLE}/0/5/neighbours", headers=BEARER)
    deadline = time.monotonic() + 120
    while urlopen(asked).status == 202:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def fuzz(root: Path, folder: Path, *options: str) -> str:
    """Serve a copy of the study and let schemathesis ask; returns what it found, and fails where that is anything."""
    shutil.copytree(root, folder / "root")
    settings = folder / "schemathesis.toml"
    with serving("--root", folder / "root", "--port", "0", "--token", TOKEN, "--workers", "1") as (server, _, printed):
        address = printed.partition("?")[0].rstrip("/")
        settings.write_text(f"""
            hooks = {json.dumps(str(ROOT / "tests" / "support" / "fuzzed_addresses.py"))}
            headers = {{ Origin = "{address}", Authorization = "Bearer {TOKEN}" }}
            [checks.not_a_server_error]
            expected-statuses = ["2xx", "3xx", "4xx", "503"]  # busy, or the engine has to start
        """)
        wait_for_engine(address)
        plan = catalogue.read(root / STUDY)
        known = {"FUZZED_DIGEST": plan.ensembles[0].members[0].digest}
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", settings, "--no-color", "run"]
        command += [f"{address}/openapi.json", "--url", address, "--checks", ",".join(CHECKS), "--warnings", "off"]
        command += ["--continue-on-failure", "--generation-database", "none", *options]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | known | {"PYTHONPATH": str(ROOT / "tests"), "COLUMNS": "200"},
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert server.poll() is None
    found = "\n".join(line[:400] for line in (done.stdout + done.stderr).splitlines())
    assert done.returncode == 0, found
    return found


@pytest.mark.slow
def test_answers_are_as_described(study_root, tmp_path):
    found = fuzz(study_root, tmp_path, "--phases", "fuzzing", "-n", "1", "--seed", "1", "--no-shrink")
    selected, tested = (re.search(rf"{word}: (\d+)", found)[1] for word in ("Selected", "Tested"))
    assert int(tested) == int(selected.partition("/")[0]) >= 115


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_answers_are_as_described_at_length(study_root, tmp_path):
    """Every boundary of every parameter first, then whatever comes, for half an hour."""
    fuzz(study_root, tmp_path, "--phases", "coverage,fuzzing", "-n", "100", "--max-time", "1800")
