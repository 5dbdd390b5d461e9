"""Exact quantiles of a column within groups of rows, from a histogram of the column's ranks instead of one sort per group.

The ranks of 3.1 million features are computed once; a new judgement then costs one pass of counting.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_NONE = np.uint16(0xFFFF)  # the code of a row without a value
_MOST_LEVELS = int(_NONE)
_AT_ONCE = 1 << 19  # rows that are counted together: their keys fit the processor's cache


class RankedColumn(NamedTuple):
    """A column whose values are coded by where they stand among `levels`."""

    levels: np.ndarray  # ascending; level i is the smallest value that code i stands for
    codes: np.ndarray  # (rows,) uint16
    values: np.ndarray  # (rows,); read where `levels` are not all of them

    def at(self, rows: slice) -> np.ndarray:
        """Values of rows; 0 where there is none."""
        if not are_all(self.levels):
            return np.where(self.codes[rows] != _NONE, self.values[rows], 0)
        return np.append(self.levels, self.levels.dtype.type(0)).take(self.codes[rows], mode="clip")


def find_levels(values: np.ndarray) -> np.ndarray:
    """All values that there are, ascending, or an even choice of as many as codes can tell apart; NaN is no value."""
    levels = np.unique(values[~np.isnan(values)])
    if len(levels) < _MOST_LEVELS:
        return levels
    return levels[np.linspace(0, len(levels) - 1, _MOST_LEVELS).astype(np.int64)]


def are_all(levels: np.ndarray) -> bool:
    """Whether `find_levels` found no more than these."""
    return len(levels) < _MOST_LEVELS


def rank(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The code of every value: the last of the levels that it reaches."""
    codes = (np.searchsorted(levels, values, side="right") - 1).astype(np.uint16)
    codes[np.isnan(values)] = _NONE
    return codes


def group_quantiles(
    column: RankedColumn, groups: np.ndarray, n_groups: int, fractions: Sequence[float]
) -> list[tuple[int, list[float]]]:
    """(rows with a value, their quantiles by linear interpolation) of the groups 0 .. n_groups - 1; none without rows.

    `groups` (rows,) uint8; rows of further groups are left out.
    """
    width = len(column.levels) + 1
    counts = np.zeros((n_groups + 1) * width, np.int64)
    for begin in range(0, len(groups), _AT_ONCE):
        rows = slice(begin, begin + _AT_ONCE)
        keys = np.minimum(groups[rows], n_groups).astype(np.int32)
        keys *= width
        keys += np.minimum(column.codes[rows], width - 1)
        counts += np.bincount(keys, minlength=len(counts))
    by_group = counts.reshape(n_groups + 1, width)[:n_groups, :-1]
    results = []
    for group, of_group in enumerate(by_group):
        until = of_group.cumsum()
        n = int(until[-1]) if len(until) else 0
        results.append((n, _interpolated(n, fractions, _picker(column, groups, group, until)) if n else []))
    return results


def _picker(column: RankedColumn, groups: np.ndarray, group: int, until: np.ndarray) -> Callable[[int], float]:
    """The value at a place among a group's sorted values, of which `until` each code has so many."""

    def pick(place: int) -> float:
        code = int(np.searchsorted(until, place, side="right"))
        if are_all(column.levels):
            return float(column.levels[code])
        rows = np.flatnonzero(column.codes == code)
        alike = np.sort(column.values[rows[groups[rows] == group]])
        return float(alike[place - (until[code - 1] if code else 0)])

    return pick


def _interpolated(n: int, fractions: Sequence[float], pick: Callable[[int], float]) -> list[float]:
    quantiles = []
    for fraction in fractions:
        before, part = divmod(fraction * (n - 1), 1)
        low = pick(int(before))
        quantiles.append(low + (pick(int(before) + 1) - low) * part if part else low)
    return quantiles
