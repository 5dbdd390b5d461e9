"""Bucket shares along what a study varies, as rows for `curves.parquet`: kind `sweep`."""

from collections.abc import Callable, Iterator
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
    found = factors(list(rows.values()))
    named = {name for sets in found.values() for each in sets for _, name in each.points}
    shares = {name: _shares(study, rows[name]) for name in sorted(named)}
    for factor, sets in found.items():
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
    held = [_of_member(study, row, member) for member in members]
    known: dict[str, list[float | None]] = {bucket: [one[bucket] for one in held] for bucket in BUCKETS}
    if "activity" not in row.computed:
        known["dead"] = [None] * len(held)
    of: dict[str, Callable[[Member], float | None]] = {"ev": lambda m: m.ev, "l0": lambda m: m.l0}
    known |= {name: [read(member) for member in members] for name, read in of.items()}
    found: dict[str, float | None] = {}
    for name, values in known.items():
        whole = None not in values
        found[name] = fmean(values) if whole else None
        found[f"{name}_sd"] = stdev(values) if whole and len(values) > 1 else None
    return found


def _of_member(study: Opened, row: Ensemble, member: Member) -> dict[str, float]:
    table = study.store.table(Feature, ["dead", "cosines"], ensemble=row.ensemble, seed=member.seed)
    cosines = table["cosines"].combine_chunks().flatten().to_numpy().reshape(len(table), row.n_comparisons)
    dead = np.array([value is True for value in table["dead"].to_pylist()])
    bucket = buckets(count_matches(cosines, row.theta), row.n_comparisons, dead, row.epsilon)
    living = max(int((~dead).sum()), 1)
    return {name: float((bucket == name).sum()) / (row.d_sae if name == "dead" else living) for name in BUCKETS}
