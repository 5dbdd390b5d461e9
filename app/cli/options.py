"""The Typer application, options with one meaning in every command, and how a failed run ends."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.engine.contract.urls import hidden

if TYPE_CHECKING:
    from seedscope.engine.executors.settings import ExecutorSettings
    from seedscope.engine.executors.unit import Executor

app = typer.Typer(
    help="Which features of your sparse autoencoders would come back with another seed?",
    epilog="Any command takes --debug, which shows where an error arose.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
DEBUG = "--debug"


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"seedscope {version('seedscope')}")
        raise typer.Exit


@app.callback()
def _every_command(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What may stand in front of a command."""


NO_SPACE = os.strerror(errno.ENOSPC)
LONGEST = 1500  # characters of a line that tells of a failure


class Stop(Exception):
    """A failed run: one line for the user, exit 1."""


@contextmanager
def refusals() -> Iterator[None]:
    """What the engine refuses, as a failed run; with --debug the traceback stays."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if DEBUG in sys.argv:
            raise
        raise Stop(in_one_line(error)) from None


def in_one_line(error: Exception) -> str:
    """What an error says, for somebody who did not write the code: its kind as well where that was nobody's intention."""
    from seedscope.engine.urls.cache import with_urls

    text = with_urls(str(error))
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if is_full or NO_SPACE in text:  # libraries have errors of their own
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return (
            f"no space left on the disk{place}; what was finished is kept: free some, and give the same command again"
        )
    if isinstance(error, MemoryError):
        return f"out of memory ({text or 'no more is said'}); use a smaller model or fewer tokens, or a larger machine"
    if isinstance(error, ValueError | RuntimeError | OSError) and text and type(error).__module__ != "duckdb":
        return text
    return f"{type(error).__name__}: {text or 'no more is said'} ({DEBUG} shows where)"


def shown(text: str) -> str:
    """A text as `printable` has it, without what URLs in it could hold of secrets."""
    return printable(hidden(text))


def printable(text: str) -> str:
    """A text as one line of bounded length, without characters that move a terminal's cursor or colours."""
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}.."


class Compute(StrEnum):
    """Where the engine computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Root = Annotated[
    Path | None,
    typer.Option(help="Folder of studies (default $SEEDSCOPE_ROOT, else ./seedscope-data).", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Device = Annotated[Compute, typer.Option(help="Where to compute; auto takes a GPU where there is one.")]


class ExecutorKind(StrEnum):
    """Where units of work run."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


ExecutorName = Annotated[
    ExecutorKind | None,
    typer.Option(
        "--executor",
        envvar="SEEDSCOPE_EXECUTOR",
        help="Where harvests, trainings, pairs to match, and members' activity, worth and token rules are computed; all else "
        "runs here.",
        show_default="local, in this process",
    ),
]
ExecutorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-option",
        envvar="SEEDSCOPE_EXECUTOR_OPTIONS",
        metavar="KEY=VALUE",
        help="A setting of the executor, such as workers=2, address=HOST:PORT or partition=gpu; repeatable.",
        show_default=False,
    ),
]


@contextmanager
def executor_of(
    name: ExecutorKind | None, options: list[str] | None, root: Path, file: "ExecutorSettings | None" = None
) -> Iterator["Executor"]:
    """The executor that the command line, or else a study file, names; ValueError, in one line, where it cannot be used."""
    from seedscope.engine.executors.open_executor import opened
    from seedscope.engine.studies.studyfile.executor import executor_named

    settings = executor_named(name and name.value, options or [], file)
    with opened(settings, root) as executor:
        yield executor


def fetch_below(root: Path | None, *, quiet: bool = False) -> None:
    """Keep what lies behind URLs below a root once it was fetched; None: the default one."""
    from seedscope.app.settings import default_root
    from seedscope.engine.progress import Progress
    from seedscope.engine.urls import cache

    cache.fetch_below(root or default_root(), Progress(quiet=quiet))


def check_parent(file: Path | None) -> None:
    """Stop before the work where its result could not be written."""
    if file is not None and not file.absolute().parent.is_dir():
        raise Stop(f"found no folder {file.absolute().parent} to write {file.name} into; create it first")


def writable(root: Path) -> Path:
    """The root, made if need be; Stop where nothing can be written there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".write-probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Stop(f"cannot write under {root} ({error.strerror}); choose another folder with --root DIR") from None
    return root
