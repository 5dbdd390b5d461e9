"""The pages' JSON, all of it: one line per feature with its comparisons and contexts, under the names of a feature's page.

`features/ENSEMBLE.jsonl`, `pairs/ENSEMBLE.jsonl` and `nulls/ENSEMBLE.jsonl` begin with a line that names format and version;
`tables.json` holds study, ensembles, members and curves. Everything streams. The SAEs' weights are left out.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seedscope.engine.contract.tables.features import Feature, NullMatch, Pair
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.export.explanations import explanation_lists, is_explained
from seedscope.engine.export.features import (
    ByChance,
    by_chance,
    comparison_columns,
    comparison_keys,
    feature_columns,
    logit_lists,
    missing,
    predicted_rows,
    subspace_rows,
    trajectory_rows,
)
from seedscope.engine.export.open_study import FeatureBlock, Opened
from seedscope.engine.export.parquet import CURVE_TABLES, SWEEP
from seedscope.engine.export.sweeps import sweep_rows
from seedscope.engine.progress import Report
from seedscope.engine.store import catalogue

VERSION = 1
N_ROWS = 2**15  # comparisons and contexts in memory at a time, as Python objects: up to 100 MB
_OF_CONTEXT = ("group", "tokens", "activations", "document", "position", "peak")


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write all files but the manifest; returns what is left out, and why."""
    if study.plan:
        shutil.copyfile(study.folder / catalogue.FILE, folder / catalogue.FILE)
    curves = [
        {"kind": kind} | row for kind, table in CURVE_TABLES.items() for row in study.store.table(table).to_pylist()
    ] + [{"kind": SWEEP} | row for row in sweep_rows(study)]
    tables = {
        "format": "seedscope.tables",
        "version": VERSION,
        "study": asdict(study.study),
        "ensembles": [asdict(row) for row in study.ensembles],
        "members": [asdict(member) for members in study.members.values() for member in members],
        "curves": curves,
    }
    (folder / "tables.json").write_text(json.dumps(tables, allow_nan=False))
    done = 0

    def features(row: Ensemble) -> Iterator[dict[str, Any]]:
        nonlocal done
        chance, explained = by_chance(study, row), is_explained(study, row)
        for member in study.members[row.ensemble]:
            ranks = {name: _worth_ranks(study, row, member, name) for name in ("worth_ev", "worth_loss")}
            for part in study.parts(row, member, n_rows=N_ROWS):
                yield from feature_lines(study, part, chance, ranks, explained=explained)
            done += 1
            report(done, study.n_members)

    def rows_of(table: type, row: Ensemble) -> Iterator[dict[str, Any]]:
        for member in study.members[row.ensemble]:
            yield from study.store.table(table, ensemble=row.ensemble, seed=member.seed).to_pylist()

    for row in study.ensembles:
        head = {"study": study.study.study, "ensemble": row.ensemble, "digest": row.digest}
        head |= {"directions": row.directions} if row.directions else {}
        lacks = {"missing": missing(study, row)}
        _write_lines(folder, "features", row.ensemble, head | lacks, features(row))
        for name, table in (("pairs", Pair), ("nulls", NullMatch)):
            _write_lines(folder, name, row.ensemble, head, rows_of(table, row))
    return {"SAEs": "JSON cannot hold them; --format parquet or saelens does"}


def _write_lines(folder: Path, name: str, ensemble: str, head: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
    path = folder / name / f"{ensemble}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        for line in chain([{"format": f"seedscope.{name}", "version": VERSION} | head], lines):
            file.write(json.dumps(line, allow_nan=False) + "\n")


def feature_lines(
    study: Opened, part: FeatureBlock, chance: ByChance, ranks: dict[str, np.ndarray], *, explained: bool
) -> Iterator[dict[str, Any]]:
    """What the JSON of every feature's page says; `ranks` are those of each worth within the member, empty if not computed.

    `explained` says whether any feature of the ensemble has an explanation.
    """
    columns = feature_columns(study, part, chance)
    counts, ids = (columns.pop(name) for name in ("top_token_counts", "top_token_ids"))
    worth = {name: columns.pop(name) for name in ranks}
    rows = pa.table(columns).to_pylist()
    matches = pa.table(comparison_keys(part) | comparison_columns(part)).drop_columns(["ensemble", "seed", "feature"])
    matches = matches.rename_columns({"other_seed": "seed"}).to_pylist()
    contexts, logits = _contexts(study, part), logit_lists(study, part)
    subspaces, along = subspace_rows(study, part), trajectory_rows(study, part)
    predicted = predicted_rows(study, part)
    said = explanation_lists(study, part.ensemble, part.member.seed, part.numbers) if explained else {}
    n = len(part.others)
    for i, (row, top, token_ids) in enumerate(zip(rows, counts.to_pylist(), ids.to_pylist(), strict=True)):
        filled = [count for count, token in zip(top, token_ids, strict=True) if token >= 0]
        row["top_tokens"] = list(zip(row["top_tokens"], filled, strict=True))
        if "activity" not in part.ensemble.computed:
            row |= {"top_tokens": None, "histogram": None, "quantiles": None}
        yield (
            row
            | {
                "histogram_edges": part.member.histogram_edges or None,
                "matches": matches[i * n : (i + 1) * n],
                "contexts": contexts.get(row["feature"], []) if "activity" in part.ensemble.computed else None,
                "explanations": said.get(row["feature"], []) if explained else None,
                "subspace": subspaces.get(row["feature"]),
                "trajectory": along.get(row["feature"]),
                "predicted": predicted.get(row["feature"]),
                "ablation": _ablation(part, row["feature"], {name: worth[name][i].as_py() for name in ranks}, ranks),
            }
            | logits.get(row["feature"], {"positive_logits": None, "negative_logits": None})
        )


def _ablation(
    part: FeatureBlock, feature: int, worth: dict[str, float | None], ranks: dict[str, np.ndarray]
) -> dict[str, float | int | None] | None:
    place = {name: int(of_member[feature]) if len(of_member) else None for name, of_member in ranks.items()}
    if set(place.values()) == {None}:
        return None
    return {"marginal_ev": worth["worth_ev"], "rank": place["worth_ev"], "of": part.ensemble.d_sae,
            "marginal_loss_nats": worth["worth_loss"], "loss_rank": place["worth_loss"]}  # fmt: skip


def _worth_ranks(study: Opened, row: Ensemble, member: Member, column: str) -> np.ndarray:
    """(d_sae,) 1-based rank of every feature's worth within its member, the largest first; empty if not computed."""
    values = study.store.table(Feature, [column], ensemble=row.ensemble, seed=member.seed)[column]
    if values.null_count:
        return np.zeros(0, np.int64)
    worth = values.to_numpy()
    return len(worth) - np.searchsorted(np.sort(worth), worth, side="right") + 1


def _contexts(study: Opened, part: FeatureBlock) -> dict[int, list[dict[str, Any]]]:
    """{feature: its contexts as the pages show them}."""
    by_feature: dict[int, list[dict[str, Any]]] = {}
    for row in study.contexts(part).to_pylist():
        shown = row | {
            "tokens": study.texts.take(pa.array(row["token_ids"], pa.int32())).to_pylist(),
            "document": study.documents[row["document"]],
        }
        by_feature.setdefault(row["feature"], []).append({name: shown[name] for name in _OF_CONTEXT})
    return by_feature
