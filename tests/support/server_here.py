"""The real server in a thread of this process, so that tests see its application's state."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from seedscope.app.cli.web import web_server


@contextmanager
def served_here(app: FastAPI) -> Iterator[tuple[str, int]]:
    """Its host and port while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = web_server(app, ends_process=False)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until = time.monotonic() + 20
            while not server.started:
                assert time.monotonic() < until
                time.sleep(0.01)
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def request_on(connection: socket.socket, path: str, headers: str = "") -> None:
    """Send a GET and do not wait for its answer."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n".encode())


def opened(address: tuple[str, int], path: str, headers: str = "", *, source: str = "127.0.0.1") -> socket.socket:
    """A connection on which a GET was sent, from an address of this machine."""
    connection = socket.create_connection(address, 20, source_address=(source, 0))
    request_on(connection, path, headers)
    return connection


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """(status, all that came) of a connection that the server closes behind its answer."""
    with connection:
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    text = b"".join(parts)
    return (int(text.split(b" ", 2)[1]) if text else 0), text
