"""Next-token loss that reconstructions, and masks of each bucket's features, add to the model, kept as a part."""

from typing import NamedTuple

from seedscope.engine.contract.tables.study import NO_TOKENS
from seedscope.engine.features.loss import LOSS_TOKENS, Losses, Splice, attributed_loss, losses_under, takes_long
from seedscope.engine.store.parts import Part
from seedscope.engine.studies.analyses.worth import MaskedFeatures, mask_columns
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.studies.evaluator import Evaluator


class LossSettings(NamedTuple):
    """On what the loss is measured, and whether however long it takes."""

    n_tokens: int | None  # None: on LOSS_TOKENS, or on as many as it was measured on before
    expressly: bool  # however long it takes


def lacks_loss(run: EnsembleRun, evaluator: Evaluator, settings: LossSettings) -> bool:
    """Whether the loss has a meaning here and was not measured with these settings."""
    if evaluator.recorded:
        run.progress.say(f"{run.name}: loss: undefined: {NO_TOKENS}")
        return False
    if run.undefined:
        run.progress.say(f"{run.name}: loss: left out, {run.undefined}")
        return False
    if not evaluator.model.causal:
        run.progress.say(f"{run.name}: loss: left out, {evaluator.model.name} predicts no next token")
        return False
    length = {} if settings.n_tokens is None else {"loss_tokens": settings.n_tokens}
    return run.parts.find("loss", **run.measured, **run.judgement, **length) is None


def open_splice(run: EnsembleRun, evaluator: Evaluator, activity: Part, n_tokens: int) -> Splice:
    """The model with an ensemble's hook point open, on about `n_tokens` of the evaluation tokens, kept up to that point."""
    windows = evaluator.loss_tokens(n_tokens, run.left_out(activity))
    splice = Splice(evaluator.model, windows, run.hookpoint_out or run.hookpoint, reads=run.hookpoint)
    splice.keep_below()
    return splice


def measure_loss(
    run: EnsembleRun, evaluator: Evaluator, activity: Part, masked: MaskedFeatures, settings: LossSettings
) -> None:
    """Measure and keep the losses; left out, with a message, where that takes long and was not asked for expressly."""
    drawn = [masked.fewer_masks(index) for index in range(run.stored.n_members)]
    total, done = sum(len(sets) for masks in drawn for sets in masks.values()), 0
    n_tokens = LOSS_TOKENS if settings.n_tokens is None else settings.n_tokens
    if not settings.expressly and takes_long(evaluator.model, total, n_tokens):
        run.progress.say(
            f"{run.name}: loss: left out, {total:,} passes of {evaluator.model.name} over {n_tokens:,} tokens take long on "
            f"a CPU; ask for them with: seedscope analyze {run.plan.name} --only loss"
        )
        return
    splice = open_splice(run, evaluator, activity, n_tokens)
    own, zero = (float(each.double().mean()) for each in (splice.own(), splice.zeroed()))
    about = run.measured | run.judgement | {"loss_tokens": n_tokens}
    with run.progress.stage(f"{run.name}: loss", "masks") as report, run.parts.write("loss", about) as put:
        for index, seed in enumerate(run.seeds):
            member = run.load(range(index, index + 1)).requires_grad_(False).to(evaluator.device)

            def step() -> None:
                nonlocal done
                done += 1
                report(done, total)

            losses = Losses(own, splice.spliced(member), zero, splice.n_tokens, attributed_loss(splice, member))
            put(seed, losses._asdict() | mask_columns(losses_under(splice, member, drawn[index], report=step)))
