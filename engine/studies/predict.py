"""Predicts the stability of one SAE's features by a predictor that is trained on an ensemble whose stability was measured.

What is predicted is kept as a part of the one SAE's study, with how well the predictor does and in which ways the SAE is unlike
those that it was trained on; `publish` shows it, always as *predicted*.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.places import same_place
from seedscope.engine.contract.tables.predictions import Predictor, PredictorScore
from seedscope.engine.geometry.prediction_rows import Rows, as_arrays
from seedscope.engine.geometry.predictor import input_columns
from seedscope.engine.progress import Progress
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import measured_from, read_evaluation
from seedscope.engine.store.parts import VERSION, Part, Parts
from seedscope.engine.studies.analyses.predictor import (
    PREDICTED,
    label_study,
    member_inputs,
    trained_tables,
)

WARN, REFUSE = 1.25, 4.0  # factors in d_sae or L0 between the SAE and those that the predictor was trained on
MOST_OUTSIDE = 0.5  # share of its features beyond the training features' inputs, above which nothing is predicted


class SaeTraits(NamedTuple):
    """What sets SAEs apart that a predictor may not carry over between."""

    variant: str | None
    hookpoint: str | None
    model: str | None
    tokens: str | None  # digest of those that activity was measured on
    d_sae: int
    d_in: int
    transcoder: bool
    l0: tuple[float, float] | None  # smallest and largest of the members; None without activity


class PredictionReport(NamedTuple):
    """What was predicted, for a command to say."""

    predictor: dict[str, Any]  # a Predictor
    scores: Rows  # PredictorScore
    p: np.ndarray  # (n,) of the features that could be predicted
    inside: np.ndarray
    d_sae: int


def predict_one(
    root: Path,
    study: str,
    ensemble: str,
    trained_on: tuple[str, str],
    progress: Progress,
    *,
    force: bool = False,
) -> PredictionReport:
    """Predict p of every living feature of the one SAE of an ensemble, and keep it as a part of its study.

    `trained_on` names the study and the ensemble that the predictor is trained on, under the same root. Inputs that either side
    lacks are left out on both. Raises ValueError where an ensemble is not there or lacks what is needed, where it is not one SAE,
    and, unless `force`, where it is too unlike those of the training ensemble.
    """
    plan, source = read_plan(root, study), read_plan(root, trained_on[0])
    one, many = plan.ensemble(ensemble), source.ensemble(trained_on[1])
    name = "/".join(trained_on)
    if len(one.members) != 1:
        raise ValueError(
            f"{study}/{ensemble} has {len(one.members)} members, expected one SAE: what several agree on is measured, not predicted"
        )
    same = [member.seed for member in many.members if member.digest == one.members[0].digest]
    if same and not force:
        raise ValueError(
            f"{study}/{ensemble} is seed {same[0]} of {name}, where its stability is measured; the predictor has seen it. Give "
            "--force to predict it all the same"
        )
    labelled = label_study(root / trained_on[0], many, source.theta)
    activity, worth = _measured(root / study, one)
    members = _members(root / study, one)
    found = member_inputs(members, one, 0, activity, worth)
    inputs = [each for each in labelled.inputs if each not in found.missing]
    labelled = labelled.seeing(inputs, {each: f"of {study}/{ensemble}, {why}" for each, why in found.missing.items()})
    values = found.values[:, input_columns(inputs)]
    at = np.flatnonzero(np.isfinite(values).all(1))
    traits = _traits(root / study, plan, one, activity), _traits(root / trained_on[0], source, many, None)
    warnings, refusals = compare_traits(*traits)
    warnings += [f"it is seed {seed} of {name}: the predictor was trained on it" for seed in same]
    if refusals and not force:
        raise ValueError(_refused(f"{study}/{ensemble}", name, refusals))
    with progress.stage(f"{ensemble}: predictor of {name}", "settings") as report:
        tables, model = trained_tables(labelled, name, source.epsilon, report=report)
    (row,) = tables[Predictor]
    if model is None:
        raise ValueError(f"no predictor can be trained on {name}: {row['refused']}")
    predicted = model.predict(values[at])
    n_outside = int((~predicted.inside).sum())
    if n_outside > MOST_OUTSIDE * len(at):
        refusals.append(
            f"{n_outside:,} of its {len(at):,} living features have inputs beyond those of the training features"
        )
        if not force:
            raise ValueError(_refused(f"{study}/{ensemble}", name, refusals))
    warnings = [
        *(f"forced: {each}" for each in refusals),
        *warnings,
        *_outside(values[at], model.lowest, model.highest, inputs),
    ]
    row |= {"n_predicted": len(at), "n_outside": n_outside, "warnings": warnings}
    with Parts(root / study, ensemble).write(PREDICTED, _about(root / study, one) | {"trained_on": name}) as put:
        put(one.seeds[0], as_arrays(tables, one.seeds[0], at, predicted))
    return PredictionReport(row, tables[PredictorScore], predicted.p, predicted.inside, members.d_sae)


def read_plan(root: Path, study: str) -> catalogue.StudyPlan:
    """A study's catalogue; raises ValueError, which lists the studies there are, where there is none."""
    plan = catalogue.read(root / study)
    if plan is None:
        known = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{catalogue.FILE}"))) or "none"
        raise ValueError(f"found no study {study} under {root}, it holds {known}")
    return plan


def _members(study: Path, ensemble: catalogue.EnsemblePlan) -> StoredMembers:
    digests = [member.digest for member in ensemble.members]
    return StoredMembers(study / ensemble.folder, ensemble.seeds, digests)


def _measured(study: Path, ensemble: catalogue.EnsemblePlan) -> tuple[Part | None, Part | None]:
    """The activity and worth of an ensemble on the study's present tokens, as far as they are there."""
    evaluation = read_evaluation(study)
    if evaluation is None:
        return None, None
    parts, same = Parts(study, ensemble.name, strict=True), measured_from(ensemble, evaluation)
    return parts.find("activity", **same), parts.find("ablate", **same)


def _about(study: Path, ensemble: catalogue.EnsemblePlan) -> dict[str, Any]:
    """What a prediction is of, as `publish` looks for it."""
    evaluation = read_evaluation(study)
    if evaluation:
        return measured_from(ensemble, evaluation)
    return {"version": VERSION, "saes": [member.digest for member in ensemble.members], "tokens": None}


def _traits(
    study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, activity: Part | None
) -> SaeTraits:
    members = _members(study, ensemble)
    if activity is None:
        activity = Parts(study, ensemble.name).find("activity", saes=[member.digest for member in ensemble.members])
    l0 = None
    if activity:
        arrays = [activity.read(seed, "n_active", "n_tokens") for seed in ensemble.seeds]
        l0s = [float(each["n_active"].sum() / each["n_tokens"]) for each in arrays]
        l0 = min(l0s), max(l0s)
    return SaeTraits(
        ensemble.variant or members.convention.architecture, ensemble.hookpoint, plan.model and Path(plan.model).name,
        activity.about["tokens"] if activity else None, members.d_sae, members.d_in, members.convention.transcoder, l0,
    )  # fmt: skip


def compare_traits(one: SaeTraits, many: SaeTraits) -> tuple[list[str], list[str]]:
    """(warnings, reasons not to predict): how an SAE differs from those that a predictor was trained on."""
    warnings, refusals = [], []
    if one.transcoder != many.transcoder:
        says = ("an SAE", "transcoders") if many.transcoder else ("a transcoder", "SAEs")
        refusals.append(f"it is {says[0]}, the predictor was trained on {says[1]}")
    for what, mine, theirs in (
        ("variant", one.variant, many.variant),
        ("model", one.model, many.model),
        ("evaluation text (digest)", one.tokens, many.tokens),
    ):
        if mine != theirs:
            warnings.append(f"{what}: {mine or 'unknown'} here, {theirs or 'unknown'} there")
    if not (one.hookpoint and many.hookpoint and same_place(one.hookpoint, many.hookpoint)):
        warnings.append(f"hook point: {one.hookpoint or 'unknown'} here, {many.hookpoint or 'unknown'} there")
    if one.d_in != many.d_in:
        warnings.append(f"d_in: {one.d_in:,} here, {many.d_in:,} there")
    wide = max(one.d_sae / many.d_sae, many.d_sae / one.d_sae)
    if one.d_sae != many.d_sae:
        (refusals if wide > REFUSE else warnings).append(f"d_sae: {one.d_sae:,} here, {many.d_sae:,} there")
    if one.l0 and many.l0:
        l0 = one.l0[0]
        apart = max(l0 / many.l0[1], many.l0[0] / l0) if l0 > 0 and many.l0[1] > 0 else np.inf
        if apart > WARN:
            text = f"L0: {l0:.1f} here, {many.l0[0]:.1f} to {many.l0[1]:.1f} there"
            (refusals if apart > REFUSE else warnings).append(text)
    return warnings, refusals


def _outside(values: np.ndarray, lowest: np.ndarray, highest: np.ndarray, inputs: Sequence[str]) -> list[str]:
    """Inputs in which some features lie beyond the training features, and how many."""
    beyond = ((values < lowest) | (values > highest)).sum(0)
    return [
        f"{name.replace('_', ' ')}: {n:,} features beyond the training range of {low:.3g} to {high:.3g}"
        for name, n, low, high in zip(inputs, beyond.tolist(), lowest, highest, strict=True)
        if n
    ]


def _refused(what: str, trained_on: str, refusals: Sequence[str]) -> str:
    return (
        f"{what} is too unlike the SAEs of {trained_on} to be predicted from them: {'; '.join(refusals)}. Train from an ensemble "
        "that is more like it, or give --force to go on and have it remembered"
    )
