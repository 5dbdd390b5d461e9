"""`seedscope site`: a study as a folder of plain files that opens without a server."""

from pathlib import Path
from typing import Annotated

import typer

from seedscope.app.cli.options import Quiet, Root, app, refusals
from seedscope.app.cli.study_options import StudyName
from seedscope.app.settings import default_root


@app.command()
def site(
    study: StudyName,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder, or a site to replace.", show_default=False)
    ],
    filter: Annotated[
        str,
        typer.Option(
            metavar="QUERY",
            help="Only the features that this finds, written as in the address of the feature table, such as "
            "'bucket=stable&density_min=0.001'. theta, epsilon and rule in it judge all pages.",
            show_default="all features",
        ),
    ] = "",
    duckdb_wasm: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="npm's package of DuckDB-WASM, which then answers for the feature table in the browser: for studies whose table "
            "is too large to be loaded whole. Get it with: npm pack @duckdb/duckdb-wasm@1.28.0",
            show_default="the table is loaded whole",
        ),
    ] = None,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Write a study as plain files: every page that needs no engine, opened from the folder itself or from any file server.

    Example: seedscope site mine out --filter bucket=stable
    """
    from seedscope.engine.progress import Progress

    with refusals(), Progress(quiet=quiet).stage(f"writing the site of {study}", "features") as report:
        from seedscope.app.site.make import make_site

        made = make_site(root or default_root(), study, folder, filter=filter, duckdb_wasm=duckdb_wasm, report=report)
    rest = (made.n_bytes - made.n_data_bytes) / 1e6
    print(
        f"{made.n_features:,} features, {made.n_files:,} files, {made.n_bytes / 1e6:,.1f} MB: {folder / 'index.html'}"
    )
    print(f"data: {made.mb_per_thousand:.2f} MB per 1,000 features; pages and scripts: {rest:,.1f} MB")
    if made.n_thinned:
        print(f"{made.n_thinned:,} features show their strongest contexts alone; `seedscope export` holds all")
