"""Turns: how many compute at once, who waits, and who is told to come again."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from fastapi import Depends
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.app.turns import AllTurns, BusyError, Turns, in_turns, take_turn


class Slow:
    """A handler that lasts until it may end, and counts how many run at once."""

    def __init__(self) -> None:
        self.may_end, self._lock = threading.Event(), threading.Lock()
        self.running = self.most = 0

    def __call__(self) -> str:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.may_end.wait(20)
        with self._lock:
            self.running -= 1
        return "done"


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def browser(tmp_path, slow):
    app = create_app(Settings(tmp_path))
    app.state.turns.pages = Turns(2, longest_line=3, longest_wait_s=0.5)
    app.get("/slow", dependencies=[Depends(take_turn, scope="function")])(slow)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def alone(scene):
    """What a coroutine gives, run in a thread of its own: where browser tests ran before, this thread has a running loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, scene).result()


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_so_many_run_a_few_wait_and_the_others_are_told_to_come_again(browser, slow):
    turns = browser.app.state.turns.pages
    turns._longest_wait_s = 20
    with ThreadPoolExecutor(16) as people:
        asked = [people.submit(browser.get, "/slow") for _ in range(5)]
        until(lambda: turns.n_waiting == 3)
        refused = browser.get("/slow", headers={"Accept": "text/html"})
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "Too many requests at once" in refused.text
        assert "3 requests waiting" in refused.text
        as_json = browser.get("/slow", headers={"Accept": "application/json"})
        assert as_json.status_code == 503
        assert as_json.json()["problems"][0]["found"] == "3 requests waiting"
        for free in ("/healthz", "/metrics", "/static/app.css", "/jobs.json"):
            assert browser.get(free).status_code in (200, 404), free
        assert browser.get("/healthz").status_code == 200
        slow.may_end.set()
        assert [each.result().status_code for each in asked] == [200] * 5
    assert slow.most == 2
    assert browser.get("/slow").status_code == 200  # every turn was passed on


def test_who_waits_too_long_is_told_to_come_again_and_leaves_the_line(browser, slow):
    turns = browser.app.state.turns.pages
    with ThreadPoolExecutor(4) as people:
        asked = [people.submit(browser.get, "/slow") for _ in range(2)]
        until(lambda: slow.running == 2)
        assert browser.get("/slow").status_code == 503
        assert turns.n_waiting == 0
        slow.may_end.set()
        assert [each.result().status_code for each in asked] == [200] * 2


def test_every_page_takes_a_turn(client):
    turns = client.app.state.turns
    before = turns.pages
    turns.pages = Turns(1, longest_line=0)
    turns.pages._running = 1
    try:
        for address in ("/", "/manual", "/s/small", "/index.json"):
            assert client.get(address).status_code == 503, address
        assert client.get("/jobs").status_code == 200
    finally:
        turns.pages = before


def test_turns_come_in_the_order_of_asking_and_one_who_leaves_is_skipped():
    order: list[str] = []

    async def compute(turns: Turns, name: str, seconds: float) -> None:
        async with turns.one(patient=name == "download"):
            order.append(name)
            await anyio.sleep(seconds)

    async def scene() -> None:
        turns = Turns(1, longest_line=2, longest_wait_s=5)
        async with anyio.create_task_group() as group:
            group.start_soon(compute, turns, "first", 0.2)
            await anyio.sleep(0.02)
            with anyio.CancelScope() as leaving:

                async def leave() -> None:
                    await anyio.sleep(0.05)
                    leaving.cancel()

                group.start_soon(leave)
                await compute(turns, "who leaves", 0)
            group.start_soon(compute, turns, "second", 0.05)
            await anyio.sleep(0.02)
            group.start_soon(compute, turns, "third", 0.05)
            await anyio.sleep(0.02)
            group.start_soon(compute, turns, "download", 0)  # the line is full, and it waits all the same
            await anyio.sleep(0.02)
            with pytest.raises(BusyError):
                await compute(turns, "too many", 0)
        async with turns.one():
            assert turns.n_waiting == 0

    alone(scene)
    assert order == ["first", "second", "third", "download"]


def test_a_download_takes_a_turn_for_each_part_and_ends_its_source():
    ended = []

    def parts():
        try:
            yield from (b"a", b"b", b"c")
        finally:
            ended.append(True)

    class App:
        turns = AllTurns(1)

    class Request:
        app = type("Holder", (), {"state": App})

    async def scene() -> list[bytes]:
        App.turns.pages = Turns(1)
        got = []
        async for part in in_turns(Request, parts()):
            got.append(part)
            async with App.turns.pages.one():  # nothing is held between parts
                pass
        return got

    assert alone(scene) == [b"a", b"b", b"c"]
    assert ended == [True]


def test_there_are_turns_for_two_pages_at_least():
    assert AllTurns(64).pages.at_once == 2
    assert AllTurns(1).pages.at_once >= 2
