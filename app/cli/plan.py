"""`seedscope plan`: what a study file would cost, before anything runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.app.cli.options import Stop, app, check_parent, refusals

if TYPE_CHECKING:
    from seedscope.engine.studies.planning.against import Comparison
    from seedscope.engine.studies.planning.plan import PlannedStage, StudyPlanned


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file.", show_default=False)],
    gpu: Annotated[
        str | None,
        typer.Option(help="Plan for this GPU: A100, H100, H200, B200, L40S, RTX4090.", show_default="this CPU"),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, max=100_000, help="How many of them.", show_default="1")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="Beside what the finished study under this root took.")
    ] = None,
    d_in: Annotated[int | None, typer.Option(min=1, help="Numbers per token at the hook point.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Blocks of a model that is not at hand.")] = None,
    parameters: Annotated[int | None, typer.Option(min=1, help="Its parameters.")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="Its vocabulary.")] = None,
    constants: Annotated[
        Path | None,
        typer.Option(help="Constants that `bench plan` wrote.", show_default="those that the package brings"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the plan to this file as well.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Say what a study file would take, stage by stage: bytes, FLOPs, hours, memory, storage. Nothing is run.

    Example: seedscope plan study.toml --gpus 8 --gpu H100
    """
    if gpus is not None and gpu is None:
        raise Stop(f"--gpus is {gpus} and no GPU is named, expected one: give it with --gpu, such as --gpu H100")
    if against is not None and gpu is not None:
        raise Stop("--against stands beside --gpu, expected one of them: a run is compared with the plan for this CPU")
    check_parent(json)
    with refusals():
        from seedscope.engine.studies.planning.against import compare, finished_runs
        from seedscope.engine.studies.planning.constants import read_constants
        from seedscope.engine.studies.planning.gpus import known_gpu
        from seedscope.engine.studies.planning.plan import plan_study
        from seedscope.engine.studies.planning.shape import GivenShape, study_shape
        from seedscope.engine.studies.studyfile.read import read_study_file

        chosen = known_gpu(gpu) if gpu else None
        shape = study_shape(read_study_file(file), GivenShape(d_in, layers, parameters, vocabulary))
        planned = plan_study(shape, read_constants(constants), gpu=chosen, n_gpus=gpus or 1)
        rows = compare(planned, finished_runs(against, shape.name)) if against else []
    if json is not None:
        _write(planned, rows, json)
    _print(_comparison_rows(rows) if rows else _stage_rows(planned), markdown)
    for line in (
        "" if markdown else None,
        f"basis: {planned.basis}",
        *(f"assumed: {each}" for each in planned.assumed),
    ):
        if line is not None:
            print(line)
    for stage in planned.stages:
        if stage.remark:
            print(f"{stage.stage}: {stage.remark}")


def _write(planned: "StudyPlanned", rows: "list[Comparison]", file: Path) -> None:
    import json

    from seedscope.engine.contract.files import write_whole

    compared = [row._asdict() | {"wall_ratio": row.wall_ratio, "cpu_ratio": row.cpu_ratio} for row in rows]
    write_whole(file, json.dumps(planned.as_json() | ({"against": compared} if rows else {}), indent=1))


def _stage_rows(planned: "StudyPlanned") -> list[list[str]]:
    head = ["stage", "FLOPs", "read", "written", "time", "peak memory", "stored"]
    rows = [_stage_row(stage) for stage in planned.stages]
    total = [
        "total", _amount(sum(each.flops for each in planned.stages)), _bytes(sum(each.read for each in planned.stages)),
        _bytes(sum(each.written for each in planned.stages)), _time(planned.wall_s), _bytes(planned.memory),
        _bytes(planned.stored),
    ]  # fmt: skip
    return [head, *rows, total]


def _stage_row(stage: "PlannedStage") -> list[str]:
    if not stage.memory:
        return [stage.stage, *["left out"], *[""] * 5]
    sizes = [_bytes(stage.read), _bytes(stage.written), _time(stage.wall_s), _bytes(stage.memory), _bytes(stage.stored)]
    return [stage.stage, _amount(stage.flops), *sizes]


def _comparison_rows(rows: "list[Comparison]") -> list[list[str]]:
    head = ["stage", "share of CPU time", "planned", "measured", "ratio", "planned CPU", "measured CPU", "ratio CPU"]
    return [
        head,
        *(
            [
                row.stage, f"{row.share:.0%}", _time(row.wall_s), _time(row.measured_wall_s), _ratio(row.wall_ratio),
                _time(row.cpu_s), _time(row.measured_cpu_s), _ratio(row.cpu_ratio),
            ]
            for row in rows
        ),
    ]  # fmt: skip


def _print(rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        print("\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]), end="\n\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in rows[0]:
        table.add_column(title, justify="left" if title == "stage" else "right")
    for row in rows[1:]:
        table.add_row(*row, end_section=row is rows[-2])
    Console(width=None if sys.stdout.isatty() else 140).print(table, highlight=False)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _amount(value: float) -> str:
    return f"{value:.2g}" if value else "0"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 200 * 3600 else f"{seconds / 3600:,.0f} h"
