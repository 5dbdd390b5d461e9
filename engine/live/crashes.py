"""Which queries crashed the live engine, kept in a file that outlives the process.

A process that crashes cannot write down what it was computing, so queries are noted before they are computed and struck out
after. What is left in the file when the next process starts is what its predecessor crashed on.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seedscope.engine.contract.queries import LiveQuery, as_fields

MAX_CRASHES = 2  # of one query; after that it is not computed again

Key = tuple[LiveQuery, str]  # a query, and the version of the data that it is asked of


class CrashRecord:
    """How often the engine crashed while it computed each query.

    A query that a process was computing when it ended without `forget` counts one more crash for the next process; one that
    was computed to its end counts none any more. The file names queries by digests, since their texts are private. A file that
    cannot be read or written counts as empty. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: Counter[str] = Counter()
        self._crashes = _read(path)
        self._write()

    def count(self, key: Key) -> int:
        """How often the engine crashed while it computed this query."""
        return self._crashes[_digest(key)] if self._crashes else 0

    @contextmanager
    def computing(self, keys: Iterable[Key]) -> Iterator[None]:
        """Note these queries as being computed for the length of the block, which may overlap with other blocks."""
        digests = Counter(map(_digest, keys))
        self._running += digests
        self._write()
        try:
            yield
            for digest in digests:
                del self._crashes[digest]
        finally:
            self._running -= digests
            self._write()

    def forget(self) -> None:
        """Remove the file: this process ends without a crash."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):  # a full disk is no reason not to answer
            # Not synced: it has to outlive the process, not the machine.
            with open(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
                json.dump(self._crashes + self._running, file)
            temporary.replace(self._path)


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps([as_fields(key[0]), key[1]]).encode()).hexdigest()[:16]


def _read(path: Path) -> Counter[str]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        return Counter({str(digest): int(n) for digest, n in json.loads(path.read_text()).items()})
    return Counter()
