"""The processor, and how many of its cores this process may use. Standard library only."""

import os
import platform
import re
from pathlib import Path


def usable_cores() -> int:
    """Those that it may run on, where the system tells: a container often has fewer than the machine; else all, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
