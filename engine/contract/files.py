"""Files that others read while we write: small ones complete or not there, folders changed by one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in one step: a reader, or a stop in between, sees the old content or the new one.

    `durable` waits for the disk, so that this holds for a power cut as well: milliseconds.
    """
    with whole(path, durable=durable) as file:
        file.write(text.encode())


@contextmanager
def whole(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes its place when the block ends."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        yield file
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a study's lock, making its folder; raises RuntimeError where another process is changing it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is building {folder}; wait for it or stop it") from None
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # what was refused leaves no empty study behind
                shutil.rmtree(folder)
