"""The evaluation text that contexts show, each token once: features share most of their windows.

A context then says where it begins; what features and seeds have in common is neither repeated nor compressed again.
"""

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

from seedscope.app.routes.feature.contexts import ShownContext

BLOCK_TOKENS = 100_000  # in one file
_FIRST, _SURROGATES, _N_SURROGATES = 0x30, 0xD800, 0x800


class TextWindow(NamedTuple):
    """Where a context stands in the text."""

    document: int  # place in the list of documents
    start: int  # position of its first token
    length: int


class Texts:
    """Tokens by document and position, as far as contexts show them."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._counts: Counter[int] = Counter()
        self._documents: list[tuple[str, dict[int, int]]] = []  # name, {position: token}
        self._named: dict[str, list[int]] = {}  # documents of a name: an import may have several

    def add(self, context: ShownContext) -> TextWindow:
        """Keep a context's tokens; the same place of a document is kept once."""
        start = context.position - context.peak
        ids = [self._ids.setdefault(text, len(self._ids)) for text in context.tokens]
        at = self._fitting(context.document, start, ids)
        held = self._documents[at][1]
        for position, token in enumerate(ids, start):
            if position not in held:
                held[position] = token
                self._counts[token] += 1
        return TextWindow(at, start, len(ids))

    def _fitting(self, name: str, start: int, ids: list[int]) -> int:
        """The document of that name whose text says the same there; a new one where none does."""
        of_name = self._named.setdefault(name, [])
        for at in of_name:
            held = self._documents[at][1]
            if all(held.get(position, token) == token for position, token in enumerate(ids, start)):
                return at
        of_name.append(len(self._documents))
        self._documents.append((name, {}))
        return of_name[-1]

    @property
    def n_tokens(self) -> int:
        """Tokens that are kept."""
        return sum(len(held) for _, held in self._documents)

    def index(self) -> dict[str, Any]:
        """Token texts, the most frequent first, and each document's name and block."""
        order = self._order()
        texts = list(self._ids)
        return {
            "tokens": [texts[token] for token in order],
            "documents": [name for name, _ in self._documents],
            "blocks": [block for block, at in enumerate(self._blocks()) for _ in at],
        }

    def blocks(self) -> list[list[list[list[Any]]]]:
        """Each block's documents; a document is [first position, tokens as characters] of every stretch that is kept."""
        rank = {token: character(i) for i, token in enumerate(self._order())}
        return [[_stretches(self._documents[at][1], rank) for at in block] for block in self._blocks()]

    def _order(self) -> list[int]:
        return sorted(range(len(self._ids)), key=lambda token: -self._counts[token])

    def _blocks(self) -> list[range]:
        """Documents that stand in one file, in their order."""
        ends, size = [0], 0
        for at, (_, held) in enumerate(self._documents):
            size += len(held)
            if size >= BLOCK_TOKENS or at + 1 == len(self._documents):
                ends.append(at + 1)
                size = 0
        return [range(begin, end) for begin, end in pairwise(ends)]


def character(rank: int) -> str:
    """The character that stands for the token of a rank; one byte for the most frequent, and never half of a pair."""
    code = _FIRST + rank
    return chr(code + _N_SURROGATES if code >= _SURROGATES else code)


def _stretches(held: dict[int, int], rank: dict[int, str]) -> list[list[Any]]:
    stretches: list[list[Any]] = []
    previous = None
    for position in sorted(held):
        if previous is None or position != previous + 1:
            stretches.append([position, []])
        stretches[-1][1].append(rank[held[position]])
        previous = position
    return [[start, "".join(characters)] for start, characters in stretches]
