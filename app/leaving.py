"""Requests end with whoever sent them: nothing is computed for a reader who is gone, nor what HEAD leaves out."""

import asyncio

from anyio import CancelScope, Event
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class EndWithClient:
    """ASGI middleware: a GET or HEAD whose connection is closed is cancelled, where it waits or between two steps in threads.

    Other methods change something and go on. A body of what is cancelled is read and ignored. HEAD is answered as GET, without
    the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        gone, is_read, is_head, begun = Event(), False, scope["method"] == "HEAD", False

        async def received() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_head and message["type"] == "http.response.body":
                is_last, message = True, {"type": "http.response.body", "body": b""}
            if is_last:
                watcher.cancel()  # the end of an answer reads as a disconnect, too
            await send(message)
            if is_last and is_head:
                running.cancel()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            running.cancel()

        running = CancelScope()
        watcher = asyncio.create_task(watch())
        try:
            with running:
                await self._app({**scope, "method": "GET"} if is_head else scope, received, sent)
        except asyncio.CancelledError:  # the server stops, and waited for a while
            if begun:
                raise
            await PlainTextResponse("This server stops\n", 503, {"Retry-After": "5"})(scope, receive, send)
        finally:
            watcher.cancel()
