"""Parts: results of analyses on disk, one folder per ensemble and analysis, so that nothing is computed twice.

A part is the folder `parts/ENSEMBLE/ANALYSIS/KEY/` of a study. Its `about.json` says what it was computed from, and one
`seed-N.npz` per member holds the arrays. KEY is a digest of `about.json`. A part that exists is complete; only the newest part
of an analysis is kept.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.files import write_whole

ABOUT = "about.json"
VERSION = 3  # of the content of parts; those of an older version are computed again
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
        """{name: array} of one member: the arrays with these names, or all."""
        with np.load(self.folder / f"seed-{seed}.npz", allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}


class Parts:
    """The parts of one ensemble of the study in a folder."""

    def __init__(self, study: Path, ensemble: str) -> None:
        self._folder = study / "parts" / ensemble

    def find(self, analysis: str, **expected: Any) -> Part | None:
        """The part of an analysis; None where there is none, or where its `about` has other values than `expected`."""
        for path in sorted((self._folder / analysis).glob(f"*/{ABOUT}")):
            about = json.loads(path.read_text())
            if all(about.get(name) == value for name, value in expected.items()):
                return Part(path.parent, about)
        return None

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
        for former in here.iterdir():
            if former != unfinished:
                shutil.rmtree(former)
        unfinished.replace(here / key)

    def discard(self) -> None:
        """Remove all parts of this ensemble."""
        shutil.rmtree(self._folder, ignore_errors=True)
