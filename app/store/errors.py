"""The two refusals of an address, NotFound and BadValue: what was found, what was expected; OneMember, which is none; damage."""

from dataclasses import dataclass
from pathlib import Path

from seedscope.app.store.missing import Missing
from seedscope.engine.contract.index.opening import IndexNotMadeError
from seedscope.engine.contract.store_file import DamagedStoreError


class NotFound(LookupError):
    """Something named in a URL does not exist; says what was found and what there is."""

    def __init__(self, what: str, found: object, expected: str) -> None:
        super().__init__(f"no {what} {found!r}; there is {expected}")
        self.what, self.found, self.expected = what, str(found), expected


@dataclass
class BadValue(Exception):
    """A value in a URL that cannot be used, found only after parsing."""

    name: str
    found: str
    expected: str


@dataclass
class OneMember(Exception):
    """A page compares members, and the ensemble has one: it says so instead, with what would add others."""

    study: str
    ensemble: str
    missing: list[Missing]


class DamagedIndexError(Exception):
    """A file of an index that cannot be read as it was written; the index is made again at the next request."""

    def __init__(self, store: Path, file: Path, reason: str) -> None:
        super().__init__(f"{file} cannot be read: {reason}")
        self.path, self.reason = (
            store,
            f"{file.name} of its index cannot be read ({reason[:200]}); it is made again: ask again",
        )


UNREADABLE = (
    DamagedStoreError,
    DamagedIndexError,
    IndexNotMadeError,
)  # what reading a study may find; each has path and reason
