"""Where the live engine of a root listens: what web process and engine agree on. Standard library only."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

LONGEST = 100  # bytes of an address; macOS takes 104, and a socket is made under a name 4 longer


def address(root: Path) -> Path:
    """The socket of a root's engine; its lock, log and deaths lie beside it under other suffixes.

    In the temporary folder, unless that makes the address too long for a socket.
    """
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12] + ".sock"
    for parent in (tempfile.gettempdir(), "/tmp"):
        found = Path(parent) / f"seedscope-{os.getuid()}" / name
        if len(os.fsencode(found)) <= LONGEST:
            break
    return found


def make_folder(folder: Path) -> None:
    """Make the folder of a socket; raises OSError where it cannot be or somebody else could put a socket into it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(0, "expected a folder that you own and only you can open")
