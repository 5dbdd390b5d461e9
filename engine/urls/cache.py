"""Files behind URLs as files of this machine: fetched below the root, once, and again where the storage has others by now.

`ROOT/.urls/files/SCHEME/BUCKET/..` mirrors the storage, so that what stands beside or above a file is found there as well. A
mark for each file keeps what the storage said of it (checksum and size, else time and size): a file is served only while the
storage says the same, and one of which it says nothing is fetched every time. Files arrive whole under a temporary name, so a
stopped fetch goes on behind the last. The folder can be removed at any time.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import count
from pathlib import Path

import fsspec
from fsspec.callbacks import Callback
from natsort import natsorted

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.names import inside
from seedscope.engine.contract.urls import SCHEMES, url_in
from seedscope.engine.progress import Progress, Report
from seedscope.engine.urls.storage import RemoteFile, beside, folders_matching, is_pattern, listed, one, storage

FOLDER = ".urls"  # in the root; no name of a study begins with a dot
ROOT_VARIABLE = "SEEDSCOPE_ROOT"
AT_ONCE = 8  # files that are on their way at a time
SPARE = 2**28  # bytes that a fetch leaves free on the disk
FORGOTTEN_S = 86_400  # age of unfinished files of processes that were killed
_NUMBERS = count()


class FetchSettings:
    """Where this process keeps what it fetches, and how it shows that it does."""

    root: Path | None = None
    progress: Progress | None = None


def fetch_below(root: Path, progress: Progress | None = None) -> None:
    """Keep what this process fetches below a root (until then below $SEEDSCOPE_ROOT, else ./seedscope-data)."""
    FetchSettings.root, FetchSettings.progress = root, progress


def cache_folder() -> Path:
    """The folder of everything that was fetched."""
    root = FetchSettings.root or Path(os.environ.get(ROOT_VARIABLE, "seedscope-data"))
    return root.absolute() / FOLDER


def progress_shown() -> Progress:
    """Where fetching and putting report."""
    return FetchSettings.progress or Progress()


def with_urls(text: str) -> str:
    """A text with the URLs of fetched files in place of where they lie here."""
    files = f"{cache_folder() / 'files'}{os.sep}"
    if files not in text:
        return text
    for scheme in SCHEMES:
        text = text.replace(f"{files}{scheme}/", f"{scheme}://")
    return text


def fetch(
    url: str, *, settings_beside: Callable[[str], bool] | None = None, above: Collection[str] = (), levels: int = 0
) -> Path:
    """The file or folder at a URL, as a file or folder here that holds what the storage holds, and no more.

    Of a single file, those in its folder whose names `settings_beside` accepts come with it; and in any case files named `above`
    in as many folders over it as `levels` says. Raises ValueError where nothing is there, where the storage cannot be asked, and
    where a file changes while it is fetched.
    """
    with storage(url) as system:
        files = listed(system, url)
        if not files:
            raise ValueError(f"found nothing at {url}; check bucket and path")
        is_file = set(files) == {url}
        if is_file and settings_beside:
            folder = url.rpartition("/")[0]
            around = beside(system, folder)
            wanted = {each: file for each, file in around.items() if settings_beside(each.rpartition("/")[2])}
            _forget(local_path(folder).glob("*"), around)
            files = wanted | files
        parent = url.rpartition("/")[0] if is_file else url
        for folder in _folders_over(parent, levels):
            for name in above:
                path = f"{folder}/{name}"
                if (found := one(system, path)) is not None:
                    files[path] = found
                else:
                    _remove(local_path(path))
        _bring(system, url, files)
        if not is_file:
            _forget(local_path(url).rglob("*"), files)
    return local_path(url)


def fetch_matching(url: str, *, beside_suffix: str = "", is_wanted: Callable[[str], bool] | None = None) -> list[Path]:
    """The files that a URL or a pattern names, in the order of their paths.

    Of those that end in `beside_suffix`, files in their folder whose names are wanted come with them. Raises ValueError as `fetch`
    does, and for a folder.
    """
    with storage(url) as system:
        files = listed(system, url)
        if not is_pattern(url) and set(files) != {url}:
            what = "is a folder" if files else "is not there"
            raise ValueError(f"{url} {what}, expected files; name them with a pattern such as {url}/*.txt")
        if not files:
            raise ValueError(f"found no file at {url}, expected at least one; check bucket and pattern")
        wanted = dict(files)
        if is_wanted:
            for folder in sorted({each.rpartition("/")[0] for each in files if each.lower().endswith(beside_suffix)}):
                around = beside(system, folder)
                wanted |= {each: file for each, file in around.items() if is_wanted(each.rpartition("/")[2])}
                _forget(local_path(folder).glob("*"), around)
        _bring(system, url, wanted)
    return sorted(map(local_path, files))


def fetch_named(url: str, names: Iterable[str]) -> Path:
    """Some files below a folder, and no others of it; raises ValueError as `fetch` does, and for one that is not there."""
    with storage(url) as system:
        there = listed(system, url)
        files = {}
        for name in names:
            path = f"{url}/{inside(name).as_posix()}"
            if path not in there:
                raise ValueError(
                    f"found no {path}: its upload was stopped, or it was removed since; export the study again"
                )
            files[path] = there[path]
        _bring(system, url, files)
        _forget(local_path(url).rglob("*"), files)
    return local_path(url)


def local_path(url: str) -> Path:
    """Where the file of a URL lies once it was fetched."""
    return _place("files", url)


def _mark_of(path: Path) -> Path:
    """The mark of a fetched file."""
    top = cache_folder()
    relative = path.relative_to(top / "files")
    return (top / "marks" / relative).with_name(f"{relative.name}.json")


def _place(kind: str, url: str) -> Path:
    scheme, rest = url.split("://", 1)
    return cache_folder() / kind / scheme / inside(rest.strip("/"))


def _folders_over(url: str, levels: int) -> list[str]:
    """The URLs of the folders over one, nearest first, up to its bucket."""
    found = []
    for _ in range(levels):
        url = url.rpartition("/")[0]
        if not url.partition("://")[2].strip("/"):  # no bucket is left
            break
        found.append(url)
    return found


def _is_current(file: RemoteFile) -> bool:
    """Whether what lies here is what the storage has now."""
    path = local_path(file.url)
    try:
        mark, status = json.loads(_mark_of(path).read_text()), path.stat()
        return file.stamp is not None and mark == _mark(file, status)
    except (OSError, ValueError):
        return False


def _mark(file: RemoteFile, status: os.stat_result) -> dict[str, object]:
    return {"url": file.url, "stamp": file.stamp, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _forget(paths: Iterable[Path], files: dict[str, RemoteFile]) -> None:
    """Remove fetched files that the storage does not have as they lie here."""
    for path in list(paths):
        if path.is_file():
            file = files.get(with_urls(str(path)))
            if file is None or not _is_current(file):
                _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
        _mark_of(path).unlink(missing_ok=True)


def _bring(system: fsspec.AbstractFileSystem, url: str, files: dict[str, RemoteFile]) -> None:
    """Fetch those files that do not lie here as they are."""
    missing = [file for file in files.values() if not _is_current(file)]
    if not missing:
        return
    top = cache_folder()
    unfinished = top / "unfinished"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {top} ({error.strerror}), where files of {url} are kept") from None
    _clear(unfinished)
    total, free = sum(file.size for file in missing), shutil.disk_usage(top).free
    if total + SPARE > free:
        raise ValueError(
            f"{url} has {total / 1e9:,.1f} GB to fetch, and {free / 1e9:,.1f} GB are free under {top}; choose another --root"
        )
    with progress_shown().stage(f"fetching {url}", "bytes") as report:
        moved_in_parallel([_fetcher(system, file, unfinished) for file in missing], total, report)
    again = listed(system, url)
    for file in missing:  # one that was replaced meanwhile may hold parts of both
        now = again.get(file.url) or one(system, file.url)
        if now is None or now.stamp != file.stamp:
            _remove(local_path(file.url))
            raise ValueError(f"{file.url} changed while it was fetched; give the same command again")


def _fetcher(system: fsspec.AbstractFileSystem, file: RemoteFile, unfinished: Path) -> Callable[[Callback], None]:
    def run(callback: Callback) -> None:
        temporary = unfinished / f"{os.getpid()}-{next(_NUMBERS)}"
        path = local_path(file.url)
        try:
            system.get_file(file.url, str(temporary), callback=callback)
            size = temporary.stat().st_size
            if size != file.size:
                raise ValueError(
                    f"{file.url} gave {size:,} bytes, its storage says {file.size:,}; give the same command again"
                )
            if file.changed is not None:
                os.utime(temporary, (file.changed, file.changed))
            _keep(temporary, path)
            mark = _mark_of(path)
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_whole(mark, json.dumps(_mark(file, path.stat())), durable=False)
        finally:
            temporary.unlink(missing_ok=True)

    return run


def _keep(temporary: Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ValueError(
            f"{with_urls(str(path))} is a file and a folder at once in its storage, which no disk can hold; rename one"
        ) from None


def moved_in_parallel(moves: list[Callable[[Callback], None]], total: int, report: Report) -> None:
    """Run moves of files, some at a time, and report their bytes together; the first failure stops those not yet begun."""
    lock, done = threading.Lock(), 0

    class _Bytes(Callback):
        def relative_update(self, inc: int = 1) -> None:
            nonlocal done
            super().relative_update(inc)
            with lock:
                done += inc
                report(min(done, total), total)

    report(0, total)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(move, _Bytes()) for move in moves]
        try:
            for each in as_completed(running):
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    report(total, total)


def _clear(unfinished: Path) -> None:
    """Remove what processes left that were killed long ago."""
    for path in unfinished.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                path.unlink()


def require_there(url: str) -> None:
    """Raise ValueError where a URL or a pattern names nothing that can be listed; nothing is fetched."""
    with storage(url) as system:
        if not listed(system, url):
            raise ValueError(f"found nothing at {url}; check bucket and path")


def each_of(source: str) -> list[str]:
    """A source as it is; of a URL with a pattern, the URLs of the files and folders that match it, in natural order.

    Raises ValueError where none does.
    """
    url = url_in(source)
    if url is None or not is_pattern(url):
        return [source]
    with storage(url) as system:
        found = folders_matching(system, url)
    if not found:
        raise ValueError(f"found nothing that {url} matches; check bucket and pattern")
    return natsorted(found)
