"""Rules about tokens that a person can check at a glance: their parts, their words, and what a token's text fulfils.

A rule says on which tokens a feature fires: one atom, or two that hold together. An atom is about the token itself, about
the token in front of it, or about the place it stands at. Rules are plain text: what stands in tokens is quoted, white
space is named.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from seedscope.engine.features.triggers import family

BRACKETS = {"(": ")", "[": "]", "{": "}"}
QUOTES = "\"'"
OPERATORS = frozenset("=+-*/%<>!&|^~@")
AFFIX = (2, 3, 4)  # characters of beginnings and ends
INSIDE = 3  # characters of a substring
FRAGMENT = re.compile(r"(<0x[0-9A-F]{2}>)+")  # a part of a character, as token texts spell it
HERE, BEFORE, PLACE = "here", "before", "place"  # what an atom is about
PLACES = {  # in the order of the bits that tell them
    "window start": "at the start of a window",
    "line start": "at the start of a line",
    "brackets": "inside brackets",
    "string": "inside a string",
    "long string": "inside a string of several lines",
    "continuation": "that goes on a word",
}
CLASSES: dict[str, tuple[str, Callable[[str], bool]]] = {  # name: (in words, whether a token's text is one)
    "number": ("a number", lambda text: text.strip().isdigit()),
    "digit": ("a token with a digit", lambda text: any(c.isdigit() for c in text)),
    "line break": ("a line break", lambda text: "\n" in text and not text.strip()),
    "blank line": ("a blank line", lambda text: text.count("\n") > 1 and not text.strip()),
    "white space": ("white space", lambda text: text != "" and not text.strip()),
    "punctuation": ("punctuation", lambda text: bool(_bare(text))),
    "opening bracket": ("an opening bracket", lambda text: any(c in BRACKETS for c in _bare(text))),
    "closing bracket": ("a closing bracket", lambda text: any(c in BRACKETS.values() for c in _bare(text))),
    "quote": ("a quotation mark", lambda text: any(c in QUOTES for c in _bare(text))),
    "operator": ("an operator", lambda text: bool(_bare(text)) and set(_bare(text)) <= OPERATORS),
    "capitalised": ("a capitalised word", lambda text: len(_word(text)) > 1 and _word(text).istitle()),
    "all caps": ("a word in ALL CAPS", lambda text: len(_word(text)) > 1 and _word(text).isupper()),
    "lower case": ("a lower-case word", lambda text: len(_word(text)) > 1 and _word(text).islower()),
    "whole": ("a word behind a space", lambda text: text[:1] == " " and len(_word(text)) > 1),
    "letter": ("a single letter", lambda text: len(text.strip()) == 1 and text.strip().isalpha()),
    "identifier": ("an identifier", lambda text: _is_identifier(text.strip())),
    "not ASCII": ("a token beyond ASCII", lambda text: not text.isascii()),
    "fragment": ("a part of a character", lambda text: bool(FRAGMENT.fullmatch(text))),
}


class Atom(NamedTuple):
    """One condition; of several words or tokens any one fulfils it."""

    about: str  # HERE, BEFORE or PLACE
    kind: str  # token, family, prefix, suffix, substring, class; place for a place
    what: tuple[str, ...]


Rule = tuple[Atom, ...]  # one atom or two


def conditions(text: str) -> Iterator[tuple[str, str]]:
    """(kind, what) of everything that holds for a token of this text; affixes are shorter, substrings lie anywhere in it."""
    yield "token", text
    if word := family(text):
        yield "family", word
    for name, (_, holds) in CLASSES.items():
        if holds(text):
            yield "class", name
    bare = text.strip()
    if not any(c.isalpha() for c in bare) or FRAGMENT.fullmatch(text):
        return
    for n in AFFIX:
        if len(bare) > n:
            yield "prefix", bare[:n]
            yield "suffix", bare[-n:]
    for gram in sorted({bare[i : i + INSIDE] for i in range(len(bare) - INSIDE + 1)}):
        yield "substring", gram


def fulfils(atom: Atom, text: str) -> bool:
    """Whether a token's text alone fulfils an atom about tokens."""
    return any((atom.kind, each) in set(conditions(text)) for each in atom.what)


def sentence(rule: Rule) -> str:
    """A rule in words: `the token " def"`, `a number inside brackets`, `any token after " import"`."""
    here = [atom for atom in rule if atom.about == HERE]
    here.sort(key=lambda atom: ("class", "token", "family", "prefix", "suffix", "substring").index(atom.kind))
    noun = _noun(here[0]) if here else "any token"
    for i, atom in enumerate(here[1:]):
        plural = here[0].kind in ("prefix", "suffix", "substring")
        noun += f"{' and' if plural or i else ' that'} {_verb(atom, plural)}"
    order = ("after", "that", "at", "inside")
    behind = sorted((_modifier(a) for a in rule if a.about != HERE), key=lambda words: order.index(words.split()[0]))
    return noun + "".join(f" {'and ' if i else ''}{words}" for i, words in enumerate(behind))


def show(text: str) -> str:
    """A token in a sentence: quoted, with white space that would not be seen named."""
    breaks = text.count("\n")
    if text and not text.strip(" \n"):
        spaces = len(text.rsplit("\n", 1)[-1])
        if breaks:
            return "⏎" * breaks + (f" with an indentation of {_spaces(spaces)}" if spaces else "")
        return _spaces(spaces)
    visible = "".join({"\n": "⏎", "\t": "⇥"}.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    mark = "'" if '"' in visible and "'" not in visible else '"'
    return f"{mark}{visible}{mark}"


def _spaces(n: int) -> str:
    return "one space" if n == 1 else f"{n} spaces"


def _noun(atom: Atom) -> str:
    if atom.kind == "token":
        return f"the token{'s' if len(atom.what) > 1 else ''} {_any(atom.what)}"
    if atom.kind == "family":
        return _forms(atom.what)
    if atom.kind == "class":
        return _classes(atom.what)
    return f"tokens that {_verb(atom, plural=True)}"


def _verb(atom: Atom, plural: bool) -> str:
    singular = {"prefix": "begins with", "suffix": "ends in", "substring": "contains"}
    several = {"prefix": "begin with", "suffix": "end in", "substring": "contain"}
    return f"{(several if plural else singular)[atom.kind]} {_any(atom.what)}"


def _modifier(atom: Atom) -> str:
    if atom.about == PLACE:
        return PLACES[atom.what[0]]
    return f"after { {'token': _any, 'family': _forms, 'class': _classes}[atom.kind](atom.what) }"


def _forms(words: tuple[str, ...]) -> str:
    """Words in any case, with or without a space or a plural's s; signs with or without a space."""
    if any(any(c.isalpha() for c in word) for word in words):
        return f"{_any(words)} in any form"
    return f"{_any(words)} with or without a space"


def _classes(names: tuple[str, ...]) -> str:
    return _listed([CLASSES[name][0] for name in names])


def _any(texts: tuple[str, ...]) -> str:
    return _listed([show(text) for text in texts])


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bare(text: str) -> str:
    """Text of signs alone, without spaces; empty where there is a letter or a digit."""
    bare = "".join(text.split())
    return "" if any(c.isalnum() for c in bare) else bare


def _word(text: str) -> str:
    """Text of letters alone, without spaces around; empty where there is anything else."""
    word = text.strip()
    return word if word.isalpha() else ""


def _is_identifier(word: str) -> bool:
    """Names as programs have them: with an underscore, a digit behind letters, or a capital behind a small letter."""
    humps = any(a.islower() and b.isupper() for a, b in pairwise(word))
    return word.isidentifier() and any(c.isalpha() for c in word) and ("_" in word or humps or not word.isalpha())
