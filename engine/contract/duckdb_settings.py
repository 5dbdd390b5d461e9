"""How DuckDB opens a published store. Standard library only."""

import os
from pathlib import Path

# A connection that only reads: no file but the store itself can be reached, and no statement can change that. DuckDB opens
# a file once per process with one configuration, so every reader in a process must use these very settings.
READ_ONLY: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "lock_configuration": "true",
}
SMALL = "128MB"  # of blocks and intermediate results; what does not fit is written beside the store for the while
SMALL_IN_MEMORY = "2GB"  # where nothing can be written there
SMALL_THREADS = 2


def keep_small(root: Path) -> None:
    """From now on this process opens stores with little memory and few threads; to be called before it opens one.

    DuckDB's own default is 80 % of the machine's memory, which it keeps as a cache, in every process.
    """
    READ_ONLY["memory_limit"] = SMALL if os.access(root, os.W_OK) else SMALL_IN_MEMORY
    READ_ONLY["threads"] = SMALL_THREADS
