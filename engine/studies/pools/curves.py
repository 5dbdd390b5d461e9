"""Curves of a pool and its controls: explained variance, L0, dead features, loss and agreement after each training length."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from seedscope.engine.features.loss import LOSS_TOKENS, Splice, takes_long
from seedscope.engine.saes.encode import HeldOutMeasures, measure
from seedscope.engine.saes.sae import SAE
from seedscope.engine.studies.evaluator import Evaluator
from seedscope.engine.studies.open_evaluator import open_evaluator
from seedscope.engine.studies.pools.posttrain import agreement_of, lengths, train_on
from seedscope.engine.studies.pools.record import PoolCurvePoint, PoolEvaluation
from seedscope.engine.studies.pools.settings import PoolRun
from seedscope.engine.studies.pools.training_rows import PostTraining
from seedscope.engine.studies.train import checkpoints_of

EVALUATED = 65_536  # rows that are measured at most, evenly spaced


@dataclass(frozen=True)
class HeldOut:
    """What curves are measured on: evaluation activations at the ensemble's hook point, and the model for the loss."""

    evaluator: Evaluator
    hookpoint: str
    rows: Float[np.ndarray, "rows d_in"]  # float32
    splice: Splice | None
    """None where no loss is measured."""

    @property
    def about(self) -> PoolEvaluation:
        """What a record says of it."""
        return PoolEvaluation(
            rows=len(self.rows),
            tokens=self.evaluator.evaluation.token_digest,
            model=self.evaluator.model.digest,
            hookpoint=self.hookpoint,
            loss_tokens=self.splice.n_tokens if self.splice else 0,
        )


def open_held_out(run: PoolRun, hookpoint: str) -> HeldOut | None:
    """Evaluation activations at a hook point, at most EVALUATED rows; None where the study has no model or samples."""
    evaluator = open_evaluator(run.study, run.plan, None, None, run.device, run.progress, run.executor)
    if evaluator and run.entry.control_of:
        evaluator = evaluator.control
    if evaluator is None:
        return None
    activations = evaluator.activations(hookpoint, run.members.d_in)
    n_rows = len(activations.rows)
    chosen = np.linspace(0, n_rows - 1, min(n_rows, EVALUATED)).round().astype(np.int64)
    rows = activations.rows[chosen].astype(np.float32)
    return HeldOut(evaluator, hookpoint, rows, _splice(run, evaluator, hookpoint, activations.left_out))


def _splice(run: PoolRun, evaluator: Evaluator, hookpoint: str, left_out: np.ndarray) -> Splice | None:
    """What the loss is measured with; None, with a message, where there is none or it takes long and was not asked for."""
    loss_tokens, recipe = run.settings.loss_tokens, run.recipe
    if loss_tokens == 0 or not evaluator.model.causal:
        return None
    n_tokens = loss_tokens or LOSS_TOKENS
    passes = 9 * (len(lengths(recipe.n_tokens, recipe.batch)) if recipe else 1)
    if loss_tokens is None and takes_long(evaluator.model, passes, n_tokens):
        run.progress.say(
            f"{run.name}: loss: left out, {passes} passes of {evaluator.model.name} over {n_tokens:,} tokens take long on a CPU; "
            f"ask for them with --loss-tokens {n_tokens}"
        )
        return None
    return Splice(evaluator.model, evaluator.loss_tokens(n_tokens, left_out), hookpoint)


def measure_curves(
    run: PoolRun, groups: dict[str, list[SAE]], training: PostTraining | None, held_out: HeldOut
) -> tuple[list[PoolCurvePoint], SAE]:
    """One point per group and length; and the pool as it is saved, trained for the length that was asked for.

    `groups` are SAEs of one member each, by kind; they stay as they are. Without `training` the only length is 0.
    """
    start = [sae for group in groups.values() for sae in group]
    asked_length = training.length if training else 0
    curves, saved = [], groups["pool"][0]
    for n_tokens in training.lengths if training else [0]:
        trained = start
        if training and n_tokens:
            with run.progress.stage(f"{run.name}: {len(start)} SAEs on {n_tokens:,} more tokens", "tokens") as report:
                trained = train_on(
                    start, training.rows, replace(training.recipe, n_tokens=n_tokens), device=run.device, report=report,
                    checkpoints=checkpoints_of(run.study, run.name) / f"pool-{n_tokens}", executor=run.executor,
                    rows_at=training.rows_at,
                )  # fmt: skip
        measures: list[HeldOutMeasures] = []
        losses: list[float] = []
        with run.progress.stage(f"{run.name}: measured after {n_tokens:,}", "SAEs") as report:
            for sae in trained:
                measures.append(measure(sae, held_out.rows, device=run.device))
                losses += [_loss(held_out.splice, sae, held_out.evaluator.device)] if held_out.splice else []
                report(len(measures), len(trained))
        end = 0
        for kind, group in groups.items():
            part = slice(end, end := end + len(group))
            loss = losses[part] if held_out.splice else None
            curves.append(_point(kind, n_tokens, trained[part], measures[part], loss, run.theta))
        saved = trained[0] if n_tokens == asked_length else saved
    return curves, saved


def _point(
    kind: str,
    n_tokens: int,
    members: list[SAE],
    measures: list[HeldOutMeasures],
    losses: list[float] | None,
    theta: float,
) -> PoolCurvePoint:
    """What one kind reaches at one length: every SAE's own values, and how much they agree."""
    agreement = agreement_of(members, measures, theta=theta)
    shares = (agreement.forward, agreement.backward) if agreement else None
    return PoolCurvePoint(
        kind=kind,
        tokens=n_tokens,
        ev=tuple(float(each.ev[0]) for each in measures),
        l0=tuple(float(each.l0[0]) for each in measures),
        dead=tuple(float(each.dead[0]) for each in measures),
        n_living=tuple(int((each.n_active[0] > 0).sum()) for each in measures),
        loss=None if losses is None else tuple(losses),
        shares=shares if shares and np.isfinite(shares).all() else None,
        shared=_finite(agreement.shared) if agreement else None,
        mmcs=_finite(agreement.mmcs) if agreement else None,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _loss(splice: Splice, member: SAE, device: torch.device) -> float:
    """Next-token loss with the SAE's reconstruction in place, nats per token."""
    loss = splice.spliced(member.to(device))
    member.cpu()
    return loss
