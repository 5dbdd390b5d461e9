"""Hooks on modules that act in one thread alone.

The live engine runs one model in several threads at a time. A hook that captures or replaces activations, or ends a forward
pass, must leave the passes of the other threads as they are.
"""

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_this_thread(hook: Callable[P, T]) -> Callable[P, T | None]:
    """The hook, which does nothing when a thread other than the present one runs the module."""
    own = threading.get_ident()

    def run(*arguments: P.args, **named: P.kwargs) -> T | None:
        return hook(*arguments, **named) if threading.get_ident() == own else None

    return run
