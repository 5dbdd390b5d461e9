"""Publishes a study: its catalogue and the parts of its analyses become one new store, visible to readers when complete."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from seedscope.engine.activations.tokens import PADDING, load_tokens
from seedscope.engine.contract.directions import UNPREDICTABLE
from seedscope.engine.contract.schema import ANALYSES, SCHEMA_VERSION
from seedscope.engine.contract.tables.study import Document, Ensemble, Study, Token, TokenWindow
from seedscope.engine.explanations.explanation import FeatureExplanation, from_arrays
from seedscope.engine.explanations.of_study import ANALYSIS as RULES
from seedscope.engine.explanations.of_study import IMPORTED, explanations
from seedscope.engine.explanations.rows import add_explanations
from seedscope.engine.features.ablation import Masking, Worth
from seedscope.engine.features.activity import Activity, Contexts
from seedscope.engine.features.examples import Examples
from seedscope.engine.features.function import MemberFunction
from seedscope.engine.features.function import from_arrays as function_from_arrays
from seedscope.engine.features.function_rows import add_summaries
from seedscope.engine.features.logits import Logits
from seedscope.engine.features.loss import Losses, MaskedLoss
from seedscope.engine.features.rows import add_ablation
from seedscope.engine.features.triggers import Triggers
from seedscope.engine.geometry.prediction_rows import add_predictions
from seedscope.engine.geometry.rows import ANALYSIS as SUBSPACES
from seedscope.engine.geometry.rows import add_spans
from seedscope.engine.geometry.shared_span_rows import ANALYSIS as SHARED_SPANS
from seedscope.engine.geometry.shared_span_rows import add_shared_spans
from seedscope.engine.matching.match import NULL_KINDS, Chance, Matches
from seedscope.engine.matching.rows import add_null
from seedscope.engine.saes import sae
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.evaluation import Evaluation, measured_from, read_evaluation
from seedscope.engine.store.parts import VERSION, Part, Parts
from seedscope.engine.store.rows import add_row
from seedscope.engine.studies.analyses.function import ANALYSIS as FUNCTION
from seedscope.engine.studies.analyses.predictor import ANALYSIS as PREDICTOR
from seedscope.engine.studies.analyses.predictor import CARRIED, PREDICTED
from seedscope.engine.studies.pools.record import add_pool, current
from seedscope.engine.studies.rows import add_member, add_pairs, dead_features
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.rows import add_truth
from seedscope.engine.training.rows import add_trajectory
from seedscope.engine.training.snapshots import kept
from seedscope.engine.training.trace import read as read_trace
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY


def publish(study: Path, *, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write the results of a study's ensembles into a new store; returns its path.

    An ensemble whose members were never matched is left out. Memory: one member of the largest ensemble, its decoder, and
    what the Writer holds; of a synthetic study all its members. Raises ValueError where no ensemble was matched.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    evaluation = read_evaluation(study)
    parts = [_EnsembleParts(study, plan, ensemble, evaluation) for ensemble in plan.ensembles]
    matched = [(ensemble_parts, match) for ensemble_parts in parts if (match := ensemble_parts.match)]
    if not matched:
        raise ValueError(
            f"no ensemble of {plan.name} was matched; compute what is missing with: seedscope analyze {plan.name}"
        )
    total, done = sum(len(ensemble_parts.ensemble.members) for ensemble_parts, _ in matched), 0
    measured = any(ensemble_parts.activity for ensemble_parts, _ in matched)
    with Writer(study) as writer:
        devices = {match.about["device"] for _, match in matched}
        _add_study(writer, plan, evaluation if measured else None, study / "parts", devices)
        for ensemble_parts, match in matched:
            for _ in _add_ensemble(writer, ensemble_parts, match):
                done += 1
                report(done, total)
        path = writer.publish(
            built_from=plan.built_from, compared=any(len(parts.ensemble.members) > 1 for parts, _ in matched)
        )
    _forget_replaced(study, plan)
    return path


def _forget_replaced(study: Path, plan: catalogue.StudyPlan) -> None:
    """Remove SAEs of imported ensembles that were replaced; trained ones are kept."""
    for ensemble in plan.ensembles:
        current_folder, folders = study / ensemble.folder, study / "sae" / ensemble.name
        if ensemble.origin == "imported" and current_folder.parent == folders:
            for former in folders.iterdir():
                if former != current_folder and former.is_dir():
                    shutil.rmtree(former)


class _EnsembleParts:
    """The parts of one ensemble that belong to its present members, the present tokens and thresholds, and its pool."""

    def __init__(
        self, study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, evaluation: Evaluation | None
    ) -> None:
        self.study, self.plan, self.ensemble = study, plan, ensemble
        parts = Parts(study, ensemble.name, strict=True)  # what is damaged must not vanish from the results
        saes = [member.digest for member in ensemble.members]
        self.match: Part | None = parts.find("match", version=VERSION, saes=saes)
        self.n_ctx = evaluation.n_ctx if evaluation else 0
        self.activity: Part | None = None
        self.ablate: Part | None = None
        self.explain: Part | None = None
        self.loss: Part | None = None
        self.subspaces: Part | None = None
        self.trajectory: Part | None = None
        self.predictor: Part | None = None
        self.function: Part | None = None
        self.shared_spans: Part | None = None
        self.explanations: list[Part] = []
        if evaluation:
            same = measured_from(ensemble, evaluation)
            self.activity = parts.find("activity", **same)
            if self.activity:
                self.explain = parts.find(RULES, **same)
                self.explanations = explanations(parts, **same)
            self.ablate = parts.find("ablate", **same, theta=plan.theta, epsilon=plan.epsilon)
            self.loss = parts.find("loss", **same, theta=plan.theta, epsilon=plan.epsilon)
            self.predictor = parts.find(PREDICTOR, **same, theta=plan.theta, epsilon=plan.epsilon)
        if self.match:
            if evaluation:
                self.function = parts.find(
                    FUNCTION, **same, theta=plan.theta, epsilon=plan.epsilon, one_to_one=self.match.about["one_to_one"]
                )
            self.subspaces = parts.find(SUBSPACES, **self.match.about, theta=plan.theta, epsilon=plan.epsilon)
            measured = same if evaluation and self.activity else {}
            self.shared_spans = parts.find(
                SHARED_SPANS, **(self.match.about | measured), theta=plan.theta, epsilon=plan.epsilon
            )
        tokens = (
            measured_from(ensemble, evaluation) if evaluation else {"version": VERSION, "saes": saes, "tokens": None}
        )
        self.trajectory = parts.find(TRAJECTORY, **tokens, theta=plan.theta)
        self.predicted = parts.find(PREDICTED, **tokens)  # of one SAE, by a predictor of another ensemble
        self.carried = parts.find(CARRIED, saes=saes, theta=plan.theta)
        self.explanations += explanations(parts, saes=saes, origin=IMPORTED)
        self.pool = current(study, plan, ensemble, evaluation)

    @property
    def computed(self) -> list[str]:
        """Names of the analyses that there are parts of."""
        return [name for name in ANALYSES if getattr(self, name)]


def _add_study(
    writer: Writer, plan: catalogue.StudyPlan, evaluation: Evaluation | None, parts: Path, devices: set[str]
) -> None:
    # A model that is known but was not run yet: pages then name the analysis instead of asking for a model.
    named = Path(plan.model).name if plan.model and plan.tokens else None
    model = evaluation.model if evaluation else named
    row = Study(
        study=plan.name,
        schema_version=SCHEMA_VERSION,
        seedscope_version=version("seedscope"),
        model=model,
        model_digest=evaluation.model_digest if evaluation and evaluation.model else None,
        causal=evaluation.causal if evaluation and evaluation.model else None,
        n_ctx=evaluation.n_ctx or None if evaluation else None,
        token_policy=evaluation.policy if evaluation else None,
        eval_token_digest=evaluation.token_digest if evaluation else None,
        n_eval_tokens=evaluation.n_tokens if evaluation else None,
        corpus_remark=evaluation.remark if evaluation else None,
        device=" and ".join(sorted(devices)),
        precision="float32 (activations kept as float16)" if evaluation and evaluation.model else "float32",
        synthetic=synthetic.read(parts.parent) is not None,
    )
    add_row(writer, row)
    if evaluation and evaluation.texts:  # recorded activations come without tokens
        writer.add(Token, {"id": np.arange(len(evaluation.texts)), "text": list(evaluation.texts)})
        writer.add(Document, {"id": np.arange(len(evaluation.documents)), "name": list(evaluation.documents)})
        tokens = load_tokens(parts)
        if tokens is not None and tokens.digest == evaluation.token_digest:
            writer.add(TokenWindow, {"id": np.arange(len(tokens.ids)), "document": tokens.document, "start": tokens.start,
                                "token_ids": [ids[ids != PADDING] for ids in tokens.ids]})  # fmt: skip


class _MemberArrays(NamedTuple):
    """What parts hold of one member; None or empty where an analysis was not computed."""

    match: dict[str, np.ndarray]
    activity: Activity | None
    n_outliers: int | None  # evaluation tokens that are left out
    logits: Logits | None
    examples: Examples | None
    worth: dict[str, np.ndarray] | None
    loss: dict[str, np.ndarray] | None
    explanations: list[FeatureExplanation]
    function: MemberFunction | None

    @property
    def matches(self) -> Matches:
        """Slices (d_sae, comparisons) of the ensemble's matches."""
        return Matches(**{field: self.match[field] for field in Matches._fields})


def _read_member(parts: _EnsembleParts, match: Part, seed: int) -> _MemberArrays:
    arrays = parts.activity.read(seed) if parts.activity else None
    has_logits = arrays is not None and "logit_positive" in arrays
    return _MemberArrays(
        match=match.read(seed),
        activity=_activity(arrays) if arrays else None,
        n_outliers=len(arrays["left_out"]) if arrays else None,
        logits=Logits(**_prefixed(arrays, "logit", Logits._fields, torch.from_numpy))
        if arrays and has_logits
        else None,
        examples=Examples(**_prefixed(arrays, "example", Examples._fields))
        if arrays and "example_feature" in arrays
        else None,
        worth=parts.ablate.read(seed) if parts.ablate else None,
        loss=parts.loss.read(seed) if parts.loss else None,
        explanations=[
            explanation
            for part in parts.explanations
            if seed in part.seeds
            for explanation in from_arrays(part.read(seed))
        ],
        function=function_from_arrays(parts.function.read(seed)) if parts.function else None,
    )


def _add_ensemble(writer: Writer, parts: _EnsembleParts, match: Part) -> Iterator[None]:
    """Add an ensemble's rows member by member, and yield after each."""
    study, plan, ensemble = parts.study, parts.plan, parts.ensemble
    members = StoredMembers(study / ensemble.folder, ensemble.seeds, [member.digest for member in ensemble.members])
    convention, name, seeds = members.convention, ensemble.name, ensemble.seeds
    made, dead = synthetic.read(study), []
    counted = _Counted(None, None)
    for index in range(members.n_members):
        counted, never_active = _add_member(writer, parts, match, members, index)
        dead.append(never_active)
        yield
    spans = add_spans(writer, name, parts.subspaces)
    if parts.function:
        add_summaries(writer, name, parts.function.read(seeds[0]))
    if parts.shared_spans:
        add_shared_spans(writer, name, parts.shared_spans.read(seeds[0]))
    folder = study / ensemble.folder
    add_trajectory(writer, name, seeds, read_trace(folder), kept(folder, seeds), parts.trajectory)
    add_pool(writer, parts.pool)
    add_predictions(writer, name, parts.predictor, parts.predicted, parts.carried)
    if made:
        cosines = np.stack([match.read(seed, "cosine")["cosine"] for seed in seeds])
        add_truth(writer, study, plan, ensemble, made, sae.load(folder, seeds), cosines, np.stack(dead))
    row = Ensemble(
        ensemble=name,
        origin=ensemble.origin,
        hookpoint=ensemble.hookpoint,
        variant=ensemble.variant or convention.architecture,
        convention=json.dumps(convention.as_json() | _predicted(members, ensemble)),
        d_in=members.d_in,
        d_sae=members.d_sae,
        k=convention.k or None,
        n_members=members.n_members,
        n_comparisons=members.n_members - 1,
        shared_start=ensemble.shared_start,
        data_order=ensemble.data_order,
        train_token_digest=ensemble.train_token_digest,
        n_train_tokens=ensemble.n_train_tokens,
        train_tokens=ensemble.train_tokens,
        batch=ensemble.batch,
        lr=ensemble.lr,
        recipe=json.dumps(ensemble.recipe) if ensemble.recipe else None,
        anchor=ensemble.anchor,
        rule=catalogue.MATCHING,
        theta=plan.theta,
        epsilon=plan.epsilon,
        n_tokens=counted.n_tokens,
        n_outliers=counted.n_outliers,
        digest=_ensemble_digest(plan, ensemble),
        **spans,
        folder=ensemble.folder,
        control_of=ensemble.control_of,
        computed=parts.computed,
        remarks=list(ensemble.remarks),
    )
    if row.undefined and not any(remark.startswith(UNPREDICTABLE) for remark in row.remarks):
        row = replace(row, remarks=[*row.remarks, row.undefined])
    add_row(writer, row)


class _Counted(NamedTuple):
    """Evaluation tokens of an ensemble; None without activity."""

    n_tokens: int | None
    n_outliers: int | None  # those that are left out


def _add_member(
    writer: Writer, parts: _EnsembleParts, match: Part, members: StoredMembers, index: int
) -> tuple[_Counted, np.ndarray]:
    """Add one member's rows; returns the tokens that it was measured on, and (d_sae,) its dead features."""
    name, seeds, member = parts.ensemble.name, parts.ensemble.seeds, parts.ensemble.members[index]
    arrays, norms = _read_member(parts, match, member.seed), _norms(members, index)
    matches, activity, worth, loss = arrays.matches, arrays.activity, arrays.worth, arrays.loss
    add_member(
        writer, name, member, norms, matches, activity=activity, logits=arrays.logits,
        explanations=arrays.explanations, worth=Worth(float(worth["ev"]), worth["marginal"]) if worth else None,
        loss=_losses(loss) if loss else None, function=arrays.function,
    )  # fmt: skip
    add_pairs(writer, name, seeds, index, matches, norms, activity, arrays.function)
    if arrays.explanations:
        add_explanations(writer, name, member.seed, arrays.explanations, arrays.examples, parts.n_ctx)
    for kind in NULL_KINDS if len(seeds) > 1 else ():
        chance = Chance(arrays.match["null_feature"], arrays.match[f"null_{kind}"])
        add_null(writer, name, member.seed, kind, chance)
    if worth:
        losses = _mask_rows(loss, MaskedLoss) if loss else []
        add_ablation(writer, name, member.seed, _mask_rows(worth, Masking), losses)
    return _Counted(activity.n_tokens if activity else None, arrays.n_outliers), dead_features(norms, activity)


def _norms(members: StoredMembers, member: int) -> np.ndarray:
    """(d_sae,) norms of one member's decoder rows, 0 for those without a direction."""
    rows = members.decoder_rows(member)
    return np.where(sae.directed(rows).numpy(), rows.norm(dim=-1).numpy(), 0)


def _predicted(members: StoredMembers, ensemble: catalogue.EnsemblePlan) -> dict[str, Any]:
    """What the store says of transcoders' output; nothing of SAEs."""
    if not members.convention.transcoder:
        return {}
    return {"d_out": members.d_out, "hookpoint_out": ensemble.hookpoint_out}


def _prefixed(
    arrays: dict[str, np.ndarray], prefix: str, fields: Sequence[str], convert: Callable[[np.ndarray], Any] = np.asarray
) -> dict[str, Any]:
    """The arrays of a part that were kept under `prefix_FIELD`, by field."""
    return {field: convert(arrays[f"{prefix}_{field}"]) for field in fields}


def _activity(arrays: dict[str, np.ndarray]) -> Activity:
    """A member's activity from the arrays of its part; examples are read on their own."""
    own = {field: arrays[field] for field in Activity._fields if field in arrays and field != "n_tokens"}
    contexts = Contexts(**_prefixed(arrays, "context", Contexts._fields))
    triggers = Triggers(**_prefixed(arrays, "trigger", Triggers._fields)) if "trigger_what" in arrays else None
    return Activity(n_tokens=int(arrays["n_tokens"]), **own, contexts=contexts, triggers=triggers, examples=None)


def _losses(arrays: dict[str, np.ndarray]) -> Losses:
    own, spliced, zero = (float(arrays[field]) for field in ("own", "spliced", "zero"))
    return Losses(own, spliced, zero, int(arrays["n_tokens"]), arrays["attributed"])


MaskRow = TypeVar("MaskRow", Masking, MaskedLoss)


def _mask_rows(arrays: dict[str, np.ndarray], kind: type[MaskRow]) -> list[MaskRow]:
    """Masks as rows, from the columns that they were kept as."""
    columns = (arrays[f"mask_{field}"].tolist() for field in kind._fields)
    return [kind(*row) for row in zip(*columns, strict=True)]


def _ensemble_digest(plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan) -> str:
    """A permalink's v: the SAEs and the matching settings, nothing else, so that new analyses leave links fresh."""
    members = sorted((member.seed, member.digest) for member in ensemble.members)
    content = [members, "argmax", "signed", plan.theta, plan.epsilon]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
