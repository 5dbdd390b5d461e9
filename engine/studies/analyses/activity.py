"""Activity of features on the evaluation tokens, kept as a part; the same pass over the tokens collects what worth needs."""

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.features.ablation import PAIR_NUMBERS, AblationPass
from seedscope.engine.features.activity import Activity, ActivityPass
from seedscope.engine.features.examples import ContextGrid
from seedscope.engine.features.firings import FiringSpool
from seedscope.engine.features.logits import Logits, direct_logits, refusal
from seedscope.engine.saes.encode import encoded
from seedscope.engine.store.parts import Part
from seedscope.engine.studies.analyses.function import FunctionPass
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.studies.evaluator import Evaluator, Rows


class TokenPass(NamedTuple):
    """One pass over the evaluation tokens for each group of members: what it read, and what it collected."""

    rows: Rows
    targets: Rows | None  # what members should give back: the same, or what transcoders predict; None: not known
    tokens: TokenSet | None  # those that count; None where the rows came without tokens
    left_out: np.ndarray  # flat indices of those that do not
    groups: list[range]  # of members, that were encoded together
    activity: list[ActivityPass]  # one per group; empty where it was not asked for
    ablation: list[AblationPass]  # likewise
    function: FunctionPass | None = None


def pass_over_tokens(
    run: EnsembleRun, evaluator: Evaluator, *, activity: bool, worth: bool, function: bool = False
) -> TokenPass:
    """Encode the evaluation tokens once, for activity, for worth, for what counterparts do, or for several of them.

    Memory holds the weights of one group of members; what counterparts do is measured of all members together.
    """
    activations = evaluator.activations(run.hookpoint, run.stored.d_in, run.output)
    rows, tokens, targets = activations.rows, activations.tokens, activations.targets
    positions = None if tokens is None else np.flatnonzero(tokens.counted)
    n = run.stored.n_members
    groups = [range(n)] if function else run.groups
    activity_passes: list[ActivityPass] = []
    ablation_passes: list[AblationPass] = []
    for_function = None
    sums = worth or (function and not run.undefined)
    with run.progress.stage(f"{run.name}: activity{' and ablation' if sums else ''}", "tokens") as report:
        for group in groups:
            members = run.load(group)
            activity_pass = ActivityPass(members, keep=function) if activity else None
            ablation_pass = None
            if sums:
                # Of all pairs' sums only masks need more than the diagonal.
                pair_numbers = PAIR_NUMBERS * len(group) // n if worth else 0
                ablation_pass = AblationPass(members, pair_numbers=pair_numbers, across=function)
            firings = activity_pass.firings if activity_pass else FiringSpool(members) if function else None
            for first, batch, codes in encoded(members, rows, run.device, n_members=n):
                if firings:
                    at = slice(first, first + len(batch))
                    firings.add(codes, np.arange(at.start, at.stop) if positions is None else positions[at])
                if ablation_pass:
                    ablation_pass.add(batch if targets is None else target_rows(targets, first, len(batch)), codes)
                read = group.start * len(rows) + len(group) * (first + len(batch))  # by all members together
                report(read // n, len(rows))
            if function and firings:
                for_function = FunctionPass(firings, ablation_pass)
            if activity_pass:
                activity_passes.append(activity_pass)
            if ablation_pass and worth:
                ablation_passes.append(ablation_pass)
            if len(groups) > 1:  # nothing of the group's weights and firings stays in memory
                if firings:
                    firings.set_aside()
                if ablation_pass:
                    ablation_pass.release()
    if targets is None and not run.undefined:
        targets = rows
    return TokenPass(
        rows, targets, tokens, activations.left_out, groups, activity_passes, ablation_passes, for_function
    )


def target_rows(targets: Rows, first: int, n: int) -> torch.Tensor:
    """n rows of what members should give back, in float32."""
    return torch.from_numpy(targets[first : first + n].astype(np.float32))


def keep_activity(run: EnsembleRun, evaluator: Evaluator, collected: TokenPass) -> Part:
    """Summarise what a pass collected, with contexts, triggers and direct logits, member by member."""
    tokens = collected.tokens
    say_without_logits(run, evaluator)
    with (
        run.progress.stage(f"{run.name}: contexts", "seeds") as report,
        run.parts.write("activity", run.measured) as put,
    ):
        grid = None if tokens is None else ContextGrid(tokens, evaluator.texts)
        vocabulary = None if tokens is None else evaluator.vocabulary
        counted = len(collected.rows) if tokens is None else tokens
        summaries = chain.from_iterable(
            each.summaries(counted, vocabulary=vocabulary, grid=grid) for each in collected.activity
        )
        for index, (seed, summary) in enumerate(zip(run.seeds, summaries, strict=True)):
            logits = None if run.undefined else direct_logits(evaluator.model, run.stored.decoder_rows(index))
            put(seed, flat_arrays(summary, logits) | {"left_out": collected.left_out})
            report(index + 1, run.stored.n_members)
    return run.part("activity", run.measured)


def say_without_logits(run: EnsembleRun, evaluator: Evaluator) -> None:
    """Say why there are no direct logits, where there are none."""
    reason = run.undefined or (refusal(evaluator.model, run.stored.d_out) if evaluator.model.causal else None)
    if reason:
        run.progress.say(f"{run.name}: direct logits: left out, {reason}")


def flat_arrays(activity: Activity, logits: Logits | None) -> dict[str, Any]:
    """Activity as named arrays, its contexts, triggers, examples and direct logits among them."""
    columns = activity._asdict()
    kinds = [name for name in ("context", "trigger", "example") if columns[f"{name}s"] is not None]
    inside = {name: columns.pop(f"{name}s")._asdict() for name in kinds}
    if "trigger" in inside:
        inside["trigger"]["what"] = inside["trigger"]["what"].astype(str)  # text of fixed width: no pickle
    columns = {name: array for name, array in columns.items() if array is not None}
    named = {f"logit_{name}": tensor.numpy() for name, tensor in logits._asdict().items()} if logits else {}
    return columns | {f"{kind}_{name}": array for kind, each in inside.items() for name, array in each.items()} | named
