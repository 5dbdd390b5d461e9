"""Which store of a study is published: the file CURRENT in the study's folder, and all that knows its format.

CURRENT has two lines: the name of the store's file beside it, and what the store was built from. Standard library only.
"""

import re
from pathlib import Path
from typing import NamedTuple

from seedscope.engine.contract.files import write_whole

_CURRENT = "CURRENT"
_STORE = re.compile(r"study-[\w-]+\.duckdb")


class PublishedStore(NamedTuple):
    """The store that a study's folder publishes."""

    name: str  # of its file in that folder
    built_from: str  # what a rebuild of the embedded study is decided by


def published(folder: Path) -> PublishedStore | None:
    """The published store of a study's folder; None where CURRENT or the store's file is missing or unreadable."""
    try:
        name, built_from = (folder / _CURRENT).read_text().splitlines()
    except (OSError, ValueError):
        return None
    is_store = _STORE.fullmatch(name) and (folder / name).is_file()  # no other file, and none elsewhere
    return PublishedStore(name, built_from) if is_store else None


def publish_store(folder: Path, store: PublishedStore) -> None:
    """Write CURRENT in one step: readers see the former store or this one."""
    write_whole(folder / _CURRENT, f"{store.name}\n{store.built_from}\n")


def names_store(folder: Path) -> bool:
    """Whether a study's folder has a CURRENT, be the store that it names there or not."""
    return (folder / _CURRENT).exists()


def folders_with_store(root: Path) -> list[Path]:
    """Folders under a root for which `names_store` holds, in no order; their names may be no names of studies."""
    return [path.parent for path in root.glob(f"*/{_CURRENT}")]
