"""`seedscope engine` and `serve --engine-url`: web nodes and an engine as processes of their own, over the same studies."""

import itertools
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from seedscope.app.live.client import LiveEngine
from seedscope.app.live.process import EngineBrokenError
from seedscope.app.live.remote import RemoteEngine
from seedscope.engine.contract.engine_address import PATH, SPEAKS_HEADER, STORE_HEADER, engine_url, speaks
from seedscope.engine.contract.published import published
from seedscope.engine.contract.queries import LiveQuery
from support.commands import COMMAND, CWD, assert_one_line, run
from support.coroutines import run_apart
from support.serving import serving
from support.studies import ENSEMBLE, STUDY

ENGINE_TOKEN, NODE_TOKEN = "of-the-engine", "of-the-nodes"
NEAR = f"s/{STUDY}/{ENSEMBLE}/0/{{}}/neighbours.json?k=2"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def engine(root: Path, port: int, token: Path, *more: str) -> Iterator[str]:
    """A running engine's address."""
    command = [*COMMAND, "engine", "--root", root, "--port", port, "--token-file", token, "--device", "cpu", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        list(map(str, command)), cwd=CWD, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            while not (found := re.search(r"the engine is at (http://\S+)", line := process.stdout.readline())):
                assert line, process.wait()
            yield found[1]
        finally:
            process.terminate()
            assert process.wait(20) == 0


class Nodes:
    """Two web nodes behind one address: every request goes to the next."""

    def __init__(self, addresses: list[str]) -> None:
        self._next = itertools.cycle(addresses)
        self.client = httpx2.Client(trust_env=False, timeout=60, headers={"Authorization": f"Bearer {NODE_TOKEN}"})

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(next(self._next) + path, headers=headers)

    def both(self, path: str, **headers: str) -> list[httpx2.Response]:
        return [self.get(path, **headers) for _ in range(2)]

    def until(self, path: str, status: int, limit_s: float = 60) -> httpx2.Response:
        end = time.monotonic() + limit_s
        while (answer := self.get(path)).status_code != status:
            assert time.monotonic() < end, answer.text
            time.sleep(0.1)
        return answer


class Site(NamedTuple):
    root: Path
    port: int  # of the engine
    token: Path  # the file of the engine's
    nodes: Nodes


@pytest.fixture(scope="module")
def site(study_root, tmp_path_factory) -> Iterator[Site]:
    """Two nodes over a copy of the study that nobody may write to; the engine is each test's to start."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(study_root / STUDY, folder / "root" / STUDY)
    (folder / "engine-token").write_text(ENGINE_TOKEN)
    (folder / "node-token").write_text(NODE_TOKEN)
    port = free_port()
    given = ["--root", folder / "root", "--port", 0, "--workers", 1, "--token-file", folder / "node-token"]
    given += ["--engine-url", f"http://localhost:{port}", "--engine-token-file", folder / "engine-token"]
    with ExitStack() as stack:
        addresses = [f"http://127.0.0.1:{stack.enter_context(serving(*given))[2].split(':')[2]}" for _ in range(2)]
        nodes = Nodes([address if address.endswith("/") else f"{address}/" for address in addresses])
        stack.enter_context(nodes.client)
        yield Site(folder / "root", port, folder / "engine-token", nodes)


def test_nodes_ask_one_engine_that_may_go_and_come_back(site):
    away = site.nodes.get(NEAR.format(1))
    assert away.status_code == 503
    assert "is away" in away.text
    page = site.nodes.get(NEAR.format(1).replace(".json", ""))
    assert page.status_code == 202  # asks again by itself
    assert "is away" in page.text
    with engine(site.root, site.port, site.token):
        site.nodes.until(NEAR.format(1), 200)
        answers = site.nodes.both(NEAR.format(2))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["neighbours"] == answers[1].json()["neighbours"] != []
        figures = site.nodes.get("metrics").text
        assert "seedscope_live_up 1.0" in figures
        assert "seedscope_live_resident_memory_bytes" not in figures  # a process of another machine
    assert "is away" in site.nodes.until(NEAR.format(2), 503).text
    with engine(site.root, site.port, site.token):
        assert site.nodes.until(NEAR.format(2), 200).json()["neighbours"] == answers[0].json()["neighbours"]


def test_an_engine_with_another_token_or_other_stores_is_never_believed(site, tmp_path):
    stale = tmp_path / STUDY
    stale.mkdir()
    (stale / "study-0123.duckdb").touch()
    (stale / "CURRENT").write_text("study-0123.duckdb\nother\n")
    with engine(tmp_path, site.port, site.token) as address:
        refused = site.nodes.get(NEAR.format(3))
        while "is away" in refused.text:
            refused = site.nodes.get(NEAR.format(3))
        store = published(site.root / STUDY).name
        assert refused.status_code == 503
        assert f"has the store study-0123.duckdb, this server shows {store}" in refused.text
        check_the_door(address, store)
        with pytest.raises(
            EngineBrokenError, match="the token is not its own; give the engine's with --engine-token-file"
        ):
            run_apart(LiveEngine(RemoteEngine(site.root, engine_url(address), "another")).ask(LiveQuery("status")))


def check_the_door(address: str, store: str) -> None:
    """What the engine says to whoever asks it wrongly; of an engine with a token, for it is started once."""
    body = b'{"query": {"kind": "status"}, "time_limit_s": 1}\n'
    good = {"Authorization": f"Bearer {ENGINE_TOKEN}", SPEAKS_HEADER: speaks(), STORE_HEADER: store}

    def ask(path: str = PATH, content: bytes = body, **changes: str) -> httpx2.Response:
        headers = {name: value for name, value in (good | changes).items() if value}
        return httpx2.post(address + path, content=content, headers=headers, trust_env=False)

    answered = ask()
    assert answered.status_code == 200
    assert answered.content.startswith(b'{"gap": null, "status": {"pid"')
    for changes, status, words in (
        ({"Authorization": ""}, 401, "token"),
        ({"Authorization": "Bearer of-the-engin"}, 401, "token"),
        ({"Host": "evil.example"}, 403, "--allow-host"),
        ({SPEAKS_HEADER: "0.0.9 12345678"}, 409, "install the same version"),
        ({SPEAKS_HEADER: ""}, 409, "of nothing"),
        ({"path": "/"}, 404, "live engine"),
        ({"content": b"x" * (2**23 + 1)}, 413, "bytes"),
        ({"X-Long": "x" * 20_000}, 431, "head"),
    ):
        refused = ask(**changes)
        assert (refused.status_code, words in refused.text) == (status, True), (changes, refused.text)
    assert b"cannot be read" in ask(content=b"[").content
    parts = engine_url(address)
    with socket.create_connection((parts.host, parts.port)) as raw:
        raw.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_nodes_are_one_site_to_a_browser(site):
    page = f"s/{STUDY}/{ENSEMBLE}"
    first, second = site.nodes.both(page)
    assert first.headers["etag"] == second.headers["etag"]
    assert [each.status_code for each in site.nodes.both(page, **{"If-None-Match": first.headers["etag"]})] == [
        304,
        304,
    ]
    opened = httpx2.get(f"{first.url}?token={NODE_TOKEN}", trust_env=False)
    cookie = {"Cookie": opened.headers["set-cookie"].split(";")[0], "Authorization": ""}
    # The cookie that one node gave is good at both, and without it neither answers.
    assert [each.status_code for each in site.nodes.both(page, **cookie)] == [200, 200]
    assert [each.status_code for each in site.nodes.both(page, Authorization="")] == [401, 401]
    # A publication is seen by both at once; permalinks name seeds and features, which it does not change.
    name = published(site.root / STUDY).name
    fresh = f"study-{'0' * 16}.duckdb"
    shutil.copy(site.root / STUDY / name, site.root / STUDY / fresh)
    before = (site.root / STUDY / "CURRENT").read_text()
    (site.root / STUDY / "CURRENT").write_text(f"{fresh}\ntests\n")
    try:
        changed = site.nodes.both(page, **{"If-None-Match": first.headers["etag"]})
        assert [each.status_code for each in changed] == [200, 200]
        assert changed[0].headers["etag"] == changed[1].headers["etag"] != first.headers["etag"]
    finally:
        (site.root / STUDY / "CURRENT").write_text(before)


@pytest.mark.parametrize(
    ("url", "words"),
    [("gpu:8766", "expected http://HOST:PORT"), ("ftp://gpu:1", "expected http"), ("http://gpu:1/x", "nothing behind it"),
     ("http://gpu:99999", "expected http"), ("http://me@gpu:1", "nothing behind it")],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_served(study_root, url, words):
    assert_one_line(run("serve", "--root", study_root, "--engine-url", url), words)


def test_an_engines_token_without_an_engine_is_refused(study_root, tmp_path):
    (tmp_path / "token").write_text("t")
    assert_one_line(run("serve", "--root", study_root, "--engine-token-file", tmp_path / "token"), "--engine-url")


def test_an_engine_without_studies_is_refused(tmp_path):
    assert_one_line(run("engine", "--root", tmp_path / "none"), "found no folder")
