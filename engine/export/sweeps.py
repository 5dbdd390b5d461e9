"""Bucket shares along what a study varies, as rows for `curves.parquet`: kind `sweep`."""

from collections.abc import Iterator
from statistics import fmean, stdev
from typing import Any

import numpy as np

from seedscope.engine.contract.stability import BUCKETS, buckets, count_matches
from seedscope.engine.contract.sweeps import factors
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.export.open_study import Opened


def sweep_rows(study: Opened) -> Iterator[dict[str, Any]]:
    """One row per factor and ensemble: means over members and their standard deviations, at the ensemble's own settings.

    `stable`, `middle` and `unstable` are shares of the features that are not known to be dead, `dead` of all.
    """
    rows = {row.ensemble: row for row in study.ensembles}
    by_factor = factors(list(rows.values()))
    named = {name for sets in by_factor.values() for each in sets for _, name in each.points}
    shares = {name: _shares(study, rows[name]) for name in sorted(named)}
    for factor, sets in by_factor.items():
        for number, each in enumerate(sets):
            for value, name in each.points:
                yield {
                    "ensemble": name,
                    "factor": factor,
                    "set": number,
                    "value": None if isinstance(value, str) else float(value),
                    "value_text": str(value),
                    **shares[name],
                }


def _shares(study: Opened, row: Ensemble) -> dict[str, float | None]:
    members = study.members[row.ensemble]
    of_members = [_of_member(study, row, member) for member in members]
    values: dict[str, list[float | None]] = {bucket: [each[bucket] for each in of_members] for bucket in BUCKETS}
    if "activity" not in row.computed:
        values["dead"] = [None] * len(members)
    values |= {"ev": [member.ev for member in members], "l0": [member.l0 for member in members]}
    means: dict[str, float | None] = {}
    for name, of_each in values.items():
        numbers = [value for value in of_each if value is not None]
        whole = len(numbers) == len(of_each)
        means[name] = fmean(numbers) if whole else None
        means[f"{name}_sd"] = stdev(numbers) if whole and len(numbers) > 1 else None
    return means


def _of_member(study: Opened, row: Ensemble, member: Member) -> dict[str, float]:
    table = study.store.table(Feature, ["dead", "cosines"], ensemble=row.ensemble, seed=member.seed)
    cosines = table["cosines"].combine_chunks().flatten().to_numpy().reshape(len(table), row.n_comparisons)
    dead = np.array([value is True for value in table["dead"].to_pylist()])
    bucket = buckets(count_matches(cosines, row.theta), row.n_comparisons, dead, row.epsilon)
    living = max(int((~dead).sum()), 1)
    return {name: float((bucket == name).sum()) / (row.d_sae if name == "dead" else living) for name in BUCKETS}
