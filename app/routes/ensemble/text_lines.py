"""A text cut into lines, each with the rows of activations that are shown there, aligned token by token."""

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

LINE, SHORT_LINE = 92, 46  # characters; a newline ends a line that is no shorter than the second
FEW_ROWS = 16  # from there on, a line shows those alone in which something fires


class OnTokens(Protocol):
    """Something with one number per token of the text."""

    @property
    def activations(self) -> list[float]:
        """One per token; 0 where it is silent."""


R = TypeVar("R", bound=OnTokens)


class TextLine(NamedTuple, Generic[R]):
    """A stretch of tokens, with the rows that it shows."""

    tokens: range
    rows: list[R]
    n_silent: int  # left out because they do not fire here


def aligned_lines(texts: list[str], rows: Sequence[R]) -> Iterator[TextLine[R]]:
    """The text in lines, each with the rows that fire there or, of few rows, all; quiet lines are joined, with none."""
    quiet = range(0)
    for tokens in _cut(texts):
        firing = [one for one in rows if any(one.activations[tokens.start : tokens.stop])]
        if not firing:
            quiet = range(quiet.start if quiet else tokens.start, tokens.stop)
            continue
        if quiet:
            yield TextLine(quiet, [], 0)
        quiet = range(0)
        shown = list(rows) if len(rows) <= FEW_ROWS else firing
        yield TextLine(tokens, shown, len(rows) - len(shown))
    if quiet:
        yield TextLine(quiet, [], 0)


def _cut(texts: list[str]) -> Iterator[range]:
    """Tokens cut into lines of about LINE characters, behind a newline where that leaves no short line."""
    start = width = 0
    for i, text in enumerate(texts):
        if width and width + len(text) > LINE:
            yield range(start, i)
            start, width = i, 0
        width += max(len(text), 1)
        if "\n" in text and width >= SHORT_LINE:
            yield range(start, i + 1)
            start, width = i + 1, 0
    if start < len(texts):
        yield range(start, len(texts))
