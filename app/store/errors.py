"""The two refusals of an address, NotFound and BadValue: what was found, what was expected; and OneMember, which is none."""

from dataclasses import dataclass

from seedscope.app.store.missing import Missing


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
