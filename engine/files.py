"""Small files that others read: complete or not there."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a reader, or a stop in between, sees the old content or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
