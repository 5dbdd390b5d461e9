"""Exports the published results of a study into one folder, complete or not there, described by a manifest.

parquet: everything, restorable (engine.export.restore). json: the pages' JSON, a line per feature. neuronpedia: the layout that
Neuronpedia imports. saelens: a folder per SAE that SAELens loads. delphi: explanations alone. spans: shared spans with their bases.
saebench: an eval result per SAE as SAEBench writes them. hf-dataset: a folder that the datasets library loads.
"""

from collections.abc import Callable
from pathlib import Path

from seedscope.engine.contract.names import name_problem
from seedscope.engine.contract.published import published
from seedscope.engine.export import (
    delphi,
    hf_dataset,
    jsonlines,
    manifest,
    neuronpedia,
    parquet,
    saebench,
    saelens,
    spans,
)
from seedscope.engine.export.open_study import Opened, opened
from seedscope.engine.progress import Report
from seedscope.engine.store import catalogue
from seedscope.engine.store.staged import staged

FORMATS: dict[str, Callable[[Opened, Path, Report], dict[str, str]]] = {
    "parquet": parquet.write, "json": jsonlines.write, "neuronpedia": neuronpedia.write, "saelens": saelens.write,
    "delphi": delphi.write, "spans": spans.write, "saebench": saebench.write,
    "hf-dataset": hf_dataset.write,
}  # fmt: skip


def export(
    root: Path,
    study: str,
    folder: Path,
    *,
    format: str = "parquet",
    report: Report = lambda done, total: None,
) -> list[Path]:
    """Write the published results of a study into a new folder; returns its files.

    `saelens` needs no results: of a study that was only imported it writes the SAEs that the catalogue names, and no manifest.
    Memory: about one member of the largest ensemble. Raises ValueError for a study that is not there, a folder that holds
    something, an SAE that is gone or changed, and what the format cannot express; then nothing is left behind.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    _require_empty(folder)
    if format == "saelens" and (plan := _without_results(root, study)):
        with staged(folder) as target:
            saelens.write_imported(root / study, plan, target, report)
        return sorted(path for path in folder.rglob("*") if path.is_file())
    with opened(root, study) as exported, staged(folder) as target:
        left_out = FORMATS[format](exported, target, report)
        manifest.write(target, exported, format, left_out)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _without_results(root: Path, study: str) -> catalogue.StudyPlan | None:
    """The catalogue of a study that has nothing published; None for any other."""
    if name_problem(study, exists=True) or published(root / study):
        return None
    plan = catalogue.read(root / study)
    return plan if plan and plan.ensembles else None


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        content = "has files in it" if folder.is_dir() else "is a file"
        raise ValueError(f"{folder} {content}, expected a new or empty folder; name another one, or empty it")
