"""Storage behind URLs for tests: fsspec's own, written with fsspec alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import fsspec

from seedscope.engine.progress import Progress
from seedscope.engine.urls.cache import FetchSettings, fetch_below


def put(path: Path, url: str) -> str:
    """Put a file or all files of a folder at a URL; gives the URL back."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    system = fsspec.filesystem(url.split("://", 1)[0])
    for each in files:
        system.pipe_file(url if each == path else f"{url}/{each.relative_to(path).as_posix()}", each.read_bytes())
    return url


def contents(url: str) -> Mapping[str, bytes]:
    """{path below a URL: bytes} of everything there."""
    system = fsspec.filesystem(url.split("://", 1)[0])
    system.invalidate_cache()
    top = system._strip_protocol(url)
    return {name.removeprefix(top).lstrip("/"): system.cat_file(name) for name in system.find(url)}


def files_in(folder: Path) -> Mapping[str, bytes]:
    """The same of a folder of this machine."""
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@contextmanager
def emptied_memory(root: Path) -> Iterator[Path]:
    """An empty store behind `memory://`, and a root that this process fetches below meanwhile."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    fetch_below(root, Progress(quiet=True))
    try:
        yield root
    finally:
        FetchSettings.root = FetchSettings.progress = None
        system.store.clear()
        system.pseudo_dirs[:] = [""]
