"""What a search that is being typed may mean: tokens that features fire on, and words of their explanations."""

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from seedscope.app.formats import shown_on_one_line
from seedscope.app.store.database import Database

N_SUGGESTIONS = 8
LAST_CHARACTER = "\U0010ffff"
_MOST_WORDS = 5  # of them: tokens always have room


class Suggestion(NamedTuple):
    """A search that finds something."""

    hit: str  # one of search.HITS: what the text is
    text: str  # the token as it is, or the word
    shown: str  # the same with line breaks and signs made visible
    q: str  # the search that means exactly this
    n_features: int  # of the whole ensemble that it finds, whatever else is filtered


class Suggestions:
    """Suggestions of one study's ensembles; tokens are read once for each: one per distinct token."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self._tokens = lru_cache(8)(self._read_tokens)

    def of(self, ensemble: str, typed: str) -> list[Suggestion]:
        """At most N_SUGGESTIONS for what was typed, a quote in front or not.

        First what is exactly that but for case and spaces around, then what begins so, then tokens that hold it; of equals those
        of more features.
        """
        text = typed.removeprefix('"').removesuffix('"') if len(typed) > 1 else typed
        if not text:
            return []
        part, word = text.lower(), text.strip().lower()
        tokens = [
            (_rank(lower, part), -n, shown, token)
            for lower, shown, token, n in self._tokens(ensemble)
            if part in lower or part in shown
        ]
        words = []
        if word and not typed.startswith('"'):
            words = [(_rank(each, word), -n, each, each) for each, n in self._words(ensemble, word)]
        words = sorted(words)[:_MOST_WORDS]
        tokens = sorted(tokens)[: N_SUGGESTIONS - len(words)]
        return [Suggestion("token", token, shown, f'"{shown}"', -n) for _, n, shown, token in tokens] + [
            Suggestion("explanation", each, each, f"{each} ", -n) for _, n, each, _ in words
        ]

    def _read_tokens(self, ensemble: str) -> list[tuple[str, str, str, int]]:
        """(lower case, as pages show it, token, features that fire on it most) of every top token."""
        if not self._store.has(ensemble, "activity"):
            return []
        counts = self._store.index(ensemble).token_counts()
        named = [(self._store.tokens[i], int(counts[i])) for i in np.flatnonzero(counts)]
        return [(token.lower(), shown_on_one_line(token), token, n) for token, n in named]

    def _words(self, ensemble: str, begin: str) -> list[tuple[str, int]]:
        """(word, features whose explanations hold it) of words that begin so: itself, and the most frequent of the others."""
        index = self._store.index(ensemble)
        first, end = bisect_left(index.words, begin), bisect_left(index.words, begin + LAST_CHARACTER)
        counts = index.word_counts()[first:end]
        most = np.sort(np.lexsort((np.arange(len(counts)), -counts))[:_MOST_WORDS])
        if len(most) and index.words[first] == begin and most[0]:
            most = np.append(0, most)
        return [(index.words[first + i], int(counts[i])) for i in most.tolist()]


def _rank(text: str, typed: str) -> int:
    stripped, wanted = text.strip() or text, typed.strip() or typed
    return 0 if stripped == wanted else 1 if stripped.startswith(wanted) else 2
