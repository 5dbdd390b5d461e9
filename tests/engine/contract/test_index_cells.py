"""Counts at a theta between two hundredths are those of all cosines, under rules that share cosines with argmax or do not."""

from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.contract.index.cells import CellWriter, count_between
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import grid_cells

N_MEMBERS, D_SAE = 3, 70
GRID = np.arange(101) / 100


def drawn(n: int, seed: int) -> dict[str, np.ndarray]:
    """Cosines (members, features, comparisons) of a study: argmax, a rule that takes some away, one that replaces some."""
    rng = np.random.default_rng(seed)
    argmax = np.where(rng.random((N_MEMBERS, D_SAE, n)) < 0.5, rng.uniform(-0.2, 1, (N_MEMBERS, D_SAE, n)), 0.55)
    argmax = np.minimum(argmax, 1).astype(np.float32)
    argmax[0, 0, 0], argmax[1, 3] = 1, np.nan  # exactly one; a row without cosines
    mutual = np.where(rng.random(argmax.shape) < 0.6, argmax, np.float32(NO_MATCH))
    live = np.where(rng.random(argmax.shape) < 0.1, argmax - np.float32(0.003), argmax)
    return {"argmax": argmax, "mutual": mutual, "live": live}


@pytest.mark.parametrize("n", [4, 300])  # counts of 8 and of 16 bits
def test_counts_between_hundredths_are_those_of_all_cosines(n: int, tmp_path: Path) -> None:
    cosines = drawn(n, n)
    writer = CellWriter(tmp_path, list(cosines))
    for member in range(N_MEMBERS):
        of_member = {rule: of_rule[member] for rule, of_rule in cosines.items()}
        writer.add(of_member, {rule: grid_cells(each) for rule, each in of_member.items()})
    writer.close()
    for rule, of_rule in cosines.items():
        flat = of_rule.reshape(-1, n)
        counts = np.array([(flat >= np.float32(theta)).sum(1) for theta in GRID], np.uint8 if n < 256 else np.uint16)
        np.save(tmp_path / f"counts-{rule}.npy", counts)

    def read(name: str) -> np.ndarray:
        path = tmp_path / name
        return np.fromfile(path, np.uint8) if path.suffix == ".bin" else np.load(path)

    known = cosines["argmax"][cosines["argmax"] >= 0]
    near = np.nextafter(np.float32(0.55), np.float32(1))
    thetas = [
        0.0,
        1.0,
        0.003,
        0.5499,
        0.55,
        float(near),
        0.999999,
        *known[:40].astype(float),
    ]  # some are cosines themselves
    for rule, of_rule in cosines.items():
        for theta in thetas:
            counted = count_between(rule, theta, read)
            assert counted is not None
            assert counted.tolist() == (of_rule.reshape(-1, n) >= np.float32(theta)).sum(1).tolist(), (rule, theta)
        assert count_between(rule, -0.1, read) is None
