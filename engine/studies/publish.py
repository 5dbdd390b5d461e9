"""A study's catalogue and the parts that were computed -> one store, published whole."""

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from seedscope.engine.activations.tokens import PADDING, load_tokens
from seedscope.engine.contract.schema import ANALYSES, SCHEMA_VERSION
from seedscope.engine.contract.tables.study import Document, Ensemble, Study, Token, TokenWindow
from seedscope.engine.explanations.explanation import from_arrays
from seedscope.engine.explanations.of_study import ANALYSIS as RULES
from seedscope.engine.explanations.of_study import IMPORTED, explanations
from seedscope.engine.explanations.rows import add_explanations
from seedscope.engine.features.ablation import Masking, Worth
from seedscope.engine.features.activity import Activity, Contexts
from seedscope.engine.features.examples import Examples
from seedscope.engine.features.logits import Logits
from seedscope.engine.features.loss import Losses, MaskedLoss
from seedscope.engine.features.rows import add_ablation
from seedscope.engine.features.triggers import Triggers
from seedscope.engine.geometry.rows import ANALYSIS as SUBSPACES
from seedscope.engine.geometry.rows import add_spans
from seedscope.engine.matching.match import NULL_KINDS, Chance, Matches
from seedscope.engine.matching.rows import add_null
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.evaluation import Evaluation, measured_from, read_evaluation
from seedscope.engine.store.parts import VERSION, Part, Parts
from seedscope.engine.store.rows import add_row
from seedscope.engine.studies.pools.record import add_pool, current
from seedscope.engine.studies.rows import add_member, add_pairs, dead_features
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.rows import add_truth
from seedscope.engine.training.rows import add_trajectory
from seedscope.engine.training.snapshots import kept
from seedscope.engine.training.trace import read as read_trace
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY


def publish(study: Path, *, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write what is known of a study's ensembles into a new store; returns its path.

    An ensemble whose members were never matched is left out. Memory: one member of the largest ensemble, its SAEs, and
    what the Writer holds. Raises ValueError where no ensemble was matched.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    evaluation = read_evaluation(study)
    matched = [
        (ensemble, found) for ensemble in plan.ensembles if (found := _Found(study, plan, ensemble, evaluation)).match
    ]
    if not matched:
        raise ValueError(
            f"no ensemble of {plan.name} was matched; compute what is missing with: seedscope analyze {plan.name}"
        )
    total, done = sum(len(ensemble.members) for ensemble, _ in matched), 0
    measured = any(found.activity for _, found in matched)
    with Writer(study) as writer:
        devices = {found.match.about["device"] for _, found in matched}
        _add_study(writer, plan, evaluation if measured else None, study / "parts", devices)
        for ensemble, found in matched:
            for _ in _add_ensemble(writer, study, plan, ensemble, found):
                done += 1
                report(done, total)
        path = writer.publish(built_from=plan.built_from)
    _forget_replaced(study, plan)
    return path


def _forget_replaced(study: Path, plan: catalogue.StudyPlan) -> None:
    """Remove SAEs of imported ensembles that others were put in the place of; what was trained is kept."""
    for ensemble in plan.ensembles:
        kept, held = study / ensemble.folder, study / "sae" / ensemble.name
        if ensemble.origin == "imported" and kept.parent == held:
            for former in held.iterdir():
                if former != kept and former.is_dir():
                    shutil.rmtree(former)


class _Found:
    """The parts of one ensemble that belong to its present members, the present tokens and thresholds."""

    def __init__(
        self, study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, evaluation: Evaluation | None
    ) -> None:
        parts = Parts(study, ensemble.name)
        saes = [member.digest for member in ensemble.members]
        self.match: Part | None = parts.find("match", version=VERSION, saes=saes)
        self.n_ctx = evaluation.n_ctx if evaluation else 0
        self.activity: Part | None = None
        self.ablate: Part | None = None
        self.explain: Part | None = None
        self.loss: Part | None = None
        self.subspaces: Part | None = None
        self.trajectory: Part | None = None
        self.explanations: list[Part] = []
        if evaluation:
            same = measured_from(ensemble, evaluation)
            self.activity = parts.find("activity", **same)
            if self.activity:
                self.explain = parts.find(RULES, **same)
                self.explanations = explanations(parts, **same)
            self.ablate = parts.find("ablate", **same, theta=plan.theta, epsilon=plan.epsilon)
            self.loss = parts.find("loss", **same, theta=plan.theta, epsilon=plan.epsilon)
        if self.match:
            self.subspaces = parts.find(SUBSPACES, **self.match.about, theta=plan.theta, epsilon=plan.epsilon)
        tokens = (
            measured_from(ensemble, evaluation) if evaluation else {"version": VERSION, "saes": saes, "tokens": None}
        )
        self.trajectory = parts.find(TRAJECTORY, **tokens, theta=plan.theta)
        self.explanations += explanations(parts, saes=saes, origin=IMPORTED)
        self.pool = current(study, plan, ensemble, evaluation)

    @property
    def computed(self) -> list[str]:
        return [name for name in ANALYSES if getattr(self, name)]


def _add_study(
    writer: Writer, plan: catalogue.StudyPlan, evaluation: Evaluation | None, parts: Path, devices: set[str]
) -> None:
    found = evaluation
    row = Study(
        study=plan.name,
        schema_version=SCHEMA_VERSION,
        seedscope_version=version("seedscope"),
        # A model that is known but was not run yet: pages then name the analysis instead of asking for a model.
        model=found.model if found else plan.model and plan.tokens and Path(plan.model).name,
        model_digest=found.model_digest if found and found.model else None,
        causal=found.causal if found and found.model else None,
        n_ctx=found.n_ctx if found else None,
        token_policy=found.policy if found else None,
        eval_token_digest=found.token_digest if found else None,
        n_eval_tokens=found.n_tokens if found else None,
        corpus_remark=found.remark if found else None,
        device=" and ".join(sorted(devices)),
        precision="float32 (activations kept as float16)" if found and found.model else "float32",
        synthetic=synthetic.read(parts.parent) is not None,
    )
    add_row(writer, row)
    if found:
        writer.add(Token, {"id": np.arange(len(found.texts)), "text": list(found.texts)})
        writer.add(Document, {"id": np.arange(len(found.documents)), "name": list(found.documents)})
        tokens = load_tokens(parts)
        if tokens is not None and tokens.digest == found.token_digest:
            writer.add(TokenWindow, {"id": np.arange(len(tokens.ids)), "document": tokens.document, "start": tokens.start,
                                "token_ids": [ids[ids != PADDING] for ids in tokens.ids]})  # fmt: skip


def _add_ensemble(
    writer: Writer, study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, found: _Found
):
    """Add an ensemble's rows member by member, and yield after each."""
    members = sae.load(study / ensemble.folder, ensemble.seeds)
    convention, name, seeds = members.convention, ensemble.name, ensemble.seeds
    directed = sae.directed(members.W_dec).numpy()
    norms = np.where(directed, members.W_dec.norm(dim=-1).detach().numpy(), 0)
    made, cosines, dead = synthetic.read(study), [], []
    for index, member in enumerate(ensemble.members):
        match = found.match.read(member.seed)
        matches = Matches(**{field: match[field] for field in Matches._fields})
        held = found.activity.read(member.seed) if found.activity else {}
        n_tokens = int(held["n_tokens"]) if held else None
        n_outliers = len(held.pop("left_out")) if held else None
        logits = (
            Logits(**{name: held.pop(f"logit_{name}") for name in Logits._fields}) if "logit_positive" in held else None
        )
        examples = {name: held.pop(f"example_{name}") for name in Examples._fields} if held else None
        activity = _activity(held) if held else None
        explained = [
            each
            for part in found.explanations
            if member.seed in part.seeds
            for each in from_arrays(part.read(member.seed))
        ]
        worth = found.ablate.read(member.seed) if found.ablate else None
        loss = found.loss.read(member.seed) if found.loss else None
        add_member(
            writer, name, member, norms[index], matches, activity=activity, logits=logits, explanations=explained,
            worth=Worth(float(worth["ev"]), worth["marginal"]) if worth else None,
            loss=Losses(*(float(loss[f]) for f in Losses._fields[:3]), int(loss["n_tokens"]), loss["attributed"]) if loss else None,
        )  # fmt: skip
        add_pairs(writer, name, seeds, index, matches, norms[index], activity)
        if made:
            cosines.append(matches.cosine)
            dead.append(dead_features(norms[index], activity))
        if explained:
            add_explanations(
                writer, name, member.seed, explained, Examples(**examples) if examples else None, found.n_ctx
            )
        for kind in NULL_KINDS:
            add_null(writer, name, member.seed, kind, Chance(match["null_feature"], match[f"null_{kind}"]))
        if worth:
            add_ablation(writer, name, member.seed, _rows(worth, Masking), _rows(loss, MaskedLoss) if loss else [])
        yield
    spans = add_spans(writer, name, found.subspaces)
    folder = study / ensemble.folder
    add_trajectory(writer, name, seeds, read_trace(folder), kept(folder, seeds), found.trajectory)
    add_pool(writer, found.pool)
    if made:
        add_truth(writer, study, plan, ensemble, made, members, np.stack(cosines), np.stack(dead))
    row = Ensemble(
        ensemble=name,
        origin=ensemble.origin,
        hookpoint=ensemble.hookpoint,
        variant=ensemble.variant or convention.architecture,
        convention=json.dumps(convention.as_json()),
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
        recipe=ensemble.recipe and json.dumps(ensemble.recipe),
        anchor=ensemble.anchor,
        rule=catalogue.MATCHING,
        theta=plan.theta,
        epsilon=plan.epsilon,
        n_tokens=n_tokens,
        n_outliers=n_outliers,
        digest=_ensemble_digest(plan, ensemble),
        **spans,
        folder=ensemble.folder,
        control_of=ensemble.control_of,
        computed=found.computed,
        remarks=list(ensemble.remarks),
    )
    add_row(writer, row)


def _activity(held: dict[str, np.ndarray]) -> Activity:
    contexts = Contexts(*(held.pop(f"context_{field}") for field in Contexts._fields))
    triggers = Triggers(*(held.pop(f"trigger_{field}") for field in Triggers._fields))
    return Activity(**held | {"n_tokens": int(held["n_tokens"])}, contexts=contexts, triggers=triggers, examples=None)


def _rows(held: dict[str, np.ndarray], kind: type) -> list:
    """Masks as they were before they became arrays."""
    columns = (held[f"mask_{field}"].tolist() for field in kind._fields)
    return [kind(*row) for row in zip(*columns, strict=True)]


def _ensemble_digest(plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan) -> str:
    """A permalink's v: the SAEs and the matching settings, nothing else, so that new analyses leave links fresh."""
    members = sorted((member.seed, member.digest) for member in ensemble.members)
    content = [members, "argmax", "signed", plan.theta, plan.epsilon]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
