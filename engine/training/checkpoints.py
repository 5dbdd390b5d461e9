"""Checkpoints of a training on disk: written atomically, the newest readable one kept until the next is complete."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

EVERY_S = 60.0


class State(NamedTuple):
    """Everything that the next step depends on, but for what follows from the recipe and the rows."""

    step: int  # steps that were made
    tensors: dict[str, Tensor]
    points: list[dict[str, Any]]  # of the trace so far, as plain values


class Checkpoints:
    """`step-N.safetensors` in a folder, each of one recipe on one set of rows, which `made_from` stands for.

    A state is written at most every `every_s` seconds, for training must not wait for the disk. What lies there of another
    recipe is not read, and removed by the first state that is kept.
    """

    def __init__(self, folder: Path, made_from: str, *, every_s: float = EVERY_S) -> None:
        self.folder, self._made_from, self._every_s = folder, made_from, every_s
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._written >= self._every_s

    def keep(self, state: State) -> None:
        """Write a state, then remove those before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{state.step:09d}.safetensors"
        metadata = {"made_from": self._made_from, "step": str(state.step), "told": json.dumps(state.points)}
        temporary = path.with_suffix(".tmp")
        save_file({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        for other in self.folder.glob("step-*"):
            if other != path:
                other.unlink(missing_ok=True)
        self._written = time.monotonic()

    def newest(self) -> State | None:
        """The state to go on from, None where there is none of this recipe; one that cannot be read counts as none."""
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            try:
                with safe_open(path, "pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("made_from") != self._made_from:
                        continue
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return State(int(metadata["step"]), tensors, json.loads(metadata["told"]))
            except (SafetensorError, OSError, KeyError, ValueError):
                continue
        return None


def digest(settings: dict[str, Any], sample: Tensor, n_rows: int) -> str:
    """16 hex digits over a recipe, and the rows it is trained on as far as a sample of them tells."""
    identity = [settings, n_rows, list(sample.shape), str(sample.dtype), torch.__version__]
    sha = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    sha.update(sample.contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
