"""The studies under a root: opened on demand, and again where a new version was published."""

import re
import threading
from dataclasses import dataclass
from pathlib import Path

import duckdb

from seedscope.app.store.database import file_state
from seedscope.app.store.errors import UNREADABLE, NotFound
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.names import NAME_PATTERN
from seedscope.engine.contract.published import folders_with_store, names_store, published
from seedscope.engine.contract.store_file import mended_by, mending_command

CATALOGUE = "study.json"  # what a study consists of; written before anything is analysed


def analysis_of(study: str) -> str:
    """The command that computes and publishes what an imported study lacks."""
    return f"seedscope analyze {study}"


@dataclass(frozen=True)
class BrokenStudy:
    """A study that cannot be read, or not all of it."""

    study: str
    says: str  # what is wrong with it
    command: str | None  # that mends it; None where the study has to be built again


class Studies:
    """The studies under a root; a newly published store is seen at the next request."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, StudyStore] = {}
        self._damage: dict[str, str] = {}  # {study: what was found while its present store was read}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of all published studies, sorted."""
        names = (folder.name for folder in folders_with_store(self._root))
        return sorted(name for name in names if re.fullmatch(NAME_PATTERN, name))

    def waiting(self) -> list[str]:
        """Names of the studies that were imported and have nothing published yet, sorted."""
        folders = (p.parent for p in self._root.glob(f"*/{CATALOGUE}"))
        return sorted(f.name for f in folders if re.fullmatch(NAME_PATTERN, f.name) and not names_store(f))

    def get(self, study: str) -> StudyStore:
        """The published store of a study; raises NotFound naming the studies there are, DamagedStoreError for a damaged one."""
        path = self._published(study)
        if path is None:
            if study in self.waiting():
                raise NotFound("results of study", study, f"only what was imported: run `{analysis_of(study)}`")
            raise NotFound("study", study, ", ".join(self.names()) or "none yet: run `seedscope demo`")
        with self._lock:
            store = self._open.get(study)
            if store is None or store.path != path or store.file != file_state(path):
                if store is not None:
                    store.close()  # DuckDB would open the former file of this name once more
                    self._damage.pop(study, None)
                try:
                    store = self._open[study] = StudyStore(path)
                except (duckdb.Error, IndexError, TypeError):  # columns or values that no version has
                    raise NotFound("readable study", study, f"{path.name}, {mended_by(path.parent)}") from None
            return store

    def note_damage(self, study: str, reason: str) -> None:
        """Remember what was found while a study was read, for the list of all studies."""
        self._damage[study] = reason

    def broken(self) -> list[BrokenStudy]:
        """Every published study that is damaged, gone or of another version, in the order of names."""
        found = []
        for name in self.names():
            says = self._damage.get(name)
            try:
                self.get(name)
            except NotFound as error:
                says = "its store is gone" if self._published(name) is None else f"{error.expected}"
            except UNREADABLE as error:
                says = f"its store is damaged: {error.reason}"
            if says:
                found.append(BrokenStudy(name, says, mending_command(self._root / name)))
        return found

    def version(self, study: str) -> str:
        """Changes with a study's published store and with its catalogue, which pages read beside it; empty without a store."""
        path = self._published(study)
        if path is None:
            return ""
        catalogue = path.parent / CATALOGUE
        return f"{path.name} {catalogue.stat().st_mtime_ns if catalogue.exists() else 0}"

    def find(self, study: str) -> StudyStore | None:
        """As `get`; None where there is none, or none that can be read."""
        try:
            return self.get(study)
        except (NotFound, *UNREADABLE):
            return None

    def all(self) -> list[StudyStore]:
        """Every study that can be read; one that cannot says why on its own page."""
        return [store for name in self.names() if (store := self.find(name))]

    def _published(self, study: str) -> Path | None:
        if not re.fullmatch(NAME_PATTERN, study):
            return None
        store = published(self._root / study)
        return self._root / study / store.name if store else None
