"""SAEs as SAELens 6 loads them: `ENSEMBLE/seed-N/cfg.json`, `sae_weights.safetensors`, and the seed in `runner_cfg.json`.

SAELens knows no scale of the inputs, no groups and no other comparison with a threshold than `>`; what it does not know is
folded into the weights where that is exact, and refused otherwise. Where numbers are folded, float32 rounds them once.
"""

import json
from dataclasses import fields
from pathlib import Path

from seedscope.engine.contract.tables.study import Ensemble
from seedscope.engine.export.open_study import Opened, SaeFile, read_sae, sae_file
from seedscope.engine.progress import Report
from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.saelens import refusal, save
from seedscope.engine.store import catalogue

Metadata = dict[str, str | int | None]
_FIELDS = [field.name for field in fields(Convention)]


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write every SAE of the store, and of ensembles that wait for their analysis every SAE of the catalogue.

    Raises ValueError, before anything is written, where SAELens cannot express one.
    """
    waiting = _planned(study.folder, study.plan, {row.ensemble for row in study.ensembles}) if study.plan else []
    for row in study.ensembles:
        _require_expressible(row.ensemble, convention_of(row))
    members = [
        (
            one,
            {
                "model_name": study.study.model,
                "hook_name": row.hookpoint,
                "context_size": study.study.n_ctx,
                "training_architecture": row.variant,
            },
        )
        for row in study.ensembles
        for one in study.saes(row)
    ]
    _write(study.folder, [*members, *waiting], folder, report)
    return {"results": "SAELens has no place for them; --format parquet holds all"}


def convention_of(row: Ensemble) -> Convention:
    """The forward pass of an ensemble's members."""
    forward = json.loads(row.convention)
    return Convention(**{name: forward[name] for name in _FIELDS if name in forward})


def write_imported(study: Path, plan: catalogue.StudyPlan, folder: Path, report: Report) -> None:
    """Write every SAE that a catalogue names: of a study without results. Raises ValueError as `write`."""
    _write(study, _planned(study, plan, set()), folder, report)


def _planned(study: Path, plan: catalogue.StudyPlan, without: set[str]) -> list[tuple[SaeFile, Metadata]]:
    """The SAEs of a catalogue's ensembles, but for some, and what is said of each; raises ValueError as `write`."""
    members = []
    for ensemble in plan.ensembles:
        if ensemble.name in without:
            continue
        first, _ = sae.read(study / sae_file(ensemble.folder, ensemble.seeds[0]))
        _require_expressible(ensemble.name, first.convention)
        for member in ensemble.members:
            named, source = member.facts.get("model", ("", ""))
            metadata: Metadata = {
                "model_name": plan.model or (named if source else None),
                "hook_name": ensemble.hookpoint,
                "context_size": plan.tokens.n_ctx if plan.tokens else None,
                "training_architecture": ensemble.variant,
            }
            file = sae_file(ensemble.folder, member.seed)
            members.append((SaeFile(ensemble.name, member.seed, member.digest, member.source, file), metadata))
    return members


def _write(study: Path, members: list[tuple[SaeFile, Metadata]], folder: Path, report: Report) -> None:
    for done, (one, about) in enumerate(members):
        metadata = {**about, "seed": one.seed, "seedscope_digest": one.digest}
        save(read_sae(study, one), folder / one.ensemble / f"seed-{one.seed}", metadata)
        report(done + 1, len(members))


def _require_expressible(ensemble: str, convention: Convention) -> None:
    if reason := refusal(convention):
        raise ValueError(
            f"ensemble {ensemble} cannot be exported to SAELens: {reason}; --format parquet keeps the SAEs as they are"
        )
