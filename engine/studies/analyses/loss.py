"""What buckets are worth in next-token loss, kept as a part."""

from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.features.loss import LOSS_TOKENS, Losses, Splice, attributed_loss, losses_under, takes_long
from seedscope.engine.progress import Progress
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Parts
from seedscope.engine.studies.analyses.worth import _columns, _Judged
from seedscope.engine.studies.evaluator import Bench


class _LossAsked(NamedTuple):
    """How the loss is to be measured."""

    n_tokens: int | None  # None: on LOSS_TOKENS, or on as many as it was measured on before
    expressly: bool  # however long it takes


def _lacks_loss(
    parts: Parts, name: str, bench: Bench, about: dict[str, Any], asked: _LossAsked, progress: Progress
) -> bool:
    """Whether the loss has a meaning here and was not measured as asked."""
    if not bench.model.causal:
        progress.say(f"{name}: loss: left out, {bench.model.name} predicts no next token")
        return False
    return parts.find("loss", **about, **({} if asked.n_tokens is None else {"loss_tokens": asked.n_tokens})) is None


def _loss(
    parts: Parts,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    members: SAE,
    bench: Bench,
    left_out: np.ndarray,
    judged: _Judged,
    about: dict[str, Any],
    asked: _LossAsked,
    progress: Progress,
) -> None:
    """What reconstructions and masks cost the model's next-token prediction; left out, with a word, where it takes long."""
    drawn = [judged.fewer_masks(index) for index in range(members.n_members)]
    total, done = sum(len(sets) for masks in drawn for sets in masks.values()), 0
    n_tokens = LOSS_TOKENS if asked.n_tokens is None else asked.n_tokens
    if not asked.expressly and takes_long(bench.model, total, n_tokens):
        progress.say(
            f"{ensemble.name}: loss: left out, {total:,} passes of {bench.model.name} over {n_tokens:,} tokens take long on "
            f"a CPU; ask for them with: seedscope analyze {plan.name} --only loss"
        )
        return
    splice = Splice(bench.model, bench.loss_tokens(n_tokens, left_out), ensemble.hookpoint)
    own, zero = (float(each.double().mean()) for each in (splice.own(), splice.losses(torch.zeros_like)))
    about = about | {"loss_tokens": n_tokens}
    with progress.stage(f"{ensemble.name}: loss", "masks") as report, parts.write("loss", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            member = members.only(index).to(bench.model.network.device)

            def step() -> None:
                nonlocal done
                done += 1
                report(done, total)

            found = Losses(own, splice.spliced(member), zero, splice.n_tokens, attributed_loss(splice, member))
            put(seed, found._asdict() | _columns(losses_under(splice, member, drawn[index], report=step)))
