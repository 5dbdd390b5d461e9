"""What a study's catalogue asks for, computed where it is missing: activity, matching and worth of every ensemble.

Every analysis leaves a part on disk as soon as it is done, so a stopped run goes on behind it, and a study that gains an
ensemble computes that one alone. `publish` turns the parts into a store.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from seedscope.engine.activations.documents import Document
from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.explanations.of_study import explain_by_rules
from seedscope.engine.features.ablation import AblationPass
from seedscope.engine.features.activity import ActivityPass
from seedscope.engine.features.examples import ContextGrid
from seedscope.engine.features.logits import direct_logits
from seedscope.engine.machine import named_device
from seedscope.engine.matching.buckets import judge
from seedscope.engine.matching.cuda import choice
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.encode import encoded
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import measured_from
from seedscope.engine.store.parts import VERSION, Parts
from seedscope.engine.studies.analyses.activity import _flat
from seedscope.engine.studies.analyses.loss import _lacks_loss, _loss, _LossAsked
from seedscope.engine.studies.analyses.matching import _found_match, _live, _match
from seedscope.engine.studies.analyses.subspaces import _activation_covariance, _subspaces
from seedscope.engine.studies.analyses.trajectory import _trajectory
from seedscope.engine.studies.analyses.worth import _ablate, _Judged
from seedscope.engine.studies.evaluator import Bench
from seedscope.engine.studies.open_evaluator import open_bench
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY

NEED_ACTIVITY = {"ablate", "loss", "explain", TRAJECTORY}


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
) -> None:
    """Compute the analyses named in `only`, and what they need, for every ensemble of a study, where they are missing.

    By default all, the loss where it is cheap. `one_to_one` asks for one-to-one matching of all pairs, by default where it
    is cheap. `texts` and `model` stand for what the catalogue names. Without a model activity and worth are left out, and
    that is said. Raises ValueError for a study without a catalogue, a model or tokens that cannot be read, and a hook
    point that the model does not have.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    asked = set(ANALYSES if only is None else only)
    if unknown := asked - set(ANALYSES):
        raise ValueError(f"analyses are {', '.join(sorted(unknown))}, expected some of {', '.join(ANALYSES)}")
    progress = progress or Progress()
    on = named_device(device)
    wanted = {"match"} | asked | ({"activity"} if NEED_ACTIVITY & asked else set())
    bench = None
    if wanted != {"match"}:
        bench = open_bench(study, plan, model, texts, on, progress)
    progress.say(f"best cosines: {choice(on)[1]}")
    for ensemble in plan.ensembles:
        where = bench and (bench.control if ensemble.control_of else bench)
        where = where if ensemble.hookpoint else None
        loss = _LossAsked(loss_tokens, only is not None) if "loss" in wanted else None
        _analyse(study, plan, ensemble, where, wanted, one_to_one, loss, on, progress)
    shutil.rmtree(study / "scratch", ignore_errors=True)


def _analyse(
    study: Path,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    bench: Bench | None,
    wanted: set[str],
    one_to_one: bool | None,
    loss: _LossAsked | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """All wanted parts of one ensemble: one pass over the tokens for activity and worth, then matching, then masks."""
    parts, name = Parts(study, ensemble.name), ensemble.name
    saes = [member.digest for member in ensemble.members]
    members = sae.load(study / ensemble.folder, ensemble.seeds)
    measured = measured_from(ensemble, bench.evaluation) if bench else {}
    known = measured or {"version": VERSION, "saes": saes, "hookpoint": ensemble.hookpoint}
    activity = parts.find("activity", **known)
    new_activity = bench is not None and activity is None
    live = None if new_activity else _live(activity, ensemble)
    match = None if new_activity else _found_match(parts, saes, live, one_to_one, members)
    judged = {"theta": plan.theta, "epsilon": plan.epsilon}
    worth = parts.find("ablate", **measured, **judged) if bench and not new_activity else None
    new_worth = bench is not None and "ablate" in wanted and worth is None
    activity_pass = ActivityPass(members) if new_activity else None
    ablation_pass = AblationPass(members) if new_worth else None
    rows = None
    if new_activity or new_worth:
        rows, tokens = bench.place(ensemble.hookpoint, members.d_in)
        positions = np.flatnonzero(tokens.counted)
        with progress.stage(f"{name}: activity{' and ablation' if new_worth else ''}", "tokens") as report:
            for first, batch, codes in encoded(members, rows, device):
                if activity_pass:
                    activity_pass.add(codes, positions[first : first + len(batch)])
                if ablation_pass:
                    ablation_pass.add(batch, codes)
                report(first + len(batch), len(rows))
    if activity_pass:
        with (
            progress.stage(f"{name}: contexts", "members") as report,
            parts.write("activity", measured) as put,
        ):
            grid = ContextGrid(tokens, bench.texts)
            summaries = activity_pass.summaries(tokens, vocabulary=bench.vocabulary, grid=grid)
            for index, (seed, found) in enumerate(zip(ensemble.seeds, summaries, strict=True)):
                logits = direct_logits(bench.model, members.W_dec[index])
                named = {f"logit_{name}": tensor.numpy() for name, tensor in logits._asdict().items()} if logits else {}
                put(seed, _flat(found) | named | {"left_out": tokens.left_out})
                report(index + 1, members.n_members)
        activity = parts.find("activity", **measured)
        live = _live(activity, ensemble)
        match = _found_match(parts, saes, live, one_to_one, members)
    if match is None:
        match = _match(parts, ensemble, members, saes, live, one_to_one, device, progress)
    if bench and "explain" in wanted:
        explain_by_rules(parts, ensemble, activity, bench.tokens, bench.texts, measured, progress)
    covariance = None
    if bench and ("subspaces" in wanted or rows is not None):  # cheap while the rows are there
        covariance = _activation_covariance(parts, ensemble, bench, members.d_in, measured, rows, progress)
    if "subspaces" in wanted:
        _subspaces(parts, plan, ensemble, members, match, live, covariance, device, progress)
    if TRAJECTORY in wanted:
        about = (measured or known | {"tokens": None}) | {"theta": plan.theta}
        _trajectory(parts, study, ensemble, members, bench, activity, one_to_one, about, device, progress)
    lacks_loss = loss and bench and _lacks_loss(parts, name, bench, measured | judged, loss, progress)
    if ablation_pass or lacks_loss:
        judged_by = _Judged(*zip(*judge(plan, ensemble, match, activity), strict=True))
    if ablation_pass:
        _ablate(parts, ensemble, members, ablation_pass, judged_by, rows, measured | judged, device, progress)
    if lacks_loss:
        left_out = activity.read(ensemble.seeds[0], "left_out")["left_out"]
        _loss(parts, plan, ensemble, members, bench, left_out, judged_by, measured | judged, loss, progress)
