"""What the live engine died of: noted before it is computed, because who dies of a query cannot tell."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seedscope.engine.contract.queries import LiveQuery, as_fields

MOST = 2  # deaths of one query; after that it is not computed again

Key = tuple[LiveQuery, str]  # a query, and the version of the data that it is asked of


class Deaths:
    """How often the engine died of which query, in a file that outlives the process.

    What a process was computing when it ended, without `forget`, has one more death for the next one; what was computed to
    its end has none any more. The file names queries by digests, as their texts are nobody else's business. One that cannot
    be read or written counts as empty: the engine then starts as new. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: Counter[str] = Counter()
        self._deaths = _read(path)
        self._write()

    def of(self, key: Key) -> int:
        """How often the engine died while it computed this."""
        return self._deaths[_digest(key)] if self._deaths else 0

    @contextmanager
    def computing(self, keys: Iterable[Key]) -> Iterator[None]:
        """Note that the block computes these, possibly beside others."""
        digests = Counter(map(_digest, keys))
        self._running += digests
        self._write()
        try:
            yield
            for digest in digests:
                del self._deaths[digest]
        finally:
            self._running -= digests
            self._write()

    def forget(self) -> None:
        """Remove the file: this process ends because it is told to."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):  # a full disk is no reason not to answer
            # Not synced: it has to outlive the process, not the machine.
            with open(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
                json.dump(self._deaths + self._running, file)
            temporary.replace(self._path)


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps([as_fields(key[0]), key[1]]).encode()).hexdigest()[:16]


def _read(path: Path) -> Counter[str]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        return Counter({str(digest): int(n) for digest, n in json.loads(path.read_text()).items()})
    return Counter()
