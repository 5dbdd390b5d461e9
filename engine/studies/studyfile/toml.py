"""A TOML file that a person wrote: its tables, the lines on which keys stand, and all that is wrong with it at once.

Python's own reader tells no lines, so they are looked up in the text. Standard library only.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from seedscope.engine.contract.urls import hidden

MOST_PROBLEMS = 20  # that are shown: one screen
LONGEST_SHOWN = 60  # characters of a value

Place = tuple[str | int, ...]  # ("ensemble", 1, "train", "k"): keys, and positions in arrays of tables
Check = Callable[[Any], Any]  # takes a value as read and returns it as used, or raises Unfit

_SKIPPED = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*(?P<key>[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*""")
# What a value consists of as far as its end is concerned. Up to two quotes in front of the closing ones belong to a
# multi-line text.
_PIECE = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}|\'\'\'(?:[^']|'{1,2}(?!'))*'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|.''',
    re.DOTALL,
)


class Unfit(Exception):
    """A value that is refused; the text says what was expected, and how to correct it."""


class Lines:
    """The lines, counted from 1, on which the tables and keys of a valid TOML text begin."""

    def __init__(self, text: str) -> None:
        self._line_of: dict[Place, int] = {}
        for place, offset in _places(text):
            self._line_of.setdefault(place, text.count("\n", 0, offset) + 1)

    def of(self, place: Place) -> int:
        """The line of a key or table; inside arrays and inline tables, or where there is none, of what holds it."""
        while place and place not in self._line_of:
            place = place[:-1]
        return self._line_of.get(place, 1)


def _places(text: str) -> Iterator[tuple[Place, int]]:
    """(place, offset) of every table and key outside inline tables, and of the tables that dotted names imply."""
    table: Place = ()
    counts: dict[Place, int] = {}  # tables so far, of every array of tables
    at = _match(_SKIPPED, text, 0).end()
    while at < len(text):
        begin = at
        if text[at] == "[":
            is_array = text.startswith("[[", at)
            parts, at = _dotted(text, at + 1 + is_array)
            table = ()
            for part in parts[:-1]:
                table = _newest((*table, part), counts)
                yield table, begin
            table = (*table, parts[-1])
            if is_array:
                counts[table] = counts.get(table, 0) + 1
                yield table, begin
            table = _newest(table, counts)
            yield table, begin
            at += 1 + is_array
        else:
            parts, at = _dotted(text, at)
            for n in range(1, len(parts) + 1):
                yield (*table, *parts[:n]), begin
            at = _behind_value(text, at + 1)
        at = _match(_SKIPPED, text, at).end()


def _match(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    """What a pattern matches at an offset; in valid TOML it always does."""
    match = pattern.match(text, at)
    if match is None:
        raise ValueError(f"found no {pattern.pattern} at offset {at}, expected valid TOML")
    return match


def _newest(place: Place, counts: Mapping[Place, int]) -> Place:
    """The last table so far where the place is an array of tables, else the place itself."""
    return (*place, counts[place] - 1) if place in counts else place


def _dotted(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The parts of a dotted key, and the offset of what follows it."""
    parts = []
    while True:
        key = _match(_KEY, text, at)
        part = key["key"]
        parts.append(tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part)
        at = key.end()
        if not text.startswith(".", at):
            return tuple(parts), at
        at += 1


def _behind_value(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        piece = _match(_PIECE, text, at)[0]
        if piece == "\n" and not depth:
            break
        depth += (piece in ("[", "{")) - (piece in ("]", "}"))
        at += len(piece)
    return at


class Problems:
    """What is wrong with a file, collected so that one reading tells all."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self._path, self._lines = path, lines
        self._problems: list[tuple[int, str]] = []

    def add(self, place: Place, problem: str) -> None:
        """Remember a problem with a key or table."""
        name = ".".join(_key_shown(part) for part in place if isinstance(part, str))
        self._problems.append((self._lines.of(place), f"{name} {problem}"))

    def line(self, place: Place) -> int:
        """Where a key or table stands."""
        return self._lines.of(place)

    def raise_any(self) -> None:
        """Raise ValueError with all problems in the order of their lines, if there is any."""
        if not self._problems:
            return
        messages = [f"{self._path}:{line}: {text}" for line, text in sorted(self._problems, key=lambda each: each[0])]
        rest = [f".. and {len(messages) - MOST_PROBLEMS} more"] if len(messages) > MOST_PROBLEMS else []
        count = "1 problem" if len(messages) == 1 else f"{len(messages)} problems"
        raise ValueError("\n".join([f"{self._path} has {count}:", *messages[:MOST_PROBLEMS], *rest]))


class Table:
    """A table whose keys are taken out one by one; what is wrong with one is remembered, and it counts as not given."""

    def __init__(self, content: Mapping[str, Any], place: Place, problems: Problems) -> None:
        self._content, self._place, self._problems = content, place, problems
        self._allowed: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def __iter__(self) -> Iterator[str]:
        """The keys that stand in it, in their order."""
        return iter(self._content)

    def take(self, key: str, check: Check, default: Any = None, *, required: str = "") -> Any:
        """The checked value of a key; `default` where it is missing or unfit. `required` says what must be there."""
        self._allowed.append(key)
        if key not in self._content:
            if required:
                self.wrong(key, f"is missing, expected {required}")
            return default
        try:
            return check(self._content[key])
        except Unfit as unfit:
            self.wrong(key, f"= {shown(self._content[key])}, {unfit}")
            return default

    def table(self, key: str, *, required: str = "") -> "Table | None":
        """The table of a key; None where there is none."""
        content = self.take(key, _table, required=required)
        return None if content is None else Table(content, (*self._place, key), self._problems)

    def tables(self, key: str) -> list["Table"]:
        """The tables of an array of tables; none where it is missing."""
        contents = self.take(key, _tables, [])
        return [Table(content, (*self._place, key, i), self._problems) for i, content in enumerate(contents)]

    def allow(self, *keys: str) -> None:
        """Let keys stand that are not taken."""
        self._allowed += keys

    def wrong(self, key: str, problem: str) -> None:
        """Remember a problem with a key, or with the table itself where the key is empty."""
        self._problems.add((*self._place, key) if key else self._place, problem)

    def line(self, key: str) -> int:
        """Where a key stands."""
        return self._problems.line((*self._place, key))

    @contextmanager
    def alone(self, homes: Mapping[str, str]) -> Iterator[None]:
        """Keys that the block does not take are problems; `homes` names the tables that known keys belong to."""
        yield
        for key in self._content:
            if key in self._allowed:
                continue
            near = get_close_matches(key, self._allowed, n=1)
            way_out = f"did you mean {near[0]}?" if near else "leave it out"
            if key in homes:
                way_out = f"it belongs to {homes[key]}"
            self.wrong(key, f"is not known here, expected {any_of(self._allowed)}; {way_out}")


@contextmanager
def reading(path: Path, *, example: str) -> Iterator[Table]:
    """Yields the top table of a file; raises ValueError behind the block with all problems that were found in it.

    A file that is missing, not UTF-8 or no TOML raises ValueError at once.
    """
    text = _text(path, example)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_syntax(path, text, error)) from None
    problems = Problems(path, Lines(text))
    yield Table(content, (), problems)
    problems.raise_any()


def _text(path: Path, example: str) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"found no file {path}, expected a TOML file such as:\n{example}") from None
    except IsADirectoryError:
        inside = sorted(path.glob("*.toml"))
        way_out = f"name the file, such as {inside[0]}" if inside else "name the file; this folder has none"
        raise ValueError(f"{path} is a folder, expected a TOML file; {way_out}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}), expected a TOML file that you may read") from None
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: found the byte 0x{raw[error.start]:02x}, expected UTF-8; save the file in that encoding"
        ) from None


def _syntax(path: Path, text: str, error: Exception) -> str:
    """One line about a text that is no TOML; the reader's own message names the place in words."""
    message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    place = re.search(r" \(at (line (\d+), column (\d+)|end of document)\)", message)
    line, column = text.rstrip().count("\n") + 1, ""
    if place:
        message = message.replace(place[0], "")
        line, column = (int(place[2]), f" at column {place[3]}") if place[2] else (line, "")
    return (
        f"{path}:{line}: found no valid TOML{column} ({message}), expected lines such as name = \"text\", number = 0.7, "
        "list = [1, 2], [table]; correct this line"
    )  # fmt: skip


def shown(value: Any) -> str:
    """A value as it stands in the file, shortened."""
    if isinstance(value, dict):
        return "{ .. }"
    text = hidden(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}.."


def any_of(words: Sequence[str]) -> str:
    """Words as a choice: a, b or c."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _key_shown(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else shown(key)


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unfit("expected a table: its keys between { and }, or in lines below its name in [ ]")
    return value


def _tables(value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, dict):
        raise Unfit("expected a list of tables; put its name into double brackets, [[ ]]")
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise Unfit("expected tables, each below the name in double brackets, [[ ]]")
    return value
