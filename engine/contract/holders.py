"""Who holds a lock: a note beside the lock's file, written by who took it. Standard library only.

The lock itself is the operating system's, and no note: one that was left behind by a crash is read only while the lock is held.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from seedscope.engine.contract.urls import hidden

SECRET_OPTIONS = ("--token",)  # whose values stand in no note
LONGEST = 200  # characters of a command that are shown


def note_path(lock: Path) -> Path:
    """Where the note of a lock is."""
    return lock.with_name(lock.name + "-holder.json")


def note_holder(lock: Path) -> None:
    """Say that this process holds the lock; nothing where that cannot be written."""
    note = {"pid": os.getpid(), "command": _command(sys.argv), "since": time.time()}
    with suppress(OSError):
        note_path(lock).write_text(json.dumps(note))


def forget_holder(lock: Path) -> None:
    """Take the note away, before the lock is released."""
    with suppress(OSError):
        note_path(lock).unlink(missing_ok=True)


def who_holds(lock: Path) -> str:
    """Process, command and since when, in words; "another process" where its note says nothing."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads(note_path(lock).read_text())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(note["since"])))
        return f"process {int(note['pid'])} ({str(note['command'])[:LONGEST]}), since {since}"
    return "another process"


def _command(arguments: list[str]) -> str:
    """The command as it was typed, without the interpreter's path and without secrets."""
    name, *rest = arguments or [""]
    file = Path(name)
    words = [f"{file.parent.name}.{file.stem}" if file.stem in ("__main__", "main", "worker") else file.stem]
    for before, word in zip(["", *rest], rest, strict=False):
        option, equals, _ = word.partition("=")
        words.append(
            "***"
            if before in SECRET_OPTIONS
            else f"{option}=***"
            if equals and option in SECRET_OPTIONS
            else hidden(word)
        )
    return " ".join(words)
