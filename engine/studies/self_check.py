"""A first look at imported SAEs, before hours are spent: EV and L0 on a few thousand tokens, against what their files record.

An SAE that was read with the wrong scale, hook point or threshold reconstructs worse than the mean does, or fires on far too
much; both are seen on little text. What is seen becomes a remark on the member, with the likely cause. It never refuses.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seedscope.engine.activations.harvest import LanguageModel, harvest, load_model, tokenize
from seedscope.engine.activations.outliers import TIMES, find_outliers
from seedscope.engine.activations.recorded import open_recorded
from seedscope.engine.machine import named_device
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.encode import measure
from seedscope.engine.store.catalogue import EnsemblePlan, MemberPlan, RecordedActivations, StudyPlan, Tokens
from seedscope.engine.studies.open_evaluator import documents_of
from seedscope.engine.studies.recorded import draw, misfit

N_TOKENS = 4096  # enough for L0 and EV to two digits
FAR_OFF = 2.0  # times the recorded L0, or its inverse: texts alone seldom change it by so much
BEYOND = 10.0  # times k: no text does that
PREFIX = "self-check: "
CAUSES = (
    "the usual causes are another model or hook point, processing of the model (folded or centred weights), and a scale or "
    "normalisation of activations that the files do not record"
)


class FirstLook(NamedTuple):
    """What one member does on the first tokens of the evaluation text."""

    ev: float | None  # explained variance, 1 at best; None of transcoders where what they predict is not known
    l0: float  # active features per token
    n_tokens: int


def look_at(study: Path, plan: StudyPlan, ensemble: EnsemblePlan, device: str, progress: Progress) -> list[FirstLook]:
    """Measure every member on about N_TOKENS tokens that count, norm outliers left out, in the order of seeds.

    Recorded activations stand in place of model and tokens: N_TOKENS of their rows, drawn at random. Raises ValueError where
    the study names no model, tokens or hook point, nor activations, and where they cannot be read.
    """
    on = named_device(device)
    targets = None  # what transcoders should predict
    if plan.activations:
        rows = _recorded_rows(study, plan, ensemble, plan.activations)
    elif plan.model is None or plan.tokens is None or ensemble.hookpoint is None:
        raise ValueError("a model, tokens and a hook point are needed")
    else:
        model = load_model(plan.model)
        if on.type != "cpu":
            model.network.to(on)
        rows, targets = _rows(study, model, plan.tokens, ensemble, progress)
    looks = []
    with progress.stage(f"{ensemble.name}: self-check", "SAEs") as report:
        for seed in ensemble.seeds:
            member = sae.load(study / ensemble.folder, (seed,))
            if member.d_in != rows.shape[1]:
                raise ValueError(f"the SAEs read {member.d_in} numbers, {ensemble.hookpoint} gives {rows.shape[1]}")
            if targets is not None and member.d_out != targets.shape[1]:
                raise ValueError(
                    f"the transcoders give {member.d_out} numbers, {ensemble.hookpoint_out} has {targets.shape[1]}"
                )
            measured = measure(member, rows, targets=targets, device=on)
            defined = targets is not None or not member.convention.transcoder
            looks.append(FirstLook(float(measured.ev[0]) if defined else None, float(measured.l0[0]), len(rows)))
            report(len(looks), len(ensemble.seeds))
    return looks


def with_remarks(ensemble: EnsemblePlan, looks: list[FirstLook]) -> EnsemblePlan:
    """The ensemble with what is wrong with its members as remarks; those of a former look are dropped."""
    members = [
        replace(member, remarks=(*_without_former(member), *(PREFIX + text for text in problems(member, look))))
        for member, look in zip(ensemble.members, looks, strict=True)
    ]
    return replace(ensemble, members=tuple(members))


def problems(member: MemberPlan, look: FirstLook) -> list[str]:
    """What cannot be, or differs from what the member's files record; empty where nothing does."""
    found = []
    on = f"on {look.n_tokens:,} tokens"
    if look.ev is not None and (not np.isfinite(look.ev) or look.ev < 0):
        found.append(f"{on} it reconstructs worse than the mean activation does (EV {look.ev:.2f}); {CAUSES}")
    if look.l0 == 0:
        found.append(f"{on} no feature fires; {CAUSES}, or a threshold of another scale")
    k, recorded = _number(member, "k or l1", "k "), _number(member, "recorded L0", "")
    if k is not None and look.l0 > BEYOND * k:
        found.append(f"{on} L0 is {look.l0:.1f}, over ten times its k of {k:g}: a threshold may be missing; {CAUSES}")
    elif recorded and not recorded / FAR_OFF <= look.l0 <= recorded * FAR_OFF:
        found.append(f"{on} L0 is {look.l0:.1f}, its files record {recorded:g}; {CAUSES}, or text of another kind")
    return found


def _rows(
    study: Path, model: LanguageModel, tokens: Tokens, ensemble: EnsemblePlan, progress: Progress
) -> tuple[np.ndarray, np.ndarray | None]:
    """Activations that are read, and those that transcoders predict, of tokens that are no outliers in either."""
    windows = tokenize(documents_of(tokens), model, n_ctx=tokens.n_ctx, bos=tokens.bos, n_tokens=N_TOKENS, take="first")
    scratch = study / "scratch" / "self-check"
    taken = []
    for hookpoint in (ensemble.hookpoint, ensemble.hookpoint_out if ensemble.transcoder else None):
        if hookpoint is None:
            continue
        try:
            with progress.stage(f"first activations at {hookpoint}", "tokens") as report:
                rows = harvest(model, windows, hookpoint, scratch, dtype="float32", report=report)
                taken.append(np.array(rows[:]))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if tokens.outliers == "exclude":
        outlying = np.unique(np.concatenate([find_outliers(rows, times=TIMES) for rows in taken]))
        taken = [np.delete(rows, outlying, axis=0) for rows in taken]
    return taken[0], taken[1] if len(taken) > 1 else None


def _recorded_rows(study: Path, plan: StudyPlan, ensemble: EnsemblePlan, given: RecordedActivations) -> np.ndarray:
    recorded = open_recorded(given.source)
    if reason := misfit(study, plan, ensemble, recorded):
        raise ValueError(reason)
    rows = np.array(recorded.rows[draw(len(recorded.rows), N_TOKENS)], np.float32)
    return rows if given.outliers == "include" else np.delete(rows, find_outliers(rows, times=TIMES), axis=0)


def _without_former(member: MemberPlan) -> tuple[str, ...]:
    return tuple(remark for remark in member.remarks if not remark.startswith(PREFIX))


def _number(member: MemberPlan, fact: str, prefix: str) -> float | None:
    """The number that a fact begins with; None where it is not stated."""
    value, _ = member.facts.get(fact, ("", ""))
    try:
        return float(value.removeprefix(prefix).split()[0])
    except (ValueError, IndexError):
        return None
