"""`seedscope serve`: the dashboard as a process, on a free port."""

import errno
import os
import signal
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.app.cli.options import Compute, Device, Root, Stop, app
from seedscope.app.cli.workers import MOST_BY_DEFAULT, Workers, default_workers
from seedscope.app.settings import DEFAULT_PORT, Settings, default_root

if TYPE_CHECKING:
    from seedscope.app.jobs.queue import Jobs


class LogForm(StrEnum):
    """What is written of requests."""

    brief = "brief"
    text = "text"
    json = "json"


Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; the next free one if taken.")]
Host = Annotated[str, typer.Option(help="Address to bind; beyond loopback a token is needed.")]
Token = Annotated[str | None, typer.Option(help="Secret for a bind beyond loopback; made and printed if not given.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", allow_dash=True, help="File that holds the token, or - for standard input."),
]
Proxies = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy-headers",
        help="Address or network of a proxy whose X-Forwarded-For and -Proto are believed; repeatable.",
    ),
]
AllowHost = Annotated[list[str] | None, typer.Option(help="Further name that the Host header may hold; repeatable.")]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Another site, as https://example.org, whose pages may read /stability and permalinks' .json; repeatable. "
        "* means any, without a token alone.",
    ),
]
Open = Annotated[
    bool | None,
    typer.Option(
        "--open/--no-open", help="Open the page in a browser (default: `demo` does, on a desktop).", show_default=False
    ),
]
WebProcesses = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=64, help=f"Web processes (default: number of cores, at most {MOST_BY_DEFAULT}).",
        show_default=False,
    ),
]  # fmt: skip
LogLines = Annotated[
    LogForm, typer.Option("--log-format", help="Standard error: faults alone, or a line or a JSON object per request.")
]
EngineUrlOption = Annotated[
    str | None,
    typer.Option(
        "--engine-url", metavar="URL", help="Ask the live engine there (`seedscope engine`) instead of starting one."
    ),
]
EngineTokenFile = Annotated[
    Path | None,
    typer.Option("--engine-token-file", help="File that holds that engine's token; by default it has this server's."),
]
N_PORTS_TRIED = 20
LONGEST_TOKEN_FILE = 1000  # characters


@app.command()
def serve(
    root: Root = None, host: Host = "127.0.0.1", port: Port = DEFAULT_PORT, token: Token = None,
    token_file: TokenFile = None, allow_host: AllowHost = None, allow_origin: AllowOrigin = None, proxy_headers: Proxies = None,
    open_browser: Open = None, device: Device = Compute.auto,
    workers: WebProcesses = None, log_format: LogLines = LogForm.brief,
    engine_url: EngineUrlOption = None, engine_token_file: EngineTokenFile = None,
) -> None:  # fmt: skip
    """Serve the dashboard over every study under the root.

    Example: seedscope serve --root ~/studies --port 9000
    """
    from seedscope.app.security import is_loopback

    root = root or default_root()
    if not root.is_dir():
        raise Stop(f"found no folder {root}, expected one with studies; build the embedded one with: seedscope demo")
    n_workers = default_workers() if workers is None else workers
    given = given_token(token, token_file)
    settings = Settings(
        root, host, port, given, tuple(allow_host or ()), device.value, n_workers,
        _checked_proxies(proxy_headers or []), log_format.value, *_asked_engine(engine_url, engine_token_file, given),
        _checked_origins(allow_origin or [], needs_token=given is not None or not is_loopback(host)),
    )  # fmt: skip
    serve_until_stopped(settings, bool(open_browser))


def _asked_engine(url: str | None, file: Path | None, own: str | None) -> tuple[str | None, str | None]:
    """The address of the engine of another machine and its token; Stop for what is no address."""
    if url is None:
        if file is not None:
            raise Stop(
                "found --engine-token-file without --engine-url, expected both: an engine of this machine has no token"
            )
        return None, None
    from seedscope.engine.contract.engine_address import engine_url

    try:
        parsed = engine_url(url)
    except ValueError as error:
        raise Stop(str(error)) from None
    return str(parsed), own if file is None else given_token(None, file)


def given_token(token: str | None, file: Path | None) -> str | None:
    """The token that was given, from wherever; Stop where it cannot be read or be one."""
    from seedscope.app.security import token_problem

    if file is not None:
        if token is not None:
            raise Stop("found both --token and --token-file, expected one of them")
        try:
            token = (sys.stdin.read(LONGEST_TOKEN_FILE) if str(file) == "-" else _beginning(file)).strip()
        except (OSError, ValueError) as error:
            raise Stop(f"cannot read the token from {file}: {getattr(error, 'strerror', None) or error}") from None
    if token is not None and (problem := token_problem(token)):
        raise Stop(f"found a token that cannot be used, {problem}")
    return token


def _beginning(file: Path) -> str:
    with open(file, encoding="ascii") as opened:
        return opened.read(LONGEST_TOKEN_FILE)


def _checked_origins(given: list[str], *, needs_token: bool) -> tuple[str, ...]:
    """Origins as browsers write them; Stop for what is none, and for `*` where a token is needed."""
    from seedscope.app.cross_origin import checked_origins

    try:
        return checked_origins(given, needs_token=needs_token)
    except ValueError as error:
        raise Stop(str(error)) from None


def _checked_proxies(given: list[str]) -> tuple[str, ...]:
    """Stop for what is neither an address nor a network."""
    import ipaddress

    for each in given:
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise Stop(f"--proxy-headers is {each!r}, expected an address or a network, such as 10.0.0.0/8") from None
    return tuple(given)


def _follow_up(jobs: "Jobs", root: Path, study: str) -> None:
    """Compute what no page has to wait for while people look; it stops with the server and goes on with the next one."""
    from seedscope.app.jobs.kinds import JobRefusedError
    from seedscope.engine.store.catalogue import CONTROL

    parts = root / study / "parts"
    missing_jobs: list[tuple[str, dict[str, str], str]] = []  # kind, parameters, what it adds
    for analysis, adds in (
        ("explain", "token rules"),
        ("subspaces", "subspaces and the map"),
        ("function", "what counterparts do"),
        ("predictor", "whether stability can be told from one SAE"),
    ):
        if not any(parts.glob(f"*/{analysis}/*/about.json")):
            missing_jobs.append(("analyze", {"only": analysis}, adds))
    kept = any((root / study / "sae").glob("*/*/along/*"))
    if kept and not any(parts.glob("*/trajectory/*/about.json")):
        missing_jobs.append(("analyze", {"only": "trajectory"}, "how members came to agree along their training"))
    if not any(parts.glob("*/loss/*/about.json")):
        missing_jobs.append(("analyze", {"only": "loss"}, "the next-token loss of features"))
    if not any(parts.glob(f"*-{CONTROL}")):
        missing_jobs.append(("demo", {}, "the same on a model with random weights"))
    with suppress(JobRefusedError):  # another server over this root does it
        for kind, parameters, _ in missing_jobs:
            jobs.start(kind, study, parameters)
        if missing_jobs:
            added = ", ".join(what for _, _, what in missing_jobs)
            print(f"in the background follow {added}: see /jobs; the pages say when each is done", flush=True)


def on_a_desktop() -> bool:
    """Whether somebody sits in front of a screen: a terminal and a display."""
    displays = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return sys.stdout.isatty() and displays


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on the port or the next free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + N_PORTS_TRIED if port else 1):
        # The protocol is named: asyncio switches Nagle's algorithm off for sockets that say TCP, and each answer waits 40 ms else.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if not isinstance(error, PermissionError) and candidate < 65535 and error.errno == errno.EADDRINUSE:
                print(f"port {candidate} is taken, trying {candidate + 1}")
                continue
            raise Stop(f"cannot bind {host}:{candidate} ({error.strerror}); choose with --host and --port") from None
        return listener
    raise Stop(f"ports {port} to {port + N_PORTS_TRIED - 1} are all taken; choose one with --port")


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def serve_until_stopped(settings: Settings, open_browser: bool, follow_up: str | None = None) -> None:
    """Serve until stopped; `follow_up` names a study whose further analyses are made meanwhile."""
    from dataclasses import replace

    from seedscope.app.cli.web import create_small_app, web_server
    from seedscope.app.security import is_loopback, new_token

    given = settings.token
    if not is_loopback(settings.host) and not given:
        settings = replace(settings, token=new_token())
    listener = bind(settings.host, settings.port)
    if settings.workers > 1:
        several = Workers(settings, listener)
        jobs, run = several.jobs, several.run
    else:
        dashboard = create_small_app(settings)
        jobs, run = dashboard.state.jobs, partial(web_server(dashboard, settings.proxies).run, sockets=[listener])
        signal.signal(signal.SIGTERM, _exit)  # uvicorn ends first; temporary folders are removed at exit
    if follow_up is not None:
        _follow_up(jobs, settings.root, follow_up)
    port = listener.getsockname()[1]
    shown_host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = f"http://{shown_host}:{port}/"
    address = base + (f"?token={settings.token}" if settings.token else "")
    if given:  # it is known, and would stand in a log
        print("open the address once with ?token= and the token that you gave behind it", flush=True)
    print(f"SeedScope is at {base if given else address} (Ctrl-C stops it)", flush=True)
    if open_browser:
        threading.Timer(0.8, webbrowser.open, [address]).start()
    run()
