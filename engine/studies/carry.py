"""How far a predictor carries: trained on all ensembles of a study but one, tested on the one that was left out.

Ensembles of one study read the same model on the same text, so that their features may be copies of one another. Clusters of
matches are therefore joined across ensembles, and what is tested lies in other clusters than what was trained on. The procedure is
this project's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.predictions import INPUTS, CarriedPrediction
from seedscope.engine.geometry.prediction_rows import as_arrays, carried_row
from seedscope.engine.geometry.predictor import (
    FEWEST_FEATURES,
    LabelledFeatures,
    TooFewError,
    cross_predict,
    fit_predictor,
    folds,
    require_enough,
)
from seedscope.engine.geometry.predictor_scores import quality
from seedscope.engine.progress import Progress
from seedscope.engine.saes.stored import StoredMembers, stacked_decoders
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Parts
from seedscope.engine.studies.analyses.predictor import CARRIED, LabelledEnsemble, label_study
from seedscope.engine.studies.predict import read_plan

SIDES = 2  # parts of the clusters: trained on one, tested on the other, and the other way round
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
    clusters = join_clusters([each.features.cluster for each in labelled], rows, plan.theta)
    features = [each.features._replace(cluster=ids) for each, ids in zip(labelled, clusters, strict=True)]
    carried = []
    with progress.stage(f"{study}: left-out ensembles", "ensembles") as report:
        for index, name in enumerate(names):
            carried.append(_left_out(index, names, features, labelled, plan))
            about = {"saes": [member.digest for member in plan.ensemble(name).members], "theta": plan.theta}
            with Parts(root / study, name).write(CARRIED, about | {"trained_on": carried[-1]["trained_on"]}) as put:
                put(plan.ensemble(name).seeds[0], as_arrays({CarriedPrediction: [carried[-1]]}))
            report(index + 1, len(names))
    return carried


def _unit_rows(study: Path, ensemble: catalogue.EnsemblePlan, at: np.ndarray) -> np.ndarray:
    """(n, d_out) unit decoder rows of the features `at`, float32."""
    digests = [member.digest for member in ensemble.members]
    decoders = stacked_decoders(StoredMembers(study / ensemble.folder, ensemble.seeds, digests)).float().numpy()
    rows = decoders.reshape(-1, decoders.shape[-1])[at]
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def join_clusters(clusters: Sequence[np.ndarray], rows: Sequence[np.ndarray], theta: float) -> list[np.ndarray]:
    """Cluster ids over all ensembles: those of each, joined where a row's nearest row of another ensemble reaches theta.

    `rows` are unit rows; ensembles of different widths have no common clusters.
    """
    offsets = np.cumsum([0, *(len(each) for each in clusters)])
    n = int(offsets[-1])
    first, second = [], []
    for at, ids in enumerate(clusters):  # every row with the first of its own cluster
        _, earliest, inverse = np.unique(ids, return_index=True, return_inverse=True)
        first.append(offsets[at] + np.arange(len(ids)))
        second.append(offsets[at] + earliest[inverse])
    for one in range(len(rows)):
        for other in range(len(rows)):
            if one != other and rows[one].shape[1] == rows[other].shape[1]:
                near, cosine = _nearest(rows[one], rows[other])
                joined = np.flatnonzero(is_match(cosine, theta))
                first.append(offsets[one] + joined)
                second.append(offsets[other] + near[joined])
    edges = np.concatenate(first), np.concatenate(second)
    graph = sparse.coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(n, n))
    return np.split(connected_components(graph, directed=False)[1], offsets[1:-1])


def _nearest(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and cosine of the nearest of other unit rows."""
    near, cosine = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK):
        cosines = rows[start : start + BLOCK] @ others.T
        near[start : start + BLOCK] = cosines.argmax(1)
        cosine[start : start + BLOCK] = cosines.max(1)
    return near, cosine


def together(features: Sequence[LabelledFeatures]) -> LabelledFeatures:
    """Features of several ensembles one after the other; members that an ensemble does not have are absent."""
    n_members = max(each.matched.shape[1] for each in features)
    padded = [
        np.pad(each.matched, ((0, 0), (0, n_members - each.matched.shape[1])), constant_values=-1) for each in features
    ]
    columns = (
        np.concatenate(column)
        for column in zip(*((each.values, each.member, each.cluster) for each in features), strict=True)
    )
    values, member, cluster = columns
    return LabelledFeatures(values, np.concatenate(padded), member, cluster)


def _left_out(
    index: int,
    names: Sequence[str],
    features: Sequence[LabelledFeatures],
    labelled: Sequence[LabelledEnsemble],
    plan: catalogue.StudyPlan,
) -> dict[str, Any]:
    """Train on the other ensembles, test on this one, on clusters that were not trained on."""
    tested, others = features[index], together([each for at, each in enumerate(features) if at != index])
    both = np.concatenate([tested.cluster, others.cluster])
    predicted = np.zeros(len(tested.values))
    for train, test in folds(both, SIDES):
        here, there = test[test < len(tested.values)], train[train >= len(tested.values)] - len(tested.values)
        some = others.at(there)
        try:
            require_enough(some, FEWEST_FEATURES // SIDES)
        except TooFewError as error:
            raise ValueError(f"{plan.name}: without {names[index]} too little is left to train on: {error}") from None
        predicted[here] = fit_predictor(some, labelled[index].inputs).predict(tested.values[here]).p
    own = quality(cross_predict(labelled[index].features).p, labelled[index].features, epsilon=plan.epsilon)
    found = quality(predicted, tested, epsilon=plan.epsilon)
    trained_on = [name for name in names if name != names[index]]
    return carried_row(names[index], trained_on, found, own, float(tested.p.mean()), float(predicted.mean()))
