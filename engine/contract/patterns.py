"""Files that a pattern names, where folders on the way may hold the characters of patterns in their own names."""

import glob
from pathlib import Path


def matches(pattern: str | Path) -> list[str]:
    """Paths that a glob matches, `**` included, in no order; a path that exists as it is written is its only match.

    Folders of the pattern that exist as they are written are taken literally (`runs [v2]/seed*`), and only what follows
    them is a pattern. Where that matches nothing, brackets are taken literally there too.
    """
    path = Path(pattern).expanduser()
    if path.exists():
        return [str(path)]
    literal = next(folder for folder in path.parents if folder.is_dir() or folder == folder.parent)
    rest = str(path.relative_to(literal))
    folder = glob.escape(str(literal))
    paths = glob.glob(str(Path(folder) / rest), recursive=True)
    return paths or glob.glob(str(Path(folder) / rest.replace("[", "[[]")), recursive=True)
