"""Read a token set for rule search: the conditions that each token type fulfils, and the place of each token in its text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from seedscope.engine.activations.tokens import PADDING, TokenSet
from seedscope.engine.explanations.rules import BRACKETS, QUOTES, conditions

SPECIAL = frozenset("\n\\" + QUOTES + "".join(BRACKETS) + "".join(BRACKETS.values()))
DEEPEST = 30  # brackets within brackets that are counted
STRING_PREFIXES = frozenset({"r", "b", "f", "u", "rb", "br", "rf", "fr"})
IN_FRONT = ("token", "family", "class")  # kinds of conditions that rules put to the token in front


class Reading:
    """One token set and its texts, read once for any number of features and members.

    Memory: about 10 bytes per token of the set and 4 per condition of every token type that occurs (about 20 each). Takes
    about a second per 50,000 types and per 500,000 tokens. Where a window goes on from the one before it, so do brackets and
    strings; elsewhere a window is read as if it began outside of them.
    """

    def __init__(self, tokens: TokenSet, texts: Sequence[str]) -> None:
        flat, n_ctx = tokens.ids.ravel(), tokens.ids.shape[1]
        counted = tokens.counted.ravel()
        used, local = np.unique(flat[counted], return_inverse=True)
        self.n_types = len(used)  # the type number n_types is no type: it fulfils nothing
        self.type = np.full(len(flat), self.n_types, np.int32)
        self.type[counted] = local
        self.in_front = np.r_[np.int32(self.n_types), self.type[:-1]]
        self.in_front[::n_ctx] = self.n_types
        names = [texts[i] for i in used]
        here, in_front = _Columns(), _Columns()
        for row, text in enumerate(names):
            for kind, what in conditions(text):
                here.add(row, (kind, what))
                if kind in IN_FRONT:
                    in_front.add(row, (kind, what))
        self.here, self.before = here.matrix(self.n_types), in_front.matrix(self.n_types)
        self.place = _places(tokens, names, self.type, self.in_front)


class Conditions(NamedTuple):
    """Token types x conditions."""

    names: list[tuple[str, str]]  # (kind, what) of each column
    number: dict[tuple[str, str], int]  # its inverse
    starts: np.ndarray  # of each type's columns, and of the type that is none
    columns: np.ndarray
    types: sparse.csc_matrix  # the same by column

    def expand(self, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index into `types`, column) of everything that these types fulfil."""
        sizes = self.starts[types + 1] - self.starts[types]
        row = np.repeat(np.arange(len(types)), sizes)
        return row, self.columns[np.arange(len(row)) + np.repeat(self.starts[types] - np.cumsum(sizes) + sizes, sizes)]

    def fulfilling(self, columns: Sequence[int]) -> np.ndarray:
        """The types that fulfil any of these conditions."""
        return np.concatenate([self.types.indices[self.types.indptr[c] : self.types.indptr[c + 1]] for c in columns])


class _Columns:
    """Conditions numbered as they are met."""

    def __init__(self) -> None:
        self._number: dict[tuple[str, str], int] = {}
        self._rows: list[int] = []
        self._columns: list[int] = []

    def add(self, row: int, name: tuple[str, str]) -> None:
        self._rows.append(row)
        self._columns.append(self._number.setdefault(name, len(self._number)))

    def matrix(self, n_types: int) -> Conditions:
        """Two token types of one text are one token; a family or an affix of a single text says no more than the text."""
        ones = np.ones(len(self._rows), bool)
        shape = (n_types + 1, max(len(self._number), 1))
        matrix = sparse.csr_matrix((ones, (self._rows, self._columns)), shape)
        names = list(self._number)
        is_loose = np.array([kind not in ("token", "class") for kind, _ in names] or [True])
        kept = np.flatnonzero(~is_loose | (np.asarray(matrix.sum(0)).ravel() > 1))
        matrix = matrix[:, kept]
        names = [names[i] for i in kept] if names else []
        return Conditions(
            names, {name: i for i, name in enumerate(names)}, matrix.indptr, matrix.indices, matrix.tocsc()
        )


def _places(tokens: TokenSet, names: list[str], types: np.ndarray, in_front: np.ndarray) -> np.ndarray:
    """Bit i of each token of the set: whether it stands at PLACES[i]."""
    names = [*names, ""]
    has_bos, (n_windows, n_ctx) = int(tokens.bos is not None), tokens.ids.shape
    real = types < len(names) - 1
    window_start = np.zeros((n_windows, n_ctx), bool)
    window_start[:, has_bos] = True

    def of(predicate: Callable[[str], bool]) -> np.ndarray:
        return np.array([predicate(name) for name in names], bool)

    ends_line = of(lambda name: "\n" in name and not name.rsplit("\n", 1)[1].strip())
    blank = of(lambda name: name != "" and not name.strip())
    line_start = ends_line[in_front]
    for _ in range(2):  # indentation may be tokens of its own
        line_start |= blank[in_front] & np.r_[False, line_start[:-1]]
    line_start &= ~ends_line[types]
    goes_on = of(lambda name: _in_word(name[-1:]))[in_front] & of(lambda name: _in_word(name[:1]))[types]
    brackets, string, long_string = _nesting(tokens, names, types, in_front)
    place = np.zeros(types.shape, np.uint8)
    for bit, flag in enumerate((window_start.ravel(), line_start, brackets, string, long_string, goes_on)):
        place |= (flag & real).astype(np.uint8) << bit
    return place


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _nesting(tokens: TokenSet, names: list[str], types: np.ndarray, in_front: np.ndarray) -> np.ndarray:
    """(3, tokens): whether each lies wholly inside brackets, inside a string literal, and inside one of several lines.

    Quotation marks end with the line unless they are threefold; a blank line outside of strings closes all brackets.
    """
    n_ctx = tokens.ids.shape[1]
    n_real = (tokens.ids != PADDING).sum(1) - int(tokens.bos is not None)
    same = np.r_[False, tokens.document[1:] == tokens.document[:-1]]
    goes_on = same & np.r_[False, tokens.start[1:] == tokens.start[:-1] + n_real[:-1]]
    begins = np.zeros(len(types), bool)
    begins[np.flatnonzero(~goes_on) * n_ctx] = True
    escapes = np.array(["\\" in name for name in names])
    matters = np.array([not SPECIAL.isdisjoint(name) for name in names])[types] | escapes[in_front] | begins
    at = np.flatnonzero(matters)
    word_before = np.array([name[-1:].isalnum() and name.strip().lower() not in STRING_PREFIXES for name in names])
    memo: dict[tuple[_State, int, bool], _State] = {}
    state, after = _OUTSIDE, np.zeros((3, len(at)), bool)
    for i, (new, kind, behind_word) in enumerate(
        zip(begins[at].tolist(), types[at].tolist(), word_before[in_front[at]].tolist(), strict=True)
    ):
        key = (_OUTSIDE if new else state, kind, behind_word)
        state = memo.get(key) or memo.setdefault(key, _read(key[0], names[kind], behind_word))
        after[:, i] = state.depth > 0, state.quote != "", len(state.quote) == 3
    each = np.cumsum(matters) - 1  # position 0 always matters
    now = after[:, each]
    former = np.roll(now, 1, 1)
    former[:, begins] = False
    return now & former


class _State(NamedTuple):
    depth: int
    quote: str  # that a string was begun with; empty outside of strings
    escaped: bool


_OUTSIDE = _State(0, "", False)


def _read(state: _State, text: str, behind_word: bool) -> _State:
    """The state behind a token; an apostrophe within a word begins no string."""
    depth, quote, escaped = state
    i = 0
    while i < len(text):
        c, step = text[i], 1
        if escaped:
            escaped = False
        elif quote:
            if c == "\\":
                escaped = True
            elif text.startswith(quote, i):
                step, quote = len(quote), ""
            elif c == "\n" and len(quote) == 1:
                quote = ""
        elif c in QUOTES:
            in_word = (
                behind_word if i == 0 else text[i - 1].isalnum() and text[:i].strip().lower() not in STRING_PREFIXES
            )
            if c == '"' or not in_word:
                quote = 3 * c if text.startswith(3 * c, i) else c
                step = len(quote)
        elif c in BRACKETS:
            depth = min(depth + 1, DEEPEST)
        elif c in BRACKETS.values():
            depth = max(depth - 1, 0)
        elif c == "\n" and "\n" in text[:i]:
            depth = 0
        i += step
    return _State(depth, quote, escaped)
