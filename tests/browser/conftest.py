"""A real Chromium against a real server over the small study."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from support.listening import complaints_of

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = f"no Chromium on the PATH (looked for {', '.join(names)})"
        if os.environ.get("SEEDSCOPE_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve the studies under a root; returns the address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(root: Path) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(Settings(root)), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def server(serve: Callable[[Path], str], study_root: Path) -> str:
    return serve(study_root)


def _open_page(browser: Browser, server: str, **options: object) -> Iterator[Page]:
    """A page whose console must stay clean."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options, base_url=server)
    page = context.new_page()
    complaints = complaints_of(page)
    yield page
    if not page.is_closed():
        page.evaluate("0")  # what it said so far has arrived behind this
    said = list(complaints)
    context.close()  # aborts what is under way, and htmx says so
    assert not said


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    yield from _open_page(browser, server, permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def page_without_scripts(browser: Browser, server: str) -> Iterator[Page]:
    yield from _open_page(browser, server, java_script_enabled=False)


@pytest.fixture
def phone(browser: Browser, server: str) -> Iterator[Page]:
    """A page of 390 px that is touched."""
    yield from _open_page(
        browser, server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, accept_downloads=True
    )
