"""The Unix socket at which the live engine of a root listens, as both processes derive it. Standard library only."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

LONGEST = 100  # bytes of a socket's path: macOS allows 104, and a socket is first made under a name 4 bytes longer


def address(root: Path) -> Path:
    """Path of the socket of a root's engine; its lock, log and record of crashes lie beside it under other suffixes.

    It is in the temporary folder, or in /tmp where that folder makes the path too long for a socket.
    """
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12] + ".sock"
    for parent in (tempfile.gettempdir(), "/tmp"):
        socket = Path(parent) / f"seedscope-{os.getuid()}" / name
        if len(os.fsencode(socket)) <= LONGEST:
            break
    return socket


def make_folder(folder: Path) -> None:
    """Make the folder of a socket; raises OSError where that fails or another user could put a socket into it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(0, "expected a folder that you own and only you can open")
