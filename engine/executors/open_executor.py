"""Opens the executor that settings name, checked before any work begins, and ends it with all that it runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from seedscope.engine.executors.local import LocalProcesses, ThisProcess
from seedscope.engine.executors.probe import Expected, expected_in
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import Executor

PACKAGES = {"ray": "ray", "slurm": "submitit"}


@contextmanager
def opened(settings: ExecutorSettings, root: Path) -> Iterator[Executor]:
    """The executor for studies under a root; an error or a signal ends its units with it.

    Raises ValueError, in one line, without its package, without a cluster, for a node without this version of seedscope, and for a
    root that the nodes do not share.
    """
    threads = settings.cpus or _own_threads()
    if settings.kind == "local":
        if settings.workers == 1:
            if settings.cpus:
                _compute_with(settings.cpus)
            yield ThisProcess(threads, settings.members)
            return
        processes = LocalProcesses(settings.workers, threads, members=settings.members, retries=settings.retries)
        with _ended(processes):
            yield processes
        return
    chosen = _elsewhere(settings.kind)
    root.mkdir(parents=True, exist_ok=True)
    expected = expected_in(root)
    try:
        executor = chosen(settings, threads, expected)
        with _ended(executor):
            yield executor
    finally:
        Path(expected.token).unlink(missing_ok=True)


def _elsewhere(kind: str) -> Callable[[ExecutorSettings, int, Expected], Executor]:
    """The class of an executor on other machines; ValueError where its package is not installed."""
    try:
        if kind == "ray":
            from seedscope.engine.executors.on_ray import RayExecutor

            return RayExecutor
        from seedscope.engine.executors.on_slurm import SlurmExecutor

        return SlurmExecutor
    except ImportError as error:
        raise ValueError(
            f"executor {kind} needs the package {PACKAGES[kind]} ({error}); install it with: pip install 'seedscope[{kind}]'"
        ) from None


@contextmanager
def _ended(executor: Executor) -> Iterator[None]:
    """Shut an executor down behind the block; SIGTERM, by which jobs are cancelled, ends the block like Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _exit) if is_main else None
    try:
        yield
    except BaseException:
        executor.shutdown(cancel=True)
        raise
    else:
        executor.shutdown()
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _own_threads() -> int:
    import torch

    return torch.get_num_threads()


def _compute_with(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
