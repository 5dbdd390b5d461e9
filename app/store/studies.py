"""The studies under a root."""

import re
import threading
from pathlib import Path

import duckdb

from app.store.errors import NotFound
from app.store.study import StudyStore
from engine import schema


class Studies:
    """The studies under a root; a newly published store is seen at the next request."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, StudyStore] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of all published studies, sorted."""
        pattern = f"*/{schema.CURRENT}"
        return sorted(
            p.parent.name for p in self._root.glob(pattern) if re.fullmatch(schema.NAME_PATTERN, p.parent.name)
        )

    def get(self, study: str) -> StudyStore:
        """The published store of a study; raises NotFound naming the studies there are."""
        path = self._published(study)
        if path is None:
            raise NotFound("study", study, ", ".join(self.names()) or "none yet: run `seedscope demo`")
        with self._lock:
            held = self._open.get(study)
            if held is None or held.path != path:
                try:
                    held = self._open[study] = StudyStore(path)
                except (duckdb.Error, IndexError):
                    raise NotFound(
                        "readable study", study, f"{path.name}, which is damaged; build the study again"
                    ) from None
            return held

    def all(self) -> list[StudyStore]:
        """Every study that can be read; one that cannot says why on its own page."""
        stores = []
        for name in self.names():
            try:
                stores.append(self.get(name))
            except NotFound:
                continue
        return stores

    def _published(self, study: str) -> Path | None:
        if not re.fullmatch(schema.NAME_PATTERN, study):
            return None
        try:
            name = (self._root / study / schema.CURRENT).read_text().splitlines()[0]
        except (OSError, IndexError, UnicodeDecodeError):
            return None
        path = self._root / study / name
        return path if name and path.is_file() else None
