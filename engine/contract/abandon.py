"""Work that nobody waits for any more ends at its next step. Standard library only.

Whoever starts work says how to tell (`abandoned_when`); long loops ask between their steps (`stop_if_abandoned`), which is free
where nobody said anything, as in commands.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_abandoned: ContextVar[Callable[[], bool]] = ContextVar("is_abandoned")


class AbandonedError(Exception):
    """Nobody waits for this work any more."""


@contextmanager
def abandoned_when(is_abandoned: Callable[[], bool]) -> Iterator[None]:
    """Within the block, in this thread, work stops once this is true."""
    token = _is_abandoned.set(is_abandoned)
    try:
        yield
    finally:
        _is_abandoned.reset(token)


def stop_if_abandoned() -> None:
    """Between two steps of long work: raises AbandonedError where nobody waits for it."""
    is_abandoned = _is_abandoned.get(None)
    if is_abandoned is not None and is_abandoned():
        raise AbandonedError
