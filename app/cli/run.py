"""`seedscope run`: everything that a study file asks for."""

from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import (
    Compute,
    Device,
    ExecutorName,
    ExecutorOption,
    Quiet,
    Root,
    app,
    executor_of,
    fetch_below,
    refusals,
    writable,
)
from seedscope.app.cli.summary import summary
from seedscope.app.settings import default_root


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file.", show_default=False)],
    executor: ExecutorName = None,
    executor_option: ExecutorOption = None,
    device: Device = Compute.auto,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Everything that a study file asks for: import or train its ensembles, analyse and publish them; resumes.

    Example: seedscope run study.toml --root ~/studies
    """
    from seedscope.engine.progress import Progress

    root = writable(root or default_root())
    fetch_below(root, quiet=quiet)
    with refusals():
        from seedscope.engine.studies.studyfile.read import read_study_file

        plan = read_study_file(file)
        from seedscope.engine.studies.run import run_file

        progress = Progress(quiet=quiet)
        with (
            executor_of(executor, executor_option, root, plan.executor) as units_run_on,
            progress.timed(root / plan.name),
        ):
            run_file(plan, root, device=device.value, progress=progress, executor=units_run_on)
    summary(root, plan.name)
