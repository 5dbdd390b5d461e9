"""Puts a finished folder at a URL: into an empty place, what describes it last, so that no reader takes half of it for whole."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fsspec
from fsspec.callbacks import Callback

from seedscope.engine.urls.cache import moved_in_parallel, progress_shown
from seedscope.engine.urls.storage import listed, storage

PROBE = ".seedscope-write-probe"


def require_empty(url: str) -> None:
    """Raise ValueError where something lies at a URL already, or where nothing may be written there: a file is put and removed."""
    with storage(url) as system:
        if found := listed(system, url):
            first = sorted(found)[0]
            raise ValueError(
                f"{url} has {len(found)} files in it ({first}{', ..' if len(found) > 1 else ''}), expected a new or empty folder; "
                "name another one, or empty it"
            )
        probe = f"{url}/{PROBE}-{os.getpid()}"
        _put_bytes(system, probe)
        system.rm_file(probe)


def _put_bytes(system: fsspec.AbstractFileSystem, url: str) -> None:
    with suppress(NotImplementedError):  # not every storage has folders
        system.makedirs(url.rpartition("/")[0], exist_ok=True)
    system.pipe_file(url, b"")


def upload(folder: Path, url: str, last: str) -> None:
    """Put all files of a folder at a URL: weights and tables, then descriptions (.json), then the file called `last`.

    Sizes are compared before `last` is put. Raises ValueError as `engine.urls.storage` does; then what was put is removed again,
    as far as that is possible.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rounds = [[path for path in files if _round(path, folder / last) == number] for number in range(3)]
    total, before = sum(path.stat().st_size for path in files), 0
    put: list[str] = []
    with storage(url) as system, progress_shown().stage(f"putting {url}", "bytes") as report:
        try:
            for number, paths in enumerate(rounds):
                if number == 2:
                    _require_sizes(system, folder, url, [*rounds[0], *rounds[1]])
                moves = [_putter(system, path, f"{url}/{path.relative_to(folder).as_posix()}", put) for path in paths]
                size, offset = sum(path.stat().st_size for path in paths), before
                moved_in_parallel(moves, size, lambda done, _, offset=offset: report(offset + done, total))  # type: ignore[misc]
                before += size
        except BaseException:
            _take_back(system, put)
            raise


def _round(path: Path, last: Path) -> int:
    return 2 if path == last else int(path.suffix == ".json")


def _putter(system: fsspec.AbstractFileSystem, path: Path, url: str, put: list[str]) -> Callable[[Callback], None]:
    def run(callback: Callback) -> None:
        put.append(url)
        system.put_file(str(path), url, callback=callback)

    return run


def _require_sizes(system: fsspec.AbstractFileSystem, folder: Path, url: str, files: list[Path]) -> None:
    there = listed(system, url)
    for path in files:
        at = f"{url}/{path.relative_to(folder).as_posix()}"
        size = path.stat().st_size
        if at not in there or there[at].size != size:
            found = f"{there[at].size:,} bytes" if at in there else "nothing"
            raise ValueError(
                f"{at} holds {found} after it was put, expected {size:,} bytes; give the same command again"
            )


def _take_back(system: fsspec.AbstractFileSystem, put: list[str]) -> None:
    """Remove what was put, without the file that makes it whole: what cannot be removed is never taken for an export."""
    for url in reversed(put):
        with suppress(Exception):  # the failure that led here is the one to tell
            system.rm_file(url)
