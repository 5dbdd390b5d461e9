"""Exports at a URL: written here, checked, and put there with the manifest last; and fetched as the manifest lists them."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from seedscope.engine.export import manifest
from seedscope.engine.export.formats import export
from seedscope.engine.progress import Progress
from seedscope.engine.urls.cache import cache_folder, fetch, fetch_named, with_urls
from seedscope.engine.urls.upload import require_empty, upload


class Uploaded(NamedTuple):
    """What an export put at a URL."""

    n_files: int
    n_bytes: int


def export_to(
    root: Path, study: str, url: str, *, format: str = "parquet", progress: Progress | None = None
) -> Uploaded:
    """Export a study to a URL of a new or empty folder; the disk holds the export for the time being.

    Raises ValueError, before anything is computed, where something lies there or nothing may be written there, and as
    `engine.export.formats.export` and `engine.urls.upload.upload` do.
    """
    require_empty(url)
    folder = cache_folder() / "outgoing" / f"{study}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with (progress or Progress()).stage(f"exporting {study}", "steps") as report:
            files = export(root, study, folder, format=format, report=report)
        if (folder / manifest.FILE).is_file():  # SAEs of a study without results have none
            manifest.check_files(folder, manifest.read(folder))
        uploaded = Uploaded(len(files), sum(file.stat().st_size for file in files))
        upload(folder, url, manifest.FILE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return uploaded


def fetched_export(url: str) -> Path:
    """An export at a URL as a folder of this machine: the manifest, and the files that it lists.

    Raises ValueError where there is no manifest, as in one whose upload was stopped, and where a file that it lists is missing.
    """
    try:
        folder = fetch(f"{url}/{manifest.FILE}").parent
    except ValueError as error:
        if "found nothing" not in str(error):  # but refused, say
            raise
        raise ValueError(
            f"found no {manifest.FILE} in {url}, which is put there last: no export of SeedScope, or its upload was stopped; "
            "export the study again"
        ) from None
    try:
        exported = manifest.read(folder)
    except ValueError as error:
        raise ValueError(with_urls(str(error))) from None
    return fetch_named(url, [manifest.FILE, *exported.files])
