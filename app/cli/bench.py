"""`seedscope bench`: what this machine reaches, beside its limits and the alternatives."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, Stop, app, check_parent, refusals


class Section(StrEnum):
    """What `bench` measures; `all` is all but `serve`, which writes gigabytes, `plan`, which trains four studies, and `gpu`."""

    match = "match"
    diff = "diff"
    transport = "transport"
    planted = "planted"
    spans = "spans"
    harvest = "harvest"
    geometry = "geometry"
    function = "function"
    train = "train"
    executors = "executors"
    serve = "serve"
    plan = "plan"
    gpu = "gpu"
    all = "all"


class Peer(StrEnum):
    """What `bench serve` is measured beside."""

    datasette = "datasette"


@app.command()
def bench(
    section: Annotated[Section, typer.Argument(help="What to measure.")] = Section.all,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Also what takes many minutes.")] = False,
    rows: Annotated[
        int | None,
        typer.Option(min=64, help="diff, transport: rows of both sides.", show_default="16384 and 2048"),
    ] = None,
    members: Annotated[int, typer.Option(min=2, help="serve: members of the generated study.")] = 96,
    features: Annotated[int, typer.Option(min=32, help="serve: features of every member.")] = 32_768,
    contexts: Annotated[int, typer.Option(min=1, help="serve: contexts of a feature.")] = 8,
    context_features: Annotated[
        int | None, typer.Option(min=0, help="serve: features of a member that have contexts.", show_default="all")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="serve, plan: folder that keeps the generated studies.",
            show_default="serve: in the user's cache; plan: none",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="serve: passed on to `seedscope serve`.")] = None,
    peer: Annotated[Peer | None, typer.Option(help="serve: ask this program for the same lists.")] = None,
    constants: Annotated[
        Path | None,
        typer.Option(help="plan: file that the constants are written to.", show_default="plan-constants.json"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="gpu: that the run may take.", show_default="10")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure this machine against its limits and, side by side in one run, against the alternatives.

    Example: seedscope bench match --json bench.json
    """
    from functools import partial

    from rich.console import Console

    from seedscope.engine.bench.generated_study import StudySize
    from seedscope.engine.bench.gpu import MINUTES, cuda_device
    from seedscope.engine.bench.run import SECTIONS, gpu_lines, plan_lines, serve_lines, show, summary, write_json
    from seedscope.engine.progress import Progress

    check_parent(json)
    if constants is not None and section is not Section.plan:
        raise Stop(f"--constants stands beside {section.value}, expected the section plan, which measures them")
    if minutes is not None and section is not Section.gpu:
        raise Stop(f"--minutes stands beside {section.value}, expected the section gpu, which is measured within them")
    lines = []
    console = Console(width=160 if not sys.stdout.isatty() else None)
    chosen = {name: measure for name, measure in SECTIONS.items() if section.value in (name, "all")}
    if rows is not None:
        chosen |= {name: partial(chosen[name], n=rows) for name in ("diff", "transport") if name in chosen}
    if section is Section.serve:
        size = StudySize(members, features, contexts, context_features)
        chosen["serve"] = partial(serve_lines, size, root=root, workers=workers, peer=peer and peer.value)
    if section is Section.plan:
        constants = constants or Path("plan-constants.json")
        check_parent(constants)
        chosen["plan"] = partial(plan_lines, constants=constants, root=root)
    if section is Section.gpu:
        with refusals():
            chosen["gpu"] = partial(gpu_lines, device=cuda_device(), minutes=minutes or MINUTES)
    for name, measure in chosen.items():
        with refusals(), Progress(quiet=quiet).stage(f"bench {name}", "steps") as report:
            for line in measure(full=full, report=report):
                lines.append(line)
                if not quiet:  # as they come: a run takes minutes, and one that is stopped has still said something
                    print(summary(line), file=sys.stderr, flush=True)
                if json is not None:
                    write_json(lines, json)
    show(lines, console)
    if failed := [line.work for line in lines if line.failed]:
        raise Stop(f"{len(failed)} of {len(lines)} lines failed, the remarks say why: {'; '.join(failed)}")
