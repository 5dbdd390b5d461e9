"""Next-token loss with whole shared spans masked, beside equally many features of about the same density; added to their part."""

from typing import NamedTuple

import numpy as np

from seedscope.engine.contract.tables.shared_spans import SharedSpan, SharedSpanFeature, SharedSpanSummary
from seedscope.engine.features.loss import LOSS_TOKENS, Splice, masked, takes_long
from seedscope.engine.features.span_tokens import SpanSets, span_sets
from seedscope.engine.geometry.shared_span_rows import ANALYSIS
from seedscope.engine.saes.sae import SAE, Codes
from seedscope.engine.store.parts import Part
from seedscope.engine.studies.analyses.loss import LossSettings, open_splice
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.studies.evaluator import Evaluator


class SpanLoss(NamedTuple):
    """What masking one span costs the model, nats per token, mean over the seeds that have members."""

    masked: float
    whole: float  # with nothing masked
    control: float | None  # mean over draws; None where some seed has too few other living features
    control_sd: float | None  # over draws


def add_span_loss(run: EnsembleRun, part: Part, activity: Part | None, settings: LossSettings) -> None:
    """Measure the loss of kept spans and write the part anew with it, unless that was done or means nothing.

    Left out, with a message, where it takes long and was not asked for expressly.
    """
    evaluator = run.evaluator
    if evaluator is None or activity is None:
        return
    if (before := part.about.get("loss_tokens")) is not None and settings.n_tokens in (None, before):
        return
    if evaluator.recorded or run.undefined or not evaluator.model.causal:
        return  # `analyze loss` says why
    arrays = part.read(run.seeds[0])
    kept = np.flatnonzero(arrays.get("SharedSpan.kept", np.zeros(0, bool)))
    if not len(kept):
        return
    sets = _sets(run, arrays, kept, activity)
    n_tokens = settings.n_tokens or LOSS_TOKENS
    n_passes = sum(1 + sum(map(len, of_member.values())) for of_member in sets)
    if not settings.expressly and takes_long(evaluator.model, n_passes, n_tokens):
        run.progress.say(
            f"{run.name}: loss of shared spans: left out, {n_passes:,} passes of {evaluator.model.name} over {n_tokens:,} tokens "
            f"take long on a CPU; ask for them with: seedscope analyze {run.plan.name} --only {ANALYSIS},loss"
        )
        return
    splice = open_splice(run, evaluator, activity, n_tokens)
    columns = _columns(_losses(run, evaluator, splice, sets, n_passes), len(arrays["SharedSpan.kept"]), kept)
    arrays |= {f"{SharedSpan.__name__}.{name}": values for name, values in columns.items()}
    arrays[f"{SharedSpanSummary.__name__}.n_loss_tokens"] = np.array([splice.n_tokens])
    with run.parts.write(ANALYSIS, part.about | {"loss_tokens": n_tokens}) as put:
        put(run.seeds[0], arrays)


def _sets(run: EnsembleRun, arrays: dict[str, np.ndarray], kept: np.ndarray, activity: Part) -> SpanSets:
    """The sets that explained variance was measured with: drawn alike from the same members."""
    of, seed, feature = (arrays[f"{SharedSpanFeature.__name__}.{name}"] for name in ("span", "seed", "feature"))
    spans = [
        [feature[(of == span) & (seed == each)] for each in run.seeds]
        for span in arrays["SharedSpan.span"][kept].tolist()
    ]
    n_active = np.stack([activity.read(each, "n_active")["n_active"] for each in run.seeds])
    return span_sets(spans, n_active)


def _losses(
    run: EnsembleRun, evaluator: Evaluator, splice: Splice, sets: SpanSets, n_passes: int
) -> dict[int, list[list[float]]]:
    """{span's place: per seed with members the loss with nothing masked, with the span masked, and with every control}."""
    found: dict[int, list[list[float]]] = {}
    done = 0
    with run.progress.stage(f"{run.name}: loss of shared spans", "masks") as report:
        for index, of_member in enumerate(sets):
            member = run.load(range(index, index + 1)).requires_grad_(False).to(evaluator.device)
            kept: list[Codes] = []
            whole = _mean_loss(splice, member, np.zeros(0, np.int64), kept)
            done += 1
            for at, chosen in of_member.items():
                found.setdefault(at, []).append([whole])
                for each in chosen:
                    found[at][-1].append(_mean_loss(splice, member, each, kept))
                    done += 1
                    report(done, n_passes)
    return found


def _mean_loss(splice: Splice, member: SAE, features: np.ndarray, kept: list[Codes]) -> float:
    return float(splice.losses(masked(member, features, kept)).double().mean())


def _columns(losses: dict[int, list[list[float]]], n: int, kept: np.ndarray) -> dict[str, np.ndarray]:
    names = {"loss": "masked", "loss_whole": "whole", "loss_control": "control", "loss_control_sd": "control_sd"}
    columns = {name: np.full(n, np.nan) for name in names}
    for at, of_seeds in losses.items():
        one = _summary(of_seeds)
        for name, field in names.items():
            value = getattr(one, field)
            columns[name][kept[at]] = np.nan if value is None else value
    return columns


def _summary(of_seeds: list[list[float]]) -> SpanLoss:
    whole, own, *_ = np.array([values[:2] for values in of_seeds]).mean(0).tolist()
    if len({len(values) for values in of_seeds}) > 1 or len(of_seeds[0]) == 2:
        return SpanLoss(own, whole, None, None)
    draws = np.array([values[2:] for values in of_seeds]).mean(0)
    return SpanLoss(own, whole, float(draws.mean()), float(draws.std()))
