"""A folder that is written under another name: whole under its own, or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside this one; it takes its name when the block ends, and vanishes if anything goes wrong.

    Raises ValueError where something cannot be written, or the name was taken meanwhile.
    """
    folder = folder.resolve()
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}.tmp")  # no name of a study begins with a dot
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder} ({error}); nothing is left of it. Choose another place") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
