"""`seedscope export`: a study as files, for other tools or for `import`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, app, refusals
from seedscope.app.cli.study_options import StudyName
from seedscope.app.settings import default_root

if TYPE_CHECKING:
    from seedscope.engine.progress import Progress


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
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A new folder, or s3://BUCKET/FOLDER.", show_default=False)
    ],
    format: Annotated[
        Format, typer.Option(help="parquet holds everything, and `import` reads it back.")
    ] = Format.parquet,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Write everything that was computed on a study to files.

    Example: seedscope export mine out --format neuronpedia
    """
    from seedscope.engine.contract.urls import on_this_machine, url_in
    from seedscope.engine.progress import Progress

    root, progress = root or default_root(), Progress(quiet=quiet)
    with refusals():
        if url := url_in(folder):
            n_files, n_bytes = _to_url(root, study, url, format.value, progress)
        else:
            from seedscope.engine.export.formats import export as export_study

            path = Path(on_this_machine(folder))
            with progress.stage(f"exporting {study}", "steps") as report:
                files = export_study(root, study, path, format=format.value, report=report)
            n_files, n_bytes = len(files), sum(file.stat().st_size for file in files)
    print(f"{n_files} files, {n_bytes / 1e6:,.1f} MB: {folder}")


def _to_url(root: Path, study: str, url: str, format: str, progress: "Progress") -> tuple[int, int]:
    """(files, bytes) of an export that was put at a URL."""
    from seedscope.engine.export.by_url import export_to
    from seedscope.engine.urls.cache import fetch_below

    fetch_below(root, progress)
    return export_to(root, study, url, format=format, progress=progress)
