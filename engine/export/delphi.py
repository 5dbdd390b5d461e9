"""Explanations as delphi leaves them: `ENSEMBLE/seed-N/EXPLAINER/`, a results folder per member and explainer.

`seedscope explain STUDY --ensemble ENSEMBLE --seed N --from FOLDER` reads one of them; see engine.explanations.exchange.delphi.
"""

import re
from pathlib import Path

from seedscope.engine.explanations.exchange import delphi as exchange
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.export.explanations import batches, is_explained
from seedscope.engine.export.open_study import Opened
from seedscope.engine.progress import Report


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write all folders; raises ValueError where nothing is explained."""
    rows = [row for row in study.ensembles if is_explained(study, row)]
    if not rows:
        raise ValueError(
            f"no feature of study {study.study.study} has an explanation, and delphi's folders hold nothing else; make some "
            f"with: seedscope explain {study.study.study}"
        )
    members = [(row, member) for row in rows for member in study.members[row.ensemble]]
    names: dict[str, str] = {}
    for done, (row, member) in enumerate(members):
        for batch in batches(study, row, member.seed):
            by_explainer: dict[str, list[FeatureExplanation]] = {}
            for explanation in (each for of_feature in batch.explanations.values() for each in of_feature):
                by_explainer.setdefault(explanation.explainer, []).append(explanation)
            for explainer, explanations in by_explainer.items():
                target = folder / row.ensemble / f"seed-{member.seed}" / _folder_name(explainer, names)
                exchange.write(target, explanations, hookpoint=row.hookpoint or "unknown", scored=batch.scored)
        report(done + 1, len(members))
    without = [row.ensemble for row in study.ensembles if row not in rows]
    left_out = {"results": "delphi has no place for them; --format parquet holds all"}
    return left_out | ({", ".join(without): "nothing is explained"} if without else {})


def _folder_name(explainer: str, names: dict[str, str]) -> str:
    """The folder of an explainer, different for each; `names` are those of earlier calls, and gain this one."""
    if explainer not in names:
        plain = re.sub(r"[^a-z0-9.]+", "-", explainer.lower()).strip("-.")[:80] or "explainer"
        taken = set(names.values())
        names[explainer] = next(n for i in range(len(taken) + 1) if (n := f"{plain}-{i}" if i else plain) not in taken)
    return names[explainer]
