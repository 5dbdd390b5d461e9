"""Save whole members at a few log-spaced steps of their training, as ordinary SAEs beside the finished ones.

`along/step-N/seed-S.safetensors` in the members' folder; `along/space.safetensors`, where training measured its inputs in
other units than x, holds their `std` (d_in,). Every file is whole or not there, and a resumed training writes those again
that it makes again, so that none is lost or there twice.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from seedscope.engine.machine import GIB
from seedscope.engine.saes.sae import SAE

ALONG, SPACE = "along", "space.safetensors"
MOST = 12
MOST_BYTES = GIB  # of all snapshots of an ensemble; start and end are kept whatever they take
FIRST_SHARE = 1 / 256  # of all steps, at which log spacing begins: warm-up hardly moves anything before


class Snapshot(NamedTuple):
    """Members as they stood; `folder` is read by `engine.saes.sae.load`."""

    step: int  # steps that were made: 0 is the start
    tokens: int  # that each member had seen
    folder: Path


class Snapshots:
    """Keeps members of one training in a folder beside which they will stand when it is done.

    The plan is a function of the recipe alone, so that groups of members and resumed trainings follow the same one.
    """

    def __init__(self, folder: Path, *, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._most, self._most_bytes = folder / ALONG, most, most_bytes
        self.steps: set[int] = set()

    def begin(self, n_steps: int, n_bytes: int) -> set[int]:
        """Plan log-spaced steps, the start and the end among them, as many as fit; `n_bytes` is what all members take once.

        What lies there of other steps, from another version's plan, is removed.
        """
        n = max(min(self._most, self._most_bytes // max(n_bytes, 1)), 2)
        first = max(n_steps * FIRST_SHARE, 1)
        self.steps = {0, n_steps} | {round(step) for step in np.geomspace(first, n_steps, n - 1)[:-1]}
        for path in self.folder.glob("step-*"):
            if path.name not in {_name(step) for step in self.steps}:
                shutil.rmtree(path)
        return self.steps

    def keep(self, members: SAE, step: int, tokens: int) -> None:
        """Write these members, each file atomically; others of the same step stay."""
        members.save(self.folder / _name(step), provenance={"step": str(step), "tokens": str(tokens)})


def _name(step: int) -> str:
    return f"step-{step:09d}"


def kept(folder: Path, seeds: tuple[int, ...]) -> list[Snapshot]:
    """The snapshots that hold all of these members, in the order of steps; `folder` is that of the finished members."""
    snapshots = []
    for path in sorted((folder / ALONG).glob("step-*")):
        files = [path / f"seed-{seed}.safetensors" for seed in seeds]
        if files and all(file.is_file() for file in files):
            try:
                with safe_open(files[0], "pt") as file:
                    metadata = file.metadata()
                snapshots.append(Snapshot(int(metadata["step"]), int(metadata["tokens"]), path))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{files[0]} is damaged ({type(error).__name__}: {str(error)[:100]}); remove its folder to go on without that "
                    "step, or train the ensemble again"
                ) from None
    return snapshots


def units(folder: Path, d_in: int) -> Float[torch.Tensor, " d_in"]:
    """Units of the space that members were trained in, per dimension of x: ones where training saw x itself."""
    path = folder / ALONG / SPACE
    try:
        return load_file(path)["std"].float() if path.is_file() else torch.ones(d_in)
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}); train the ensemble again") from None
