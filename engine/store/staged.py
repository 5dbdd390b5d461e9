"""Writing a folder under a temporary name, so that under its own name it is complete or does not exist."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which takes that name when the block ends; on any error it is removed.

    Raises ValueError where something cannot be written, or where a folder of that name exists by then.
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
