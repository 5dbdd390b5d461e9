"""`seedscope explain` as a user meets it, against a real server with everything that goes wrong with servers; and as a job."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

from seedscope.app.jobs.queue import Jobs
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.contract.environment import KEY, MODEL, OPENAI_KEY, URL
from seedscope.engine.contract.published import published
from support.chat_server import ChatServer
from support.commands import run
from support.paths import ROOT
from support.reading import text_of

CWD = ROOT
COMMAND = [sys.executable, "-m", "seedscope.app.cli", "explain", "small"]
SECRET = "sk-a-secret-0123456789"


@pytest.fixture
def root(study_root: Path, tmp_path: Path) -> Path:
    """The small study with everything that it was made from, for a test to change."""
    return Path(shutil.copytree(study_root, tmp_path / "root"))


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in (KEY, OPENAI_KEY, URL, MODEL):
        monkeypatch.delenv(name, raising=False)


def explain(root: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return run("explain", "small", "--root", root, *arguments, **environment)


def ask(root: Path, chat: ChatServer, *arguments: object, limit: int = 4) -> subprocess.CompletedProcess:
    return explain(
        root, "--explainer", "openai", "--limit", limit, "--retries", 0, *arguments,
        **{URL: chat.url, MODEL: "rule", KEY: SECRET},
    )  # fmt: skip


def explained(root: Path) -> dict[str, int]:
    """{explainer: explanations with a text} in the published store."""
    config = {"enable_external_access": "false", "lock_configuration": "true"}
    store = root / "small" / published(root / "small")[0]
    with duckdb.connect(str(store), read_only=True, config=config) as connection:
        return dict(connection.sql("SELECT explainer, count(text) FROM Explanation GROUP BY explainer").fetchall())


def test_a_language_model_is_asked_and_what_it_says_is_published(root, chat):
    done = ask(root, chat, "--prompt-price", 1000, "--completion-price", 2000)
    assert done.returncode == 0, done.stderr
    n = len(chat.requests())
    assert re.search(
        rf"4 features to explain by rule at {chat.url}: {n} requests to ask \(0 answered before\)", done.stderr
    )
    assert "at the prices given" in done.stderr
    assert "4 of 4 features explained and scored" in done.stdout
    assert "computed: match, activity, ablate, explain, loss" in done.stdout
    assert explained(root)["openai:rule"] == 4
    assert {line["key"] for line in chat.requests()} == {SECRET}
    assert SECRET not in done.stdout + done.stderr
    again = ask(root, chat)
    assert again.returncode == 0
    assert f"0 requests to ask ({n} answered before)" in again.stderr
    assert len(chat.requests()) == n
    for path in (path for path in root.rglob("*") if path.is_file()):
        assert not [form for form in ("utf-8", "utf-32-le") if SECRET.encode(form) in path.read_bytes()], path


@pytest.mark.parametrize(
    ("fault", "of", "told"),
    [("429-late", None, "HTTP 429: come back tomorrow"), ("malformed", "detection", "unreadable 3 times"),
     ("429", "fuzzing", "HTTP 429: too fast")],
)  # fmt: skip
def test_features_that_fail_are_counted_and_the_same_command_retries_them(root, chat, fault, of, told):
    chat.control(fault=fault, when="always", of=of)
    done = ask(root, chat)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"4 of 4 features failed: .*Run the same command again to retry these", done.stderr)
    assert told in done.stderr
    n = len(chat.requests())
    chat.control(fault=None)
    mended = ask(root, chat)
    assert mended.returncode == 0, mended.stderr
    assert "failed" not in mended.stdout
    assert len(chat.requests()) > n
    assert explained(root)["openai:rule"] == 4


def test_a_server_that_dies_half_way_leaves_what_it_said(root, chat):
    chat.control(die_after=25)
    done = ask(root, chat, "--concurrency", 1, limit=8)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    n_whole, n_failed = (
        int(re.search(rf"(\d+) of 8 features {word}", done.stdout)[1]) for word in ("explained", "failed")
    )
    assert n_whole + n_failed == 8
    assert n_failed > 0
    assert "no connection" in done.stdout
    assert explained(root)["openai:rule"] >= n_whole
    chat.start()
    assert "8 of 8 features explained" in ask(root, chat, limit=8).stdout


@pytest.mark.slow
def test_ctrl_c_keeps_and_publishes_what_was_answered(root, chat):
    chat.control(delay_s=0.1)
    environment = os.environ | {URL: chat.url, MODEL: "rule"}
    command = [*COMMAND, "--root", str(root), "--explainer", "openai", "--limit", "40", "--concurrency", "4"]
    with subprocess.Popen(
        command, cwd=CWD, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        end = time.monotonic() + 60
        while len(chat.requests()) < 30:
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    assert "publishing what was answered" in errors
    assert "the same command goes on behind it" in errors
    kept = explained(root)["openai:rule"]
    assert 0 < kept < 40
    n = len(chat.requests())
    chat.control(delay_s=0)
    done = ask(root, chat, limit=40)
    assert done.returncode == 0, done.stderr
    assert explained(root)["openai:rule"] > kept
    assert f"({n} answered before)" in done.stderr  # everything that was paid for is there
    assert len({line["digest"] for line in chat.requests()}) == len(chat.requests())


def test_on_a_terminal_it_asks_before_it_asks(root, chat):
    def at_terminal(answer: bytes) -> tuple[int, str]:
        environment = os.environ | {URL: chat.url, MODEL: "rule"}
        master, slave = pty.openpty()
        command = [*COMMAND, "--root", str(root), "--explainer", "openai", "--limit", "2", "--quiet"]
        with subprocess.Popen(command, cwd=CWD, env=environment, stdin=slave, stdout=slave, stderr=slave) as run:
            os.close(slave)
            said, end = b"", time.monotonic() + 60
            while time.monotonic() < end:
                if not select.select([master], [], [], 0.5)[0]:
                    continue
                try:
                    said += os.read(master, 4096)
                except OSError:  # the other side has gone
                    break
                if b"Ask?" in said and answer:
                    os.write(master, answer)
                    answer = b""
        os.close(master)
        return run.wait(), said.decode()

    code, said = at_terminal(b"n\n")
    assert code == 1
    assert "requests to ask" in said
    assert "nothing was asked" in said
    assert chat.requests() == []
    code, said = at_terminal(b"y\n")
    assert code == 0, said
    assert chat.requests()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--explainer", "openai"], 1, "found no server to ask: name it with --base-url, or in the environment as"),
        (["--explainer", "openai", "--base-url", "http://x/v1"], 1, "found no model to ask: name it with --model"),
        (
            ["--explainer", "openai", "--base-url", "http://me:hunter2@x/v1", "--model", "m"],
            1,
            "expected none: a key goes into",
        ),
        (["--explainer", "gpt"], 2, "'gpt'"),
        (["--limit", "3"], 2, "--limit was given without --explainer openai"),
        (["--model", "m"], 2, "--model was given without"),
        (["--explainer", "openai", "--prompt-price", "1"], 2, "expected both --prompt-price and --completion-price"),
        (["--explainer", "openai", "--limit", "0"], 2, "greater than or equal to 1"),
        (["--seed", "1"], 2, "--seed was given without --from PATH"),
        (["--from", "x"], 2, "--from was given without --ensemble"),
        (["--from", "x", "--ensemble", "e", "--explainer", "openai"], 2, "give one"),
        (["--from", "x", "--ensemble", "topk-96", "--source", "a"], 2, "expected NAME=SEED"),
        (["--from", "nowhere", "--ensemble", "topk-96"], 1, "found no nowhere, expected Neuronpedia's"),
    ],
)
def test_wrong_arguments_are_named(root, arguments, code, told):
    done = explain(root, *arguments)
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert done.returncode == code, said
    assert told in said
    assert "Traceback" not in said
    assert "hunter2" not in said


def test_token_rules_need_no_server_and_a_study_that_is_not_there_is_named(root, tmp_path):
    (tmp_path / "empty").mkdir()
    done = explain(tmp_path / "empty")
    assert done.returncode == 1
    assert "found no study small under" in done.stderr


def test_explanations_of_others_are_taken_from_a_file(root, tmp_path):
    lines = [{"layer": "6-res-jb", "index": "7", "description": text, "explanationModelName": "m", "typeName": "t"}
             for text in ("cats", "dogs")]  # fmt: skip
    (tmp_path / "batch-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = explain(root, "--from", tmp_path / "batch-0.jsonl", "--ensemble", "topk-96", "--source", "6-res-jb=2")
    assert done.returncode == 0, done.stderr
    assert "1 explanations of 1 features" in done.stdout
    assert "left out: feature 7 of seed 2: another one by m (t), the first is kept" in done.stdout
    assert explained(root)["m (t)"] == 1


# -- as a job ------------------------------------------------------------------------------------------------------


def test_a_job_asks_the_server_that_the_environment_names(root, chat, monkeypatch):
    for name, value in ((URL, chat.url), (MODEL, "rule"), (KEY, SECRET)):
        monkeypatch.setenv(name, value)
    jobs = Jobs(root)
    try:
        job = jobs.start("explain", "small", {"explainer": "openai", "limit": "3"})
        assert job.command == "seedscope explain small --explainer openai --limit 3 --yes"
        end = time.monotonic() + 120
        while (job := jobs.get(job.id)).is_active:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert (job.state, job.republished) == ("done", True), jobs.log(job.id)
    finally:
        jobs.close()
    assert explained(root)["openai:rule"] == 3
    assert {line["key"] for line in chat.requests()} == {SECRET}
    assert not [path for path in (root / "jobs").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("fields", "environment", "told"),
    [
        ({"explainer": "openai", "limit": "3"}, {}, f"{URL} and {MODEL} in the environment of"),
        ({"explainer": "openai", "limit": "3"}, {URL: "http://x/v1"}, f"expected {MODEL} in the environment of"),
        ({"explainer": "openai"}, {URL: "http://x/v1", MODEL: "m"}, "1 to 100000: every feature costs requests"),
        ({"explainer": "openai", "limit": "0"}, {URL: "http://x/v1", MODEL: "m"}, "expected a whole number from 1"),
        ({"limit": "3"}, {}, "token rules explain every feature"),
        ({"explainer": "gpt"}, {}, "expected one of tokens, openai"),
        ({"base_url": "http://evil/v1"}, {}, "expected one of explainer, limit"),
        ({"model": "m"}, {}, "expected one of explainer, limit"),
        ({"key": "k"}, {}, "expected one of explainer, limit"),
        ({"from": "/etc/passwd"}, {}, "expected one of explainer, limit"),
    ],
)
def test_a_request_names_no_server_and_one_that_is_not_configured_is_refused(
    own_root, monkeypatch, fields, environment, told
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    base = "http://127.0.0.1"
    with TestClient(create_app(Settings(own_root)), base_url=base, headers={"origin": base}) as client:
        answer = client.post("/jobs", data={"kind": "explain", "study": "small"} | fields)
        assert answer.status_code == 422
        assert told in text_of(answer.text)
        assert client.get("/jobs.json").json() == {"jobs": [], "training": {}}
    assert not (own_root / "jobs").exists() or not list((own_root / "jobs").glob("*/"))
