"""Opens a store's index for a web process: where there is none, another process makes it, and this one stays small.

An index of 3 million features takes minutes and a gigabyte to make. Of several processes that want it one has it made; the others
wait for that.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seedscope.engine.contract.environment import INDEX_FOLDER
from seedscope.engine.contract.index.build import is_usable, open_index, temporary_folder
from seedscope.engine.contract.index.layout import index_folder


class IndexNotMadeError(RuntimeError):
    """An index that could not be made: the store is damaged, or there is no room for it."""

    def __init__(self, store: Path, reason: str) -> None:
        super().__init__(f"the index of {store} was not made: {reason}")
        self.path, self.reason = store, f"its index was not made: {reason[:300]}"


def open_index_apart(store: Path) -> Path:
    """As `open_index`, made by a process of its own. Raises IndexNotMadeError with the last line of that process where it fails."""
    folder = index_folder(store)
    if is_usable(folder, store):
        return folder
    with _only_one(store.parent):
        if is_usable(folder, store):  # made while this process waited
            return folder
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "seedscope.engine.contract.index.opening", str(store)],
            env=os.environ | {INDEX_FOLDER: str(temporary_folder())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}"
        raise IndexNotMadeError(store, reason)
    return Path(done.stdout.rstrip("\n"))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which leaves no file there and works where nothing can be written; none where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    print(open_index(Path(sys.argv[1])))
