"""Analyses of every ensemble of a study, computed where they are missing: matching, activity, worth, loss and the rest.

Every analysis leaves a part on disk as soon as it is done, so a stopped run resumes after the last one, and a study that
gains an ensemble computes that one alone. `publish` turns the parts into a store.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from seedscope.engine.activations.documents import Document
from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.contract.directions import UNPREDICTABLE
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.contract.tables.study import NO_LOGITS
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.explanations.of_study import explain_by_rules
from seedscope.engine.features.logits import missing_norm
from seedscope.engine.machine import named_device
from seedscope.engine.matching.buckets import judge
from seedscope.engine.matching.cuda import choice
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyses.activity import TokenPass, keep_activity, pass_over_tokens
from seedscope.engine.studies.analyses.elsewhere import (
    activity_elsewhere,
    can_measure_elsewhere,
    rules_elsewhere,
    worth_elsewhere,
)
from seedscope.engine.studies.analyses.function import ANALYSIS as FUNCTION
from seedscope.engine.studies.analyses.function import find_function, measure_function, wants_function
from seedscope.engine.studies.analyses.loss import LossSettings, lacks_loss, measure_loss
from seedscope.engine.studies.analyses.matching import find_match, match_members
from seedscope.engine.studies.analyses.predictor import ANALYSIS as PREDICTOR
from seedscope.engine.studies.analyses.predictor import measure_predictor
from seedscope.engine.studies.analyses.shared_spans import ANALYSIS as SHARED_SPANS
from seedscope.engine.studies.analyses.shared_spans import measure_shared_spans, wants_shared_spans
from seedscope.engine.studies.analyses.subspaces import activation_covariance, measure_subspaces
from seedscope.engine.studies.analyses.trajectory import follow_training
from seedscope.engine.studies.analyses.worth import MaskedFeatures, measure_worth
from seedscope.engine.studies.ensemble_run import EnsembleRun, living
from seedscope.engine.studies.evaluator import Evaluator
from seedscope.engine.studies.open_evaluator import open_evaluator
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY

UNREADABLE = "no activity: "  # how the remark on an ensemble begins that the model cannot be read for
NEED_ACTIVITY = {"ablate", "loss", "explain", TRAJECTORY, PREDICTOR, FUNCTION}


@torch.no_grad()
def analyse(
    study: Path,
    *,
    only: Sequence[str] | None = None,
    one_to_one: bool | None = None,
    loss_tokens: int | None = None,
    device: str = "auto",
    texts: Iterable[Document] | None = None,
    model: LanguageModel | None = None,
    progress: Progress | None = None,
    executor: Executor = HERE,
) -> None:
    """Compute the analyses named in `only`, and what they need, for every ensemble of a study, where they are missing.

    By default all, the loss where it is cheap. `one_to_one` asks for one-to-one matching of all pairs, by default where it
    is cheap. `texts` and `model` stand for what the catalogue names. Without a model activity and worth are left out, and
    that is said. An ensemble whose hook point the model does not have, or has in another width, gets a remark and no activity.
    Tiles of pairs, shards of activations, and members' activity, worth and token rules are units of the `executor`; the rest runs
    here.
    Raises ValueError for a study without a catalogue, a model or tokens that cannot be read, and where this is so of all
    ensembles.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    requested = set(ANALYSES if only is None else only)
    if unknown := requested - set(ANALYSES):
        raise ValueError(f"analyses are {', '.join(sorted(unknown))}, expected some of {', '.join(ANALYSES)}")
    progress = progress or Progress()
    on = named_device(device)
    wanted = {"match"} | requested | ({"activity"} if NEED_ACTIVITY & requested else set())
    wanted |= {"ablate"} if PREDICTOR in requested else set()
    evaluator = None
    if wanted != {"match"}:
        evaluator = open_evaluator(study, plan, model, texts, on, progress, executor)
        plan = _with_remarks(study, plan, evaluator) if evaluator else plan
    progress.say(f"best cosines: {choice(on)[1]}")
    for ensemble in plan.ensembles:
        at_hook = evaluator and (evaluator.control if ensemble.control_of else evaluator)
        known = ensemble.hookpoint or (evaluator and evaluator.recorded)
        readable = known and not (evaluator and ensemble.name in evaluator.unreadable)
        at_hook = at_hook if readable else None
        loss = LossSettings(loss_tokens, expressly=only is not None and "loss" in wanted)
        run = EnsembleRun(study, plan, ensemble, at_hook, one_to_one, on, progress, executor)
        without = FUNCTION in wanted and not wants_function(run, expressly=only is not None)
        own = wanted - {FUNCTION} if without else wanted
        if SHARED_SPANS in own and not wants_shared_spans(run, expressly=only is not None):
            own = own - {SHARED_SPANS}
        _analyse(run, own, loss)
        if PREDICTOR in wanted and at_hook:
            measure_predictor(run)
    shutil.rmtree(study / "scratch", ignore_errors=True)


def _with_remarks(study: Path, plan: catalogue.StudyPlan, evaluator: Evaluator) -> catalogue.StudyPlan:
    """The catalogue with a remark on every ensemble that the model cannot be read for, or that has no direct logits.

    And on transcoders whose output has nothing to be compared with. Those of a former analysis are dropped.
    """
    remarked, without_logits = plan, missing_norm(evaluator.model)
    for ensemble in plan.ensembles:
        of_before = (UNREADABLE, UNPREDICTABLE, NO_LOGITS)
        remarks = [remark for remark in ensemble.remarks if not remark.startswith(of_before)]
        for prefix, reasons in ((UNREADABLE, evaluator.unreadable), (UNPREDICTABLE, evaluator.unpredictable)):
            if ensemble.name in reasons:
                remarks.append(f"{prefix}{reasons[ensemble.name]}")
        if without_logits and ensemble.hookpoint and ensemble.name not in evaluator.unreadable:
            remarks.append(f"{NO_LOGITS}{without_logits}")
        remarked = remarked.with_ensemble(replace(ensemble, remarks=tuple(remarks)))
    if remarked != plan:
        catalogue.write(remarked, study)
    return remarked


def _analyse(run: EnsembleRun, wanted: set[str], loss: LossSettings) -> None:
    """All wanted parts of one ensemble: one pass over the tokens for activity and worth, then matching, then masks."""
    evaluator, activity = run.evaluator, run.find_activity()
    worth = activity and run.parts.find("ablate", **run.measured, **run.judgement)
    collected: TokenPass | None = None
    if evaluator and run.undefined and "ablate" in wanted:
        run.progress.say(f"{run.name}: ablate: left out, {run.undefined}")
    if evaluator and run.undefined:
        wanted = wanted - {"ablate"}
    new_worth = "ablate" in wanted and worth is None
    new_function = FUNCTION in wanted and find_function(run) is None
    measured = False  # just now, so that the rows are there
    in_units = evaluator is not None and not new_function and can_measure_elsewhere(run, evaluator)
    if evaluator and in_units and activity is None:
        activity, measured = activity_elsewhere(run, evaluator), True
    if evaluator and not in_units and (activity is None or new_worth or new_function):
        collected = pass_over_tokens(run, evaluator, activity=activity is None, worth=new_worth, function=new_function)
        if collected.activity:
            activity = keep_activity(run, evaluator, collected)
    live = living(activity, run.seeds)
    match = find_match(run, live) or match_members(run, live)
    if evaluator and not evaluator.recorded and activity and "explain" in wanted:
        explain_by_rules(
            run.parts, run.ensemble, activity, evaluator.tokens, evaluator.texts, run.measured, run.progress,
            elsewhere=None if run.executor.is_here else partial(rules_elsewhere, run, activity),
        )  # fmt: skip
    covariance = None
    if evaluator and ("subspaces" in wanted or collected or measured):  # cheap while the rows are there
        covariance = activation_covariance(run, evaluator, collected and collected.targets)
    if "subspaces" in wanted:
        measure_subspaces(run, match, live, covariance)
    if SHARED_SPANS in wanted:
        measure_shared_spans(run, match, activity, loss)
    if TRAJECTORY in wanted:
        follow_training(run, activity)
    if evaluator is None or activity is None:
        return
    missing_loss = loss if "loss" in wanted and lacks_loss(run, evaluator, loss) else None
    if (
        missing_loss is None
        and not (in_units and new_worth)
        and not (collected and (collected.ablation or collected.function))
    ):
        return
    masked = MaskedFeatures(*zip(*judge(run.plan, run.ensemble, match, activity), strict=True))
    if collected and collected.function:
        measure_function(run, match, masked.buckets, collected.function)
    if collected and collected.ablation:
        measure_worth(run, masked, collected)
    if in_units and new_worth:
        worth_elsewhere(run, evaluator, masked)
    if missing_loss:
        measure_loss(run, evaluator, activity, masked, missing_loss)
