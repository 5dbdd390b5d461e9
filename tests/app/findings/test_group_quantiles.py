"""Quantiles within groups from ranks, against NumPy's of every group for itself."""

import numpy as np
import pytest

from seedscope.app.findings import group_quantiles
from seedscope.app.findings.group_quantiles import RankedColumn, find_levels, rank
from seedscope.app.findings.member_bootstrap import interval, intervals


@pytest.mark.parametrize("most", [65_535, 50])  # codes for every value; codes that stand for several
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantiles_of_groups_are_those_of_numpy(most, dtype, monkeypatch):
    monkeypatch.setattr(group_quantiles, "_MOST_LEVELS", most)
    monkeypatch.setattr(group_quantiles, "_AT_ONCE", 700)
    random = np.random.default_rng(0)
    values = random.normal(size=5_000).round(3).astype(dtype)
    values[random.random(5_000) < 0.1] = np.nan
    groups = random.integers(0, 5, 5_000).astype(np.uint8)
    groups[groups == 2] = 1  # nothing is in the third group; the fifth is left out
    levels = find_levels(values)
    column = RankedColumn(levels, rank(values, levels), values)
    results = group_quantiles.group_quantiles(column, groups, 4, (0.25, 0.5, 0.75))
    for group, (n, quantiles) in enumerate(results):
        known = values[(groups == group) & ~np.isnan(values)].astype(np.float64)
        assert n == len(known)
        assert quantiles == pytest.approx(np.quantile(known, (0.25, 0.5, 0.75)).tolist() if n else [], rel=1e-12)
    assert column.at(slice(10, 900)).tolist() == np.nan_to_num(values[10:900]).tolist()


def test_without_a_value_there_is_no_quantile():
    values = np.full(8, np.nan)
    levels = find_levels(values)
    column = RankedColumn(levels, rank(values, levels), values)
    assert group_quantiles.group_quantiles(column, np.zeros(8, np.uint8), 2, (0.5,)) == [(0, []), (0, [])]
    assert column.at(slice(0, 8)).tolist() == [0] * 8


def test_intervals_of_columns_are_those_of_each_column():
    draws = np.random.default_rng(0).normal(size=(200, 6))
    draws[:50, 1], draws[:, 2], draws[:199, 3], draws[:, 4], draws[:9, 5] = np.nan, np.nan, np.nan, np.inf, -np.inf
    for n_members in (2, 3, 96):
        assert intervals(draws, n_members) == [interval(column, n_members) for column in draws.T]
