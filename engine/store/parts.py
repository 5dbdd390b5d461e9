"""Results of analyses on disk, one folder each: what is there is complete, and is not computed again.

A part lies in `parts/ENSEMBLE/ANALYSIS/KEY/`: `about.json` says what it was computed from, one `seed-N.npz` per member holds
the arrays. KEY is a digest of `about.json`; of an analysis the newest part alone is kept.
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
VERSION = 3  # of what parts of analyses hold; older ones are computed again
Put = Callable[[int, dict[str, Any]], None]


class Part(NamedTuple):
    """One analysis of one ensemble."""

    folder: Path
    about: dict[str, Any]

    @property
    def seeds(self) -> set[int]:
        """Members that it holds."""
        return {int(path.stem.removeprefix("seed-")) for path in self.folder.glob("seed-*.npz")}

    def read(self, seed: int, *names: str) -> dict[str, np.ndarray]:
        """One member's arrays by name: these, or all."""
        with np.load(self.folder / f"seed-{seed}.npz", allow_pickle=False) as held:
            return {name: held[name] for name in names or held.files}


class Parts:
    """The parts of one ensemble."""

    def __init__(self, study: Path, ensemble: str) -> None:
        self._folder = study / "parts" / ensemble

    def find(self, analysis: str, **must: Any) -> Part | None:
        """The part of an analysis, None where there is none or where it was computed from something else than `must`."""
        for path in sorted((self._folder / analysis).glob(f"*/{ABOUT}")):
            about = json.loads(path.read_text())
            if all(about.get(name) == value for name, value in must.items()):
                return Part(path.parent, about)
        return None

    def analyses(self) -> list[str]:
        """Names of the analyses that there are parts of."""
        return sorted({path.parent.parent.name for path in self._folder.glob(f"*/*/{ABOUT}")})

    @contextmanager
    def write(self, analysis: str, about: dict[str, Any]) -> Iterator[Put]:
        """Yields put(seed, arrays); the part is there when the block ends, and replaces the analysis's former one."""
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
        """Forget everything that was computed on this ensemble."""
        shutil.rmtree(self._folder, ignore_errors=True)
