"""Half requests and readers that do not read: how long they are waited for, and that they take nobody's place."""

import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from seedscope.app.cli import connections
from seedscope.app.cli.connections import KEPT_DESCRIPTORS, MOST, BoundedProtocol, most_connections
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from support.server_here import answer_of, opened, served_here

MOST_HERE = 12
HALVES = {
    "nothing": b"",
    "a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ",
    "a body": b"POST /jobs HTTP/1.1\r\nHost: %s\r\nOrigin: http://%s\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 100\r\n\r\nkind=",
}


@pytest.fixture
def site(study_root, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server that waits for a second and has room for a few connections."""
    for name in ("HEAD_S", "BODY_S", "STALLED_S"):
        monkeypatch.setattr(connections, name, 1.0)
    with served_here(create_app(Settings(study_root))) as site:
        monkeypatch.setattr(BoundedProtocol, "most", MOST_HERE)
        yield site


def half(site: tuple[str, int], what: str) -> socket.socket:
    name = f"{site[0]}:{site[1]}".encode()
    connection = socket.create_connection(site, 10)
    text = HALVES[what]
    connection.sendall(text % (name, name) if b"%s" in text else text)
    return connection


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def ended(connection: socket.socket) -> bytes:
    """What came until the server closed the connection."""
    with connection:
        try:
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("what", HALVES)
def test_half_requests_are_waited_for_so_long_and_take_nobodys_place(site, what, capfd):
    began = time.monotonic()
    halves = [half(site, what) for _ in range(5 * MOST_HERE)]
    for path in ("/healthz", "/", "/static/app.css"):
        assert answer_of(opened(site, path))[0] == 200
    said = {ended(connection)[:12] for connection in halves}
    assert time.monotonic() - began < 10
    assert said <= ({b"", b"HTTP/1.1 408"} if what != "a body" else {b""})
    assert not capfd.readouterr().err


def test_where_every_connection_is_being_answered_a_new_one_is_told_to_come_again(site, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "_make_room", lambda self: False)
    halves = [half(site, "nothing") for _ in range(MOST_HERE)]
    status, text = answer_of(opened(site, "/healthz"))
    assert status == 503
    assert b"retry-after: 1" in text
    for connection in halves:
        connection.close()
    until(lambda: answer_of(opened(site, "/healthz"))[0] == 200)


def test_an_idle_connection_gives_its_place_to_a_newcomer(site):
    idle = []
    for _ in range(MOST_HERE):
        connection = socket.create_connection(site, 10)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        idle.append(connection)
    for _ in range(3):
        assert answer_of(opened(site, "/healthz"))[0] == 200
    for connection in idle:
        connection.close()


def test_requests_one_after_the_other_on_one_connection_are_not_taken_for_late_ones(site):
    with socket.create_connection(site, 10) as connection:
        for _ in range(6):
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
            time.sleep(0.3)
            connection.sendall(b"Host: 127.0.0.1\r\n\r\n")
            text = b""
            while not text.endswith(b"}"):
                text += connection.recv(4096)
            assert text.startswith(b"HTTP/1.1 200")


def test_who_does_not_read_an_answer_is_left(site, address):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(site)
        connection.sendall(b"GET /static/plotly-gl.min.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 8)
        time.sleep(3)
        assert len(ended(connection)) < 8 * 1_000_000


def test_descriptors_are_left_for_everything_else(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append(limits))
    for limits, most in (
        ((1024, 1024), 1024 - KEPT_DESCRIPTORS),
        ((1024, 10**6), MOST),
        ((10**6, 10**6), MOST),
        ((64, 64), 32),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), MOST),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda what, limits=limits: limits)
        assert most_connections() == most
    assert asked == [(MOST + KEPT_DESCRIPTORS, 10**6)]
