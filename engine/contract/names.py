"""Which names studies and ensembles may have: those that can be a part of a page's address. Standard library only."""

import re
from pathlib import PurePosixPath

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"

# Parts of addresses that are pages themselves: a study or ensemble of such a name could not be opened.
PAGE_NAMES = frozenset(
    {"features", "members", "subspaces", "ablation", "trajectory", "variants", "starts", "synthetic", "pool", "compare",
     "neighbours", "match", "project", "try", "random", "methods", "manual", "jobs", "healthz", "metrics", "docs", "static",
     "index"}
)  # fmt: skip
# Reserved after studies could already have them, and not ambiguous in any address: what has such a name can still be used.
RESERVED_LATER = frozenset({"manual"})

PAGE_SUFFIXES = (".json", ".csv", ".parquet")  # of a page's other forms


def name_problem(name: str, *, exists: bool = False) -> str | None:
    """What is wrong with a study's or ensemble's name; None for one that addresses can hold.

    `exists`: the study or ensemble has the name already, so that names in RESERVED_LATER are allowed.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        return f"expected {NAME_PATTERN}"
    if name in PAGE_NAMES and not (exists and name in RESERVED_LATER):
        return "expected another name: this one is a page"
    if name.endswith(PAGE_SUFFIXES):
        return f"expected a name that does not end in {', '.join(PAGE_SUFFIXES)}: these are other forms of a page"
    return None


def inside(path: str) -> PurePosixPath:
    """A relative path that stays in its folder; raises ValueError for any other."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or not path.isprintable():
        raise ValueError(
            f"{path!r:.200} leads out of its folder, expected a path within it; the study or export was tampered with"
        )
    return relative


def words(text: str) -> set[str]:
    """The words that a text is found by in searches: its runs of letters, digits and underscores, in lower case."""
    return set(re.findall(r"\w+", text.lower()))
