"""`seedscope bench`: what this machine reaches, beside its limits and the alternatives."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, app, check_parent


class Section(StrEnum):
    """What `bench` measures."""

    match = "match"
    harvest = "harvest"
    geometry = "geometry"
    train = "train"
    all = "all"


@app.command()
def bench(
    section: Annotated[Section, typer.Argument(help="What to measure.")] = Section.all,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Also what takes many minutes.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine against its limits and, side by side in one run, against the alternatives.

    Example: seedscope bench match --json bench.json
    """
    from rich.console import Console

    from seedscope.engine.bench.run import SECTIONS, show, summary, write_json
    from seedscope.engine.progress import Progress

    check_parent(json)
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
