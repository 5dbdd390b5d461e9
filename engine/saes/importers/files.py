"""What a file is asked before it is opened: that it is one, and that it does not stand for more than it may."""

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

from seedscope.engine.machine import available_memory

LARGEST_JSON = 2**24  # bytes of a config: those of real SAEs have thousands
CHUNK = 2**20  # bytes that are unfolded at once
# Archives may hold so many times their own size, and this much in any case: weights hardly shrink, repeated bytes a thousandfold.
MOST_RATIO, ALWAYS = 20, 2**28


def require_file(path: Path) -> None:
    """Raise ValueError for what is there and no plain file: a pipe would be waited for, a device never ends."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it is for the reader to say that it is missing
        return
    if not stat.S_ISREG(mode):
        kind = next(
            (name for is_kind, name in (
                (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
                (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
            ) if is_kind(mode)),
            "no file",
        )  # fmt: skip
        raise ValueError(f"{path} is {kind}, expected a file")


def require_honest(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError for an archive that declares far more than its own size, or more than there is memory for."""
    own, declared = path.stat().st_size, sum(max(each.file_size, 0) for each in archive.infolist())
    if declared > max(ALWAYS, MOST_RATIO * own):
        raise ValueError(
            f"it declares {declared:,} bytes in an archive of {own:,}: more than {MOST_RATIO} times as many"
        )
    if declared > (free := available_memory()) // 2:
        raise ValueError(f"it declares {declared:,} bytes, and {free:,} bytes of memory are free")


def parsed_json(path: Path) -> Any:
    """The JSON in a file; raises ValueError where it is no plain file, too large, too deep or no JSON, OSError without it."""
    require_file(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes, expected at most {LARGEST_JSON:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its parts are nested too deep") from None


def read_member(archive: zipfile.ZipFile, name: str) -> bytearray:
    """The bytes of a member, never more than the archive declares of it: they are unfolded piece by piece."""
    declared = archive.getinfo(name).file_size
    content = bytearray()
    with archive.open(name) as file:
        while piece := file.read(CHUNK):
            content += piece
            if len(content) > declared:
                raise ValueError(f"{name} holds more than the {declared:,} bytes that it declares")
    return content
