"""Checksums of a folder's files, kept in it as `sums.json`: they tell a changed, cut or missing file. Standard library only."""

import hashlib
import json
from pathlib import Path

from seedscope.engine.contract.files import write_whole

SUMS = "sums.json"
# (path, size, time of change, sum) of files that this process found whole.
_WHOLE: set[tuple[str, int, int, str]] = set()


def write_sums(folder: Path, *names: str) -> None:
    """Write down size and SHA-256 of every file in a folder, those of folders in it as well; of `names` alone where given."""
    every = [folder / name for name in names] or folder.rglob("*")
    files = sorted(path for path in every if path.is_file() and path != folder / SUMS)
    sums = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in files}
    write_whole(folder / SUMS, json.dumps(sums, indent=0))


def has_sums(folder: Path) -> bool:
    """Whether a folder's checksums were written down; those of earlier versions were not."""
    return (folder / SUMS).exists()


def damaged_file(folder: Path, *, beginning: str = "", read_below: int | None = None) -> str | None:
    """The first file that is not as it was written, by its path in the folder; None where all are, or nothing was written down.

    Only of files whose paths begin with `beginning`. Files of `read_below` bytes and more are told by their size alone.
    """
    if not has_sums(folder):
        return None
    try:
        sums = json.loads((folder / SUMS).read_text())
        listed = {str(name): (int(size), str(digest)) for name, (size, digest) in sums.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return SUMS
    for name, (size, digest) in listed.items():
        if name.startswith(beginning) and not _is_whole(folder / name, size, digest, read_below):
            return name
    return None


def _is_whole(path: Path, size: int, digest: str, read_below: int | None) -> bool:
    try:
        status = path.stat()
        if status.st_size != size:
            return False
        if read_below is not None and size >= read_below:
            return True
        key = str(path), size, status.st_mtime_ns, digest
        if key not in _WHOLE:
            if sha256(path) != digest:
                return False
            _WHOLE.add(key)
    except OSError:
        return False
    return True


def sha256(path: Path) -> str:
    """Over a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
