"""Which store of a study is published: the file CURRENT beside the stores. Standard library only."""

from pathlib import Path

CURRENT = "CURRENT"  # file beside the stores: line 1 names the published store, line 2 what it was built from


def published(folder: Path) -> tuple[str, str] | None:
    """(store file name, what it was built from) of a study folder, or None where nothing is published."""
    try:
        name, built_from = (folder / CURRENT).read_text().splitlines()
    except (FileNotFoundError, ValueError):
        return None
    return (name, built_from) if (folder / name).is_file() else None
