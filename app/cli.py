"""`seedscope`: one front door. Imports lazily: the web process never loads torch, `--help` loads nothing."""

import errno
import os
import socket
import subprocess
import sys
import threading
import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.settings import DEFAULT_PORT, Settings, default_root

app = typer.Typer(
    help="Which features of your sparse autoencoders would come back with another seed?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Compute(StrEnum):
    """Where the engine computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Rule(StrEnum):
    """How a partner is found."""

    argmax = "argmax"
    mutual = "mutual"
    hungarian = "hungarian"
    both = "both"


class Section(StrEnum):
    """What `bench` measures."""

    match = "match"
    all = "all"


Device = Annotated[Compute, typer.Option(help="Where the live engine computes; auto takes a GPU where there is one.")]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of studies (default $SEEDSCOPE_ROOT, else ./seedscope-data).", show_default=False),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; the next free one if taken.")]
Host = Annotated[str, typer.Option(help="Address to bind; beyond loopback a token is needed.")]
Token = Annotated[str | None, typer.Option(help="Secret for a bind beyond loopback; made and printed if not given.")]
AllowHost = Annotated[list[str] | None, typer.Option(help="Further name that the Host header may hold; repeatable.")]
Open = Annotated[
    bool | None,
    typer.Option(
        "--open/--no-open", help="Open the page in a browser (default: `demo` does, on a desktop).", show_default=False
    ),
]
N_PORTS_TRIED = 20


class Stop(Exception):
    """A failed run: one line for the user, exit 1."""


@app.command()
def demo(
    port: Port = DEFAULT_PORT,
    root: Root = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve it once it is built.")] = True,
    open_browser: Open = None,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Build the embedded study if it is not there, then serve it.

    Example: seedscope demo --port 9000
    """
    from engine import demo as embedded  # standard library only
    from engine.schema import CURRENT

    root = _writable(root or default_root())
    if not _is_current(root / embedded.STUDY.name / CURRENT, embedded.built_from()):
        command = [sys.executable, "-W", "ignore", "-m", "engine.studies", str(root), *(["--quiet"] if quiet else [])]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise Stop(f"the study could not be built (exit {code}); nothing was published")
    if serve:
        _serve(Settings(root, port=port), _on_a_desktop() if open_browser is None else open_browser)
    else:
        print(f"study {embedded.STUDY.name} is published under {root}; look at it with: seedscope serve --root {root}")


@app.command()
def serve(
    root: Root = None, host: Host = "127.0.0.1", port: Port = DEFAULT_PORT, token: Token = None,
    allow_host: AllowHost = None, open_browser: Open = None, device: Device = Compute.auto,
) -> None:  # fmt: skip
    """Serve the dashboard over every study under the root.

    Example: seedscope serve --root ~/studies --port 9000
    """
    root = root or default_root()
    if not root.is_dir():
        raise Stop(f"found no folder {root}, expected one with studies; build the embedded one with: seedscope demo")
    _serve(Settings(root, host, port, token, tuple(allow_host or ()), device.value), bool(open_browser))


@app.command()
def match(
    sae_a: Annotated[Path, typer.Argument(help="An SAE file, such as seed-0.safetensors.")],
    sae_b: Annotated[Path, typer.Argument(help="Another one, of the same model and hook point.")],
    rule: Annotated[Rule, typer.Option(help="How a partner is found.")] = Rule.argmax,
    theta: Annotated[float, typer.Option(min=-1, max=1, help="A cosine of at least theta is a match.")] = 0.7,
    absolute: Annotated[bool, typer.Option("--absolute", help="Compare absolute cosines.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Match SAEs of different models or hook points.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the complete matching to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Match two SAEs without a study: shared features, MCC with a proven gap, and every partner.

    Example: seedscope match a/seed-0.safetensors a/seed-1.safetensors --rule hungarian --json pair.json
    """
    from engine import pairing
    from engine.progress import Progress

    _check_parent(json)
    try:
        with Progress(quiet=quiet).stage("matching", "pairs") as report:
            found = pairing.compare(sae_a, sae_b, rule=rule.value, theta=theta, absolute=absolute, force=force)
            report(1, 1)
    except ValueError as error:
        raise Stop(str(error)) from None
    for name, one, way in (("A in B", found.a, found.a_to_b), ("B in A", found.b, found.b_to_a)):
        excluded = f", {one.n_undirected} rows without a direction left out" if one.n_undirected else ""
        print(
            f"{name}: {way.n_matched} of {len(way.feature)} features match ({way.shared:.1%}), MMCS {way.mmcs:.4f}{excluded}"
        )
    if found.pw_mcc is None:
        print("one-to-one: not computed at this size by default; ask for it with --rule hungarian")
    else:
        print(f"one-to-one: MCC {found.pw_mcc:.4f}, Hungarian distance {found.hungarian_distance:.4f}, "
              f"proven within {max(found.gap, 0):.1e} of the best")  # fmt: skip
    for difference in found.forced:
        print(f"forced: {difference}")
    if json is not None:
        pairing.write(found, json)
        print(f"complete matching: {json}")


@app.command()
def bench(
    section: Annotated[Section, typer.Argument(help="What to measure.")] = Section.all,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Also what takes many minutes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure this machine against its limits and, side by side in one run, against the alternatives.

    Example: seedscope bench match --json bench.json
    """
    from rich.console import Console

    from engine.bench.run import SECTIONS, show, summary, write_json
    from engine.progress import Progress

    _check_parent(json)
    lines = []
    console = Console(width=160 if not sys.stdout.isatty() else None)
    for name, measure in SECTIONS.items():
        if section.value not in (name, "all"):
            continue
        with Progress(quiet=quiet).stage(f"bench {name}", "steps") as report:
            for line in measure(full=full, report=report):
                lines.append(line)
                if not quiet:  # as they come: a run takes minutes, and one that is stopped has still said something
                    print(summary(line), file=sys.stderr, flush=True)
                if json is not None:
                    write_json(lines, json)
    show(lines, console)


def _check_parent(file: Path | None) -> None:
    """Stop before the work where its result could not be written."""
    if file is not None and not file.absolute().parent.is_dir():
        raise Stop(f"found no folder {file.absolute().parent} to write {file.name} into; create it first")


def _on_a_desktop() -> bool:
    """Whether somebody sits in front of a screen: a terminal and a display."""
    displays = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return sys.stdout.isatty() and displays


def _is_current(current: Path, wanted: str) -> bool:
    try:
        store, built_from = current.read_text().splitlines()
    except (FileNotFoundError, ValueError):
        return False
    return built_from == wanted and (current.parent / store).is_file()


def _writable(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".write-probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Stop(f"cannot write under {root} ({error.strerror}); choose another folder with --root DIR") from None
    return root


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket on the port or the next free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + N_PORTS_TRIED if port else 1):
        listener = socket.socket(family)
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


def _serve(settings: Settings, open_browser: bool) -> None:
    from dataclasses import replace

    import uvicorn

    from app.main import create_app
    from app.security import is_loopback, new_token

    if not is_loopback(settings.host) and not settings.token:
        settings = replace(settings, token=new_token())
    listener = _bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    shown_host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{shown_host}:{port}/" + (f"?token={settings.token}" if settings.token else "")
    print(f"SeedScope is at {address} (Ctrl-C stops it)", flush=True)
    if open_browser:
        threading.Timer(0.8, webbrowser.open, [address]).start()
    config = uvicorn.Config(create_app(settings), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    """Run the command line; a failed run is one line and exit 1, wrong arguments exit 2."""
    try:
        app()
    except Stop as stop:
        print(f"seedscope: {stop}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
