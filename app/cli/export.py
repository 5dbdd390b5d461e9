"""`seedscope export`: a study as files, for other tools or for `import`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, app, refusals
from seedscope.app.cli.study_options import StudyName
from seedscope.app.settings import default_root


class Format(StrEnum):
    """What an export is written as."""

    parquet = "parquet"
    json = "json"
    neuronpedia = "neuronpedia"
    saelens = "saelens"
    delphi = "delphi"
    spans = "spans"
    saebench = "saebench"
    hf_dataset = "hf-dataset"


@app.command()
def export(
    study: StudyName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    format: Annotated[
        Format, typer.Option(help="parquet holds everything, and `import` reads it back.")
    ] = Format.parquet,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Write everything that was computed on a study to files.

    Example: seedscope export mine out --format neuronpedia
    """
    from seedscope.engine.progress import Progress

    root = root or default_root()
    with refusals(), Progress(quiet=quiet).stage(f"exporting {study}", "steps") as report:
        from seedscope.engine.export.formats import export as export_study

        files = export_study(root, study, folder, format=format.value, report=report)
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB: {folder}")
