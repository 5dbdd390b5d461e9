"""The dashboard asked in this process, without a port: the answer to an address as a browser would get it."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote, urlencode

from anyio import sleep_forever
from fastapi import FastAPI
from starlette.types import Message, Scope

HOST = "127.0.0.1"


class PageAnswer(NamedTuple):
    """What an address answers."""

    status: int
    media_type: str
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


async def ask(app: FastAPI, path: str, query: str = "") -> PageAnswer:
    """Answer of one address, uncompressed; `path` as it stands in links, percent-encoded."""
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", HOST.encode())], "client": (HOST, 1), "server": (HOST, 80), "state": {},
    }  # fmt: skip
    parts: list[bytes] = []
    status, media_type = HTTPStatus.INTERNAL_SERVER_ERROR.value, ""
    has_asked = False

    async def receive() -> Message:
        nonlocal has_asked
        if has_asked:  # the connection stays open: an answer that is streamed looks for its end
            await sleep_forever()
        has_asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, media_type
        if message["type"] == "http.response.start":
            status = message["status"]
            media_type = dict(message["headers"]).get(b"content-type", b"").decode().partition(";")[0]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return PageAnswer(status, media_type, b"".join(parts))


async def ask_json(app: FastAPI, path: str, query: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of an address; raises ValueError with what it says is wrong."""
    answer = await ask(app, path, urlencode(query))
    found: dict[str, Any] = json.loads(answer.body)
    if answer.status != HTTPStatus.OK:
        problems = [
            f"{each['name']} is {each['found']}, expected {each['expected']}" for each in found.get("problems", [])
        ]
        raise ValueError("; ".join(problems) or str(found.get("says") or found.get("title") or f"{path}: refused"))
    return found
