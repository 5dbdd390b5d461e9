"""Available memory of this machine, arrays that do not need it, and the torch device that a name selects."""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

GIB = 2**30
WORKING_SHARE = 1 / 16  # of the free memory, up to which a working array stays in it


def available_memory() -> int:
    """Bytes that can be allocated without swapping; all physical memory where the system does not report it (macOS)."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container may have less memory than its host
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return available
    return min(available, max(limit - used, 0))


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device; of the machine's memory where it is not a CUDA device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def working_array(shape: tuple[int, ...], dtype: Any, folder: Path | None) -> np.ndarray:
    """Zeros of a shape: in memory up to WORKING_SHARE of what is free, beyond it in a file of `folder` without a name.

    The system writes the file's pages out where memory runs short, and removes it with the array. None: always in memory.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or n_bytes <= WORKING_SHARE * available_memory():
        return np.zeros(shape, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def require_memory(path: str, parameters: int, item_size: int) -> None:
    """Raise ValueError where a model's weights, `parameters` numbers of `item_size` bytes, do not fit into available memory.

    `path` names the model in the error. Activations of a batch are not counted.
    """
    needed, available = parameters * item_size, available_memory()
    if needed > available:
        raise ValueError(
            f"{path!r} needs {needed / GIB:.1f} GiB of memory ({parameters:,} parameters in {8 * item_size} bits), "
            f"{available / GIB:.1f} GiB are available; use a smaller model, a narrower dtype or a larger machine"
        )


def named_device(name: str) -> torch.device:
    """The device of a name: `auto` is the CUDA device if there is one, else the CPU; any other name is torch's."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
