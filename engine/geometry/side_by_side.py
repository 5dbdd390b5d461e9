"""The same work on several things at once, each in one thread, where matrices are too small for linear algebra's own threads.

Those wait for each other at every small decomposition: on two cores that are shared, up to a hundred times as long as the work.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from seedscope.engine.contract.cores import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results in the order of `items`, as many at work as there are cores; what one raises is raised, and the others not begun.

    Within it, NumPy and torch use the threads that are left for each, in the whole process.
    """
    at_once = max(1, min(usable_cores(), len(items)))
    with _threads_each(usable_cores() // at_once), ThreadPoolExecutor(at_once) as threads:
        waiting = [threads.submit(copy_context().run, work, item) for item in items]
        try:
            for each in waiting:
                yield each.result()
        finally:
            for each in waiting:
                each.cancel()


@contextmanager
def _threads_each(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(n, "blas"):
            yield
    finally:
        torch.set_num_threads(before)
