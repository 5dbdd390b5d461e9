"""Parts: results of analyses on disk, one folder per ensemble and analysis, so that nothing is computed twice.

A part is the folder `parts/ENSEMBLE/ANALYSIS/KEY/` of a study. Its `about.json` says what it was computed from, and one
`seed-N.npz` per member holds the arrays. KEY is a digest of `about.json`, and `sums.json` has the checksums of all files. A part
that exists is complete; only the newest part of an analysis is kept. A part whose files are not as they were written counts as
absent, so that it is computed again; what computes nothing refuses it.
"""

import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.checksums import damaged_file, has_sums, write_sums
from seedscope.engine.contract.files import whole, write_whole

ABOUT = "about.json"
VERSION = 3  # of the content of parts; those of an older version are computed again
_LOG = logging.getLogger("seedscope")
Put = Callable[[int, dict[str, Any]], None]


class Part(NamedTuple):
    """The result of one analysis of one ensemble."""

    folder: Path
    about: dict[str, Any]  # what it was computed from, as JSON values

    @property
    def seeds(self) -> set[int]:
        """Seeds of the members that it has arrays of."""
        return {int(path.stem.removeprefix("seed-")) for path in self.folder.glob("seed-*.npz")}

    def read(self, seed: int, *names: str) -> dict[str, np.ndarray]:
        """{name: array} of one member: the arrays with these names, or all. Raises DamagedPartError where they cannot be read."""
        path = self.folder / f"seed-{seed}.npz"
        try:
            return read_arrays(path, *names)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DamagedPartError(path, f"{type(error).__name__}: {error}") from None

    def misnamed(self) -> str | None:
        """Why its `about` is not the one that its folder is named after, in words; None where it is."""
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        return None if key == self.folder.name else f"{ABOUT} has the digest {key}, expected {self.folder.name}"

    def damage(self) -> str | None:
        """What is not as it was written, in words; None where everything is. Reads all of it, once per process."""
        if wrong := self.misnamed():
            return wrong
        if has_sums(self.folder):
            name = damaged_file(self.folder)
            return name and f"{name} is not as it was written"
        for path in sorted(
            self.folder.glob("seed-*.npz")
        ):  # of a version that kept no checksums: ZIP has some of its own
            try:
                with zipfile.ZipFile(path) as archive:
                    wrong = archive.testzip()
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                wrong = str(error)
            if wrong:
                return f"{path.name} is not as it was written ({wrong})"
        return None


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """{name: array} of a file of arrays: those with these names, or all."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names or arrays.files}


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write a file that `read_arrays` reads, whole or not at all."""
    with whole(path, durable=False) as file:
        np.savez(file, **arrays)


class DamagedPartError(ValueError):
    """A part that is not as it was written."""

    def __init__(self, path: Path, reason: str) -> None:
        study = next(each.parent for each in path.parents if each.name == "parts")
        text = " ".join(reason.split())[:200]
        super().__init__(f"{path} is damaged ({text}); compute it again: seedscope analyze {study.name}")


class Parts:
    """The parts of one ensemble of the study in a folder; `strict`: a damaged one is refused instead of counting as absent."""

    def __init__(self, study: Path, ensemble: str, *, strict: bool = False) -> None:
        self._folder, self._strict = study / "parts" / ensemble, strict

    def find(self, analysis: str, **expected: Any) -> Part | None:
        """The part of an analysis; None where there is none, or where its `about` has other values than `expected`.

        None for a damaged one, too, with a warning; raises DamagedPartError where parts are read `strict`.
        """
        for path in sorted((self._folder / analysis).glob(f"*/{ABOUT}")):
            try:
                about = json.loads(path.read_text())
                is_wanted = all(about.get(name) == value for name, value in expected.items())
                part = Part(path.parent, about)
                wrong = part.damage() if is_wanted else part.misnamed()
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                is_wanted, wrong = True, f"{ABOUT}: {error}"
            if wrong and self._strict:
                raise DamagedPartError(path.parent, wrong)
            if wrong:
                _LOG.warning("%s is damaged (%s): it counts as absent and is computed again", path.parent, wrong)
            elif is_wanted:
                return part
        return None

    def all(self) -> Iterator[tuple[Path, str | None]]:
        """Every part's folder, with what is wrong with it, None where nothing is."""
        for path in sorted(self._folder.glob(f"*/*/{ABOUT}")):
            try:
                yield path.parent, Part(path.parent, json.loads(path.read_text())).damage()
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                yield path.parent, f"{ABOUT}: {error}"

    def analyses(self) -> list[str]:
        """Names of the analyses that have a part, sorted."""
        return sorted({path.parent.parent.name for path in self._folder.glob(f"*/*/{ABOUT}")})

    @contextmanager
    def write(self, analysis: str, about: dict[str, Any]) -> Iterator[Put]:
        """Yield put(seed, arrays). When the block ends without an error, the part is complete and replaces the former one."""
        about = json.loads(json.dumps(about))
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        here = self._folder / analysis
        unfinished = here / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield lambda seed, arrays: np.savez(unfinished / f"seed-{seed}.npz", **arrays)
        write_whole(unfinished / ABOUT, json.dumps(about, indent=1))
        write_sums(unfinished)
        for former in here.iterdir():
            if former != unfinished:
                shutil.rmtree(former)
        unfinished.replace(here / key)

    def discard(self) -> None:
        """Remove all parts of this ensemble."""
        shutil.rmtree(self._folder, ignore_errors=True)
