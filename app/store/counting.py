"""Counts of features by small numbers: bins of density, steps of scores, buckets and triggers; one byte per feature."""

import numpy as np

SCORE_STEPS = (0.9, 0.8, 0.7, 0.6)  # of the facet: features whose score is at least this
_FEW = 4_096
DENSITY_OFFSET, NO_DENSITY = 240, 255  # of bins kept in a byte: a density is at least one token in 10^30


def density_bins(densities: np.ndarray, per_decade: int) -> np.ndarray:
    """Bins of logarithms of densities plus DENSITY_OFFSET, NO_DENSITY where there is none above 0."""
    bins = np.full(len(densities), NO_DENSITY, np.uint8)
    fires = densities > 0
    bins[fires] = np.maximum(np.floor(np.log10(densities[fires]) * per_decade) + DENSITY_OFFSET, 0)
    return bins


def byte_counts(codes: np.ndarray) -> np.ndarray:
    """How often each of 256 bytes occurs: counted two at a time, which takes half as long."""
    pairs = codes[: len(codes) // 2 * 2].view(np.uint16)
    counts = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    total: np.ndarray = counts.sum(0) + counts.sum(1)
    if len(codes) % 2:
        total[codes[-1]] += 1
    return total


def score_steps(scores: np.ndarray) -> np.ndarray:
    """How many of SCORE_STEPS each score reaches; scores are single: 0.9 as it stands there is a little less than 0.9."""
    steps = np.zeros(len(scores), np.uint8)
    for step in SCORE_STEPS:
        steps += scores >= np.float32(step)
    return steps


def count_codes(codes: np.ndarray, n: int, mask: np.ndarray | None) -> list[int]:
    """How often each of n small numbers occurs where a mask holds."""
    if len(codes) < _FEW:
        return np.bincount(codes if mask is None else codes[mask], minlength=n)[:n].tolist()
    # A comparison of bytes per number takes a tenth of the time of counting numbers that must first be made wide.
    equal = (codes == code for code in range(n))
    return [int(np.count_nonzero(each if mask is None else each & mask)) for each in equal]
