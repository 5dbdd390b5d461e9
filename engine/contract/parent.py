"""A process that ends with whoever started it: its standard input is a pipe that nothing is written to. Standard library only."""

import os


def wait_for_end_of_parent() -> None:
    """Return when the pipe ends, which it does however the parent ended.

    Not by `sys.stdin`: an interpreter that ends while a thread waits in its lock aborts.
    """
    while os.read(0, 4096):
        pass
