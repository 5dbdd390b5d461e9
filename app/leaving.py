"""Requests end with whoever sent them: what is read for a reader who is gone is not computed to its end."""

import asyncio

from anyio import CancelScope, Event
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class EndWithClient:
    """ASGI middleware: a GET or HEAD whose connection is closed is cancelled, where it waits or between two steps in threads.

    Other methods change something and go on. A body of what is cancelled is read and ignored.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        gone, is_read = Event(), False

        async def received() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                watcher.cancel()  # the end of an answer reads as a disconnect, too
            await send(message)

        with CancelScope() as running:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                gone.set()
                running.cancel()

            watcher = asyncio.create_task(watch())
            try:
                await self._app(scope, received, sent)
            finally:
                watcher.cancel()
