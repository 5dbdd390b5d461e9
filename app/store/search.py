"""What a search for features means: a part of a token, a whole token in quotes, or words of an explanation."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from seedscope.app.formats import shown_on_one_line
from seedscope.app.store.feature_index import FeatureIndex

Hit = Literal["token", "explanation"]
HITS: tuple[str, ...] = get_args(Hit)  # what a search can find a feature by


def literal_token(q: str) -> str | None:
    """The token that a search in quotes names, spaces included; None for a search without quotes."""
    return q[1:-1] if len(q) > 1 and q[0] == q[-1] == '"' else None


def token_matcher(q: str) -> Callable[[str], bool]:
    """Whether a token is what a search means.

    `" return"` is that token alone, in the same case; one that holds line breaks or other signs that cannot be typed may be
    given as pages show it (`"⏎"`). A quote that is still open means tokens that begin so. Anything else is a part of the token
    in any case.
    """
    literal = literal_token(q)
    if literal is not None:
        return lambda text: literal in (text, shown_on_one_line(text))
    part = q.lower()
    if len(q) > 1 and q[0] == '"':
        begin = q[1:]
        return lambda text: text.startswith(begin) or part in text.lower()
    return lambda text: part in text.lower()


class Found(NamedTuple):
    """Rows that a search finds, ascending, and for each how."""

    rows: np.ndarray
    by_token: np.ndarray
    by_explanation: np.ndarray
    firings: np.ndarray  # on those of its top tokens that the search means


def search_index(index: FeatureIndex, q: str, tokens: Sequence[str]) -> Found:
    """The features that a search finds by a token or by their explanation.

    Of words the last may be the beginning of one, unless a space stands behind it.
    """
    matches = token_matcher(q)
    token_rows, firings = index.rows_of_tokens([i for i, text in enumerate(tokens) if matches(text)])
    explained = _rows_of_words(index, q)
    if len(token_rows) + len(explained) > index.n_rows // 16:  # then counting costs less than sorting
        return _counted(index.n_rows, token_rows, firings, explained)
    rows, places = np.unique(np.concatenate([token_rows.astype(np.int64), explained]), return_inverse=True)
    by_token, by_explanation = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    by_token[places[: len(token_rows)]] = True
    by_explanation[places[len(token_rows) :]] = True
    total = np.bincount(places[: len(token_rows)], weights=firings, minlength=len(rows))
    return Found(rows, by_token, by_explanation, total)


def _counted(n_rows: int, token_rows: np.ndarray, firings: np.ndarray, explained: np.ndarray) -> Found:
    """What is found, of rows that may repeat, where it is a large part of all."""
    total = np.bincount(token_rows, weights=firings, minlength=n_rows)
    by_token, by_explanation = np.zeros(n_rows, bool), np.zeros(n_rows, bool)
    by_token[token_rows] = True
    by_explanation[explained] = True
    rows = np.flatnonzero(by_token | by_explanation)
    return Found(rows, by_token[rows], by_explanation[rows], total[rows])


def _rows_of_words(index: FeatureIndex, q: str) -> np.ndarray:
    """Rows whose explanations hold every word of a search."""
    words = [] if literal_token(q) is not None else re.findall(r"\w+", q.lower())
    if not words:
        return np.zeros(0, np.int64)
    *whole, last = words
    found = index.rows_of_words(last) if q[-1:].isspace() else index.rows_of_words(last, last + chr(0x10FFFF))
    for word in whole:
        found = np.intersect1d(found, index.rows_of_words(word), assume_unique=True)
    return found.astype(np.int64)
