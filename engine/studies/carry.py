"""How far a predictor carries: trained on all ensembles of a study but one, tested on the one that was left out.

Ensembles of one study read the same model on the same text, so that their features may be copies of one another. The left-out
ensemble's clusters of matches are dealt into two halves; a half is predicted by a model that saw no feature that matches one of it
(nearest cosine at least theta), and of features that match none, as many. Chains of matches over many ensembles are not followed:
they join nearly all features that match at all. The procedure is this project's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.predictions import INPUTS, CarriedPrediction
from seedscope.engine.geometry.prediction_rows import as_arrays, carried_row
from seedscope.engine.geometry.predictor import (
    FEWEST_FEATURES,
    LabelledFeatures,
    TooFewError,
    cross_predict,
    folds,
    predict_from,
    require_enough,
)
from seedscope.engine.geometry.predictor_scores import quality
from seedscope.engine.progress import Progress
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Parts
from seedscope.engine.studies.analyses.predictor import CARRIED, LabelledEnsemble, label_study
from seedscope.engine.studies.predict import read_plan

HALVES = 2
BLOCK = 2048  # rows whose cosines with another ensemble's are in memory at once


def measure_carry(root: Path, study: str, progress: Progress) -> list[dict[str, Any]]:
    """A CarriedPrediction per ensemble, kept as parts; controls, single SAEs and what has too few features are left out, said.

    Raises ValueError where fewer than two ensembles are left.
    """
    plan = read_plan(root, study)
    names, labelled, rows = [], [], []
    for ensemble in plan.ensembles:
        if ensemble.control_of or len(ensemble.members) < 2:
            reason = "it is a control" if ensemble.control_of else "it is one SAE"
            progress.say(f"{ensemble.name}: left out, {reason}")
            continue
        try:
            found = label_study(root / study, ensemble, plan.theta)
            require_enough(found.features)
        except ValueError as error:
            progress.say(f"{ensemble.name}: left out, {error}")
            continue
        names.append(ensemble.name)
        labelled.append(found)
        rows.append(_unit_rows(root / study, ensemble, found.at))
    if len(names) < 2:
        raise ValueError(
            f"{study} has {len(names)} ensemble{'s' * (len(names) != 1)} that a predictor can be trained on, expected at least "
            "two: one is left out and predicted from the others"
        )
    shared = [name for name in INPUTS if all(name in each.inputs for each in labelled)]
    labelled = [each.seeing(shared, {}) for each in labelled]
    carried = []
    with progress.stage(f"{study}: left-out ensembles", "ensembles") as report:
        for index, name in enumerate(names):
            carried.append(_left_out(index, names, labelled, rows, plan))
            about = {"saes": [member.digest for member in plan.ensemble(name).members], "theta": plan.theta}
            with Parts(root / study, name).write(CARRIED, about | {"trained_on": carried[-1]["trained_on"]}) as put:
                put(plan.ensemble(name).seeds[0], as_arrays({CarriedPrediction: [carried[-1]]}))
            report(index + 1, len(names))
    return carried


def _unit_rows(study: Path, ensemble: catalogue.EnsemblePlan, at: np.ndarray) -> np.ndarray:
    """(n, d_out) unit decoder rows of the features `at`, float32."""
    digests = [member.digest for member in ensemble.members]
    members = StoredMembers(study / ensemble.folder, ensemble.seeds, digests)
    rows = np.empty((len(at), members.d_out), np.float32)
    member, feature = np.divmod(at, members.d_sae)
    for index in range(members.n_members):
        mine = member == index
        rows[mine] = members.decoder_rows(index).float().numpy()[feature[mine]]
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def may_train(
    rows: np.ndarray, tested: np.ndarray, half_of: np.ndarray, theta: float, rng: np.random.Generator
) -> np.ndarray:
    """(HALVES, n) whether unit rows (n, d) of another ensemble may be trained on where each half of the `tested` rows is predicted.

    `half_of` says which half each tested row is of. What matches a row of a half is kept from it; what matches none is dealt out.
    Rows of another width match nothing.
    """
    dealt = rng.integers(HALVES, size=len(rows))
    matches = np.zeros((HALVES, len(rows)), bool)
    if rows.shape[1] == tested.shape[1]:
        for half in range(HALVES):
            matches[half] = is_match(_largest_cosine(rows, tested[half_of == half]), theta)
    alone = ~matches.any(0)
    return np.stack([np.where(alone, dealt != half, ~matches[half]) for half in range(HALVES)])


def _largest_cosine(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) largest cosine of each unit row with other unit rows."""
    found = [(rows[at : at + BLOCK] @ others.T).max(1, initial=-1) for at in range(0, len(rows), BLOCK)]
    return np.concatenate(found) if found else np.zeros(0)


def together(features: Sequence[LabelledFeatures]) -> LabelledFeatures:
    """Features of several ensembles one after the other; members that an ensemble does not have are absent, clusters are apart."""
    n_members = max(each.matched.shape[1] for each in features)
    padded = [
        np.pad(each.matched, ((0, 0), (0, n_members - each.matched.shape[1])), constant_values=-1) for each in features
    ]
    first = np.cumsum([0, *(each.cluster.max(initial=-1) + 1 for each in features)])
    return LabelledFeatures(
        np.concatenate([each.values for each in features]),
        np.concatenate(padded),
        np.concatenate([each.member for each in features]),
        np.concatenate([each.cluster + at for each, at in zip(features, first, strict=False)]),
    )


def _left_out(
    index: int,
    names: Sequence[str],
    labelled: Sequence[LabelledEnsemble],
    rows: Sequence[np.ndarray],
    plan: catalogue.StudyPlan,
) -> dict[str, Any]:
    """Train on the other ensembles, test on this one: each half of its clusters by what matches nothing of that half."""
    tested, rng = labelled[index].features, np.random.default_rng(0)
    half_of = np.zeros(len(tested.values), int)
    for half, (_, test) in enumerate(folds(tested.cluster, HALVES)):
        half_of[test] = half
    others = [at for at in range(len(labelled)) if at != index]
    allowed = [may_train(rows[at], rows[index], half_of, plan.theta, rng) for at in others]
    predicted = np.zeros(len(tested.values))
    for half in range(HALVES):
        some = together(
            [labelled[at].features.at(np.flatnonzero(of[half])) for at, of in zip(others, allowed, strict=True)]
        )
        try:
            require_enough(some, FEWEST_FEATURES // HALVES)
        except TooFewError as error:
            raise ValueError(f"{plan.name}: without {names[index]} too little is left to train on: {error}") from None
        here = half_of == half
        predicted[here] = predict_from(some, tested.values[here])[0]
    own = quality(cross_predict(tested).p, tested, epsilon=plan.epsilon)
    found = quality(predicted, tested, epsilon=plan.epsilon)
    trained_on = [names[at] for at in others]
    return carried_row(names[index], trained_on, found, own, float(tested.p.mean()), float(predicted.mean()))
