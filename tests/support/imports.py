"""Checkpoints to import, and imports that have to be refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.layouts import Run

SEEDS, D_IN, D_SAE, K = (0, 1, 3), 6, 20, 4


def make_run(*, d_in: int = D_IN, d_sae: int = D_SAE, seeds: tuple[int, ...] = SEEDS) -> Run:
    """Random SAEs; the same ones for the same arguments."""
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    rngs = {seed: np.random.default_rng(seed) for seed in seeds}
    return {
        seed: {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for seed, rng in rngs.items()
    }


@contextmanager
def refused(root: Path, *words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """One error in one paragraph that says these words, and a root that is as it was."""
    before = content(root)
    with pytest.raises(error) as info:
        yield
    message = str(info.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert content(root) == before


def content(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder: bytes of files, None for folders."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
