"""How many cores this process may use. Standard library only."""

import os


def usable_cores() -> int:
    """Those that it may run on, where the system tells: a container often has fewer than the machine; else all, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
