"""Whether stability can be told from one SAE: a predictor trained and tested on an ensemble's features, kept as a part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.predictions import (
    INPUTS,
    Predictor,
    PredictorInput,
    PredictorScore,
    ReliabilityBin,
)
from seedscope.engine.geometry.one_sae import OneActivity, OneSaeInputs, one_sae_inputs
from seedscope.engine.geometry.predictability import match_clusters
from seedscope.engine.geometry.prediction_rows import Rows, as_arrays, input_rows, reliability_rows, score_rows
from seedscope.engine.geometry.predictor import (
    LabelledFeatures,
    StabilityModel,
    TooFewError,
    cross_predict,
    fit_predictor,
    input_columns,
    require_enough,
)
from seedscope.engine.geometry.predictor_scores import (
    ChanceLabels,
    coverage,
    quality,
    settings_of,
    single_aurocs,
)
from seedscope.engine.matching.best_matches import stored_best_matches
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store.catalogue import EnsemblePlan
from seedscope.engine.store.parts import VERSION, Part, Parts
from seedscope.engine.studies.ensemble_run import EnsembleRun

ANALYSIS = "predictor"
PREDICTED, CARRIED = "predicted", "carried"  # parts of what predictors of other ensembles say of this one
MOST_FEATURES = 20_000  # that a predictor is trained on, drawn at random where there are more
NULL = "null_haar"
_OF_TRIGGERS = ("trigger_entropy", "trigger_top_share")


class LabelledEnsemble(NamedTuple):
    """The features of an ensemble with their inputs and matches."""

    features: LabelledFeatures  # living ones whose inputs are known; `values` has a column per entry of `inputs`
    inputs: tuple[str, ...]
    missing: dict[str, str]  # {input: why it is not known}
    chance: ChanceLabels | None
    theta: float
    at: np.ndarray  # (n,) member * d_sae + feature of each

    def seeing(self, names: Sequence[str], why: Mapping[str, str]) -> "LabelledEnsemble":
        """The same with fewer inputs; `why` says of each other one why it is left out."""
        kept = tuple(name for name in self.inputs if name in names)
        values = self.features.values[:, [self.inputs.index(name) for name in kept]]
        missing = dict(why) | self.missing
        return self._replace(features=self.features._replace(values=values), inputs=kept, missing=missing)


def measure_predictor(run: EnsembleRun) -> None:
    """Train and test a predictor on the ensemble, unless that was done before; needs matches and activity."""
    match, activity = run.parts.find("match", saes=run.sae_digests), run.find_activity()
    if run.stored.n_members < 2:
        run.progress.say(f"{run.name}: predictor: left out, it learns from seeds that were compared and there is one")
        return
    if match is None or activity is None:
        return
    worth = run.parts.find("ablate", **run.measured, **run.judgement)
    about = run.measured | run.judgement | {"match": match.about["live"], "worth": worth is not None}
    if run.parts.find(ANALYSIS, **about):
        return
    with run.progress.stage(f"{run.name}: predictor", "settings") as report:
        labelled = label(run.stored, run.ensemble, match, activity, worth, run.plan.theta)
        tables = trained_tables(labelled, f"{run.plan.name}/{run.name}", run.plan.epsilon, report=report)[0]
    with run.parts.write(ANALYSIS, about) as put:
        put(run.seeds[0], as_arrays(tables))


def label_study(study: Path, ensemble: EnsemblePlan, theta: float) -> LabelledEnsemble:
    """The same of an ensemble of any study, from its parts; raises ValueError where matches or activity are missing."""
    saes = [member.digest for member in ensemble.members]
    if len(saes) < 2:
        raise ValueError(
            f"{study.name}/{ensemble.name} has one member, expected several: it is learned from their matches"
        )
    parts = Parts(study, ensemble.name, strict=True)
    match, activity = parts.find("match", version=VERSION, saes=saes), parts.find("activity", saes=saes)
    if match is None or activity is None:
        lacks = "matches" if match is None else "activity"
        raise ValueError(
            f"{study.name}/{ensemble.name} has no {lacks}; compute them with: seedscope analyze {study.name}"
        )
    worth = parts.find("ablate", saes=saes, tokens=activity.about["tokens"])
    return label(StoredMembers(study / ensemble.folder, ensemble.seeds, saes), ensemble, match, activity, worth, theta)


def label(
    members: StoredMembers, ensemble: EnsemblePlan, match: Part, activity: Part, worth: Part | None, theta: float
) -> LabelledEnsemble:
    """An ensemble's features with their inputs, their matches at theta (nearest cosine) and their clusters."""
    seeds, n, d_sae = ensemble.seeds, members.n_members, members.d_sae
    per_member: list[np.ndarray] = []
    missing: dict[str, str] = {}
    for index in range(n):
        found = member_inputs(members, ensemble, index, activity, worth)
        per_member.append(found.values)
        missing |= found.missing
    matches = stored_best_matches(match, seeds)
    inputs = tuple(name for name in INPUTS if name not in missing)
    values = np.concatenate(per_member)[:, input_columns(inputs)]
    kept = np.flatnonzero(np.isfinite(values).all(1))
    if len(kept) > MOST_FEATURES:
        kept = np.sort(np.random.default_rng(0).choice(kept, MOST_FEATURES, replace=False))
    matched = np.full((len(kept), n), -1, np.int8)
    for index in range(n):
        mine = np.flatnonzero(kept // d_sae == index)
        cosines = matches.cosine[index][kept[mine] - index * d_sae]
        matched[mine[:, None], matches.other[index]] = is_match(cosines, theta)
    clusters = match_clusters(matches.partner, matches.cosine, matches.other, theta).ravel()[kept]
    features = LabelledFeatures(values[kept], matched, kept // d_sae, clusters)
    return LabelledEnsemble(features, inputs, missing, _chance(match, seeds, matches.other, kept, d_sae), theta, kept)


def member_inputs(
    members: StoredMembers, ensemble: EnsemblePlan, index: int, activity: Part | None, worth: Part | None
) -> OneSaeInputs:
    """The inputs of one member's features, from its file and its parts."""
    seed, of_text = ensemble.seeds[index], None
    if activity is not None:
        arrays = activity.read(seed)
        entropy, share = (arrays.get(name) for name in _OF_TRIGGERS)
        of_text = OneActivity(int(arrays["n_tokens"]), arrays["n_active"], arrays["mean_activation"], entropy, share)
    tensors = (members.decoder_rows(index), members.encoder_rows(index), members.encoder_biases(index))
    return one_sae_inputs(
        *(tensor.float().numpy() for tensor in tensors), activity=of_text,
        worth=None if worth is None else worth.read(seed, "marginal")["marginal"],
        transcoder=members.convention.transcoder,
    )  # fmt: skip


def _chance(match: Part, seeds: Sequence[int], other: np.ndarray, kept: np.ndarray, d_sae: int) -> ChanceLabels | None:
    """Cosines with rotated dictionaries of those kept features that were compared with them."""
    at, cosines = [], []
    for index, seed in enumerate(seeds):
        arrays = match.read(seed)
        if NULL not in arrays:
            return None
        rows = index * d_sae + arrays["null_feature"]
        place = np.searchsorted(kept, rows)
        known = (place < len(kept)) & (kept[np.minimum(place, len(kept) - 1)] == rows)
        some = np.full((int(known.sum()), len(seeds)), -2.0)
        some[:, other[index]] = arrays[NULL][known]
        at.append(place[known])
        cosines.append(some)
    return ChanceLabels(np.concatenate(at), np.concatenate(cosines))


def trained_tables(
    labelled: LabelledEnsemble,
    name: str,
    epsilon: float,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[type, Rows], StabilityModel | None]:
    """The tables on a predictor of an ensemble, without the ensemble's own name, and the predictor; None where refused.

    `name` is STUDY/ENSEMBLE.
    """
    features, inputs = labelled.features, labelled.inputs
    left_out = [f"{each}: {labelled.missing[each]}" for each in INPUTS if each not in inputs]
    n_clusters = np.unique(features.cluster, return_counts=True)[1]
    row = Predictor(
        ensemble="", trained_on=name, theta=labelled.theta, kind=None, inputs=list(inputs), left_out=left_out,
        n_features=len(features.values), n_train_members=features.matched.shape[1],
        n_train_comparisons=features.matched.shape[1] - 1, n_clusters=len(n_clusters),
        largest_cluster=float(n_clusters.max() / n_clusters.sum()) if len(n_clusters) else None,
        base_rate=float(features.p.mean()) if len(n_clusters) else None, covered=None, width=None, n_predicted=None,
        n_outside=None, warnings=[], refused=None,
    )  # fmt: skip
    try:
        require_enough(features)
    except TooFewError as error:
        return {Predictor: [asdict(row) | {"refused": str(error)}]}, None
    tested = cross_predict(features)
    main = quality(tested.p, features, epsilon=epsilon)
    model = fit_predictor(features, inputs, tested)
    others = settings_of(features, inputs, model.kind, labelled.chance)
    by_setting = {"clusters": main}
    for done, (setting, predict) in enumerate(others.items()):
        report(done + 1, len(others) + 1)
        predicted, some = predict()
        by_setting[setting] = quality(predicted, some, epsilon=epsilon)
    covered, width = coverage(tested, features)
    report(len(others) + 1, len(others) + 1)
    tables = {
        Predictor: [asdict(row) | {"kind": model.kind, "covered": covered, "width": width}],
        PredictorScore: score_rows("", by_setting),
        ReliabilityBin: reliability_rows("", main),
        PredictorInput: input_rows("", model, single_aurocs(features)),
    }
    return tables, model
