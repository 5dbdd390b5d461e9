"""Writing files that other processes read meanwhile: text files replaced in one step, and a lock on a study's folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from seedscope.engine.contract.holders import forget_holder, note_holder, who_holds


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a text file in one step: a reader sees the old content or the new one, also if this process is killed.

    `durable` waits for the disk, a few milliseconds, so that this holds for a power cut as well.
    """
    with whole(path, durable=durable) as file:
        file.write(text.encode())


@contextmanager
def whole(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a temporary file beside `path`, which replaces it when the block ends without an error."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        yield file
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make a study's folder and hold its lock; raises RuntimeError, which says who holds it, where another process does.

    The lock is the operating system's (flock on `.lock`), so it ends with the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another process is building {folder}: {who_holds(file)}; wait for it or stop it") from None
    note_holder(file)
    try:
        yield
    finally:
        forget_holder(file)
        if [path.name for path in folder.iterdir()] == [".lock"]:  # work that was refused leaves no empty study behind
            shutil.rmtree(folder)
        lock.release()
