"""Analyses of one member at a time, as units of work: its activity, what its features are worth, and its token rules.

Each unit reads the activations that a harvest left on disk, the member's file and the evaluation tokens, and writes the arrays
that a part keeps of the member. Its batches are those of all members together, so that no number depends on where it runs.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.model import loaded_again
from seedscope.engine.activations.outliers import Without
from seedscope.engine.activations.shards import reopened
from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.executors.unit import Unit, run_units
from seedscope.engine.explanations.of_study import explain_member_by_rules, kept_text
from seedscope.engine.features.ablation import PAIR_NUMBERS, AblationPass, MaskPass, explained_under
from seedscope.engine.features.activity import ActivityPass
from seedscope.engine.features.examples import ContextGrid
from seedscope.engine.features.logits import direct_logits
from seedscope.engine.features.triggers import TokenClasses
from seedscope.engine.progress import Report
from seedscope.engine.saes import sae
from seedscope.engine.saes.encode import encoded
from seedscope.engine.store.parts import Part, read_arrays, write_arrays
from seedscope.engine.studies.analyses.activity import flat_arrays, say_without_logits, target_rows
from seedscope.engine.studies.analyses.worth import MaskedFeatures, mask_columns
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.studies.evaluator import Evaluator, Rows


class MemberTask(NamedTuple):
    """What members are measured on, in plain values and paths that another process can read."""

    study: str
    members: str
    """Folder of the members' files."""
    seeds: tuple[int, ...]
    rows: str
    """Folder of the harvested activations."""
    targets: str | None
    """Likewise of what transcoders predict; None: members give back what they read."""
    left_out: str
    """A file of the `rows` and flat `tokens` that do not count."""
    model: tuple[str, bool, str] | None
    """Source, whether its weights are random, digest: for direct logits; None where there are none."""
    d_sae: int
    device: str


def can_measure_elsewhere(run: EnsembleRun, evaluator: Evaluator) -> bool:
    """Whether another process can read what members are measured on: rows that a harvest left, of a model that is on disk."""
    return not run.executor.is_here and evaluator.model.source is not None


def activity_elsewhere(run: EnsembleRun, evaluator: Evaluator) -> Part:
    """The activity of every member, kept as a part as `keep_activity` keeps it."""
    task = _task(run, evaluator)
    say_without_logits(run, evaluator)
    folder = run.units_folder("activity", run.measured)
    _run(run, "activity", folder, [(measure_activity, (task, index)) for index in range(len(run.seeds))])
    with run.parts.write("activity", run.measured) as put:
        for seed in run.seeds:
            put(seed, read_arrays(_path(folder, seed)))
    return run.part("activity", run.measured)


def worth_elsewhere(run: EnsembleRun, evaluator: Evaluator, masked: MaskedFeatures) -> None:
    """What every member's features and sets of them are worth, kept as a part as `measure_worth` keeps it."""
    about = run.measured | run.judgement
    task, folder = _task(run, evaluator), run.units_folder("worth", about)
    calls = []
    for index, seed in enumerate(run.seeds):
        drawn_from = folder / f"masks-of-seed-{seed}.npz"
        write_arrays(drawn_from, {"bucket": masked.buckets[index].astype(str), "n_active": masked.n_active[index]})
        calls.append((measure_member_worth, (task, index, str(drawn_from))))
    _run(run, "worth", folder, calls)
    with run.parts.write("ablate", about) as put:
        for seed in run.seeds:
            put(seed, read_arrays(_path(folder, seed)))


def rules_elsewhere(run: EnsembleRun, activity: Part, report: Report) -> dict[int, Path]:
    """A file of token rules for every member."""
    folder = run.units_folder("rules", activity.about)
    where = str(run.study.absolute()), str(activity.folder.absolute())
    units = [
        Unit(explain_member_by_rules, (*where, seed, str(_path(folder, seed))), _path(folder, seed), run.stored.d_sae)
        for seed in run.seeds
    ]
    run_units(run.executor, units, report=report, say=run.progress.say)
    return {seed: _path(folder, seed) for seed in run.seeds}


def _run(run: EnsembleRun, what: str, folder: Path, calls: Sequence[tuple]) -> None:
    units = [
        Unit(function, (*arguments, str(_path(folder, seed))), _path(folder, seed))
        for seed, (function, arguments) in zip(run.seeds, calls, strict=True)
    ]
    with run.progress.stage(f"{run.name}: {what}", "seeds") as report:
        run_units(run.executor, units, report=report, say=run.progress.say)


def _path(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}.npz"


def _task(run: EnsembleRun, evaluator: Evaluator) -> MemberTask:
    """What units read, harvested here if it is not there yet."""
    at_hook = evaluator.activations(run.hookpoint, run.stored.d_in, run.output)
    folder = run.units_folder("left-out", [run.measured, at_hook.left_out.tolist()])
    write_arrays(folder / "left-out.npz", {"rows": at_hook.outlying, "tokens": at_hook.left_out})
    model = evaluator.model
    return MemberTask(
        study=str(run.study.absolute()),
        members=str((run.study / run.ensemble.folder).absolute()),
        seeds=run.seeds,
        rows=str(evaluator.rows_at(run.hookpoint).absolute()),
        targets=str(evaluator.rows_at(run.output.name).absolute()) if run.output else None,
        left_out=str(folder / "left-out.npz"),
        model=None if run.undefined or model.source is None else (model.source, model.is_random, model.digest),
        d_sae=run.stored.d_sae,
        device=run.unit_device,
    )


def _rows(task: MemberTask) -> tuple[Rows, Rows | None]:
    """What members read, and what they should give back where that is something else, without outliers."""
    outlying = read_arrays(Path(task.left_out), "rows")["rows"]

    def without(folder: str) -> Rows:
        rows = reopened(Path(folder))
        return Without(rows, outlying) if len(outlying) else rows

    return without(task.rows), None if task.targets is None else without(task.targets)


@lru_cache(maxsize=1)
def _text(study: str, left_out: str) -> tuple[TokenSet, ContextGrid, TokenClasses]:
    """The tokens that count, where examples are drawn from, and the classes of tokens; members of one ensemble share them."""
    tokens, texts = kept_text(study)
    counted = tokens._replace(left_out=read_arrays(Path(left_out), "tokens")["tokens"])
    return counted, ContextGrid(counted, texts), TokenClasses(texts, tokens.ids[tokens.counted])


@torch.no_grad()
def measure_activity(task: MemberTask, index: int, path: str) -> str:
    """One member's activity with contexts, triggers and direct logits, written to a file; a unit of work."""
    tokens, grid, vocabulary = _text(task.study, task.left_out)
    member = sae.load(Path(task.members), task.seeds[index : index + 1])
    collected, positions = ActivityPass(member), np.flatnonzero(tokens.counted)
    rows, _ = _rows(task)
    for first, batch, codes in encoded(member, rows, torch.device(task.device), n_members=len(task.seeds)):
        collected.add(codes, positions[first : first + len(batch)])
    activity = collected.finish(0, tokens, vocabulary=vocabulary, grid=grid)
    logits = None
    if task.model is not None:
        logits = direct_logits(loaded_again(*task.model, task.device), member.W_dec[0].detach())
    write_arrays(Path(path), flat_arrays(activity, logits) | {"left_out": tokens.left_out})
    return path


@torch.no_grad()
def measure_member_worth(task: MemberTask, index: int, drawn_from: str, path: str) -> str:
    """What one member's features are worth, alone and in the sets that are drawn from its buckets; a unit of work."""
    arrays = read_arrays(Path(drawn_from))
    drawn = MaskedFeatures([arrays["bucket"]], [arrays["n_active"]]).masks(0)
    member, n = sae.load(Path(task.members), task.seeds[index : index + 1]), len(task.seeds)
    rows, targets = _rows(task)
    ablation = AblationPass(member, pair_numbers=PAIR_NUMBERS // n)
    passes: list[AblationPass | MaskPass] = [ablation]
    if not ablation.pairwise:
        passes.append(masks := MaskPass(member, [drawn]))
    for first, batch, codes in encoded(member, rows, torch.device(task.device), n_members=n):
        goal = batch if targets is None else target_rows(targets, first, len(batch))
        for each in passes:
            each.add(goal, codes)
    worth = ablation.finish(0)
    columns = mask_columns(explained_under(worth if ablation.pairwise else masks.finish(0, worth), drawn))
    own = {"ev": np.asarray(worth.explained_variance()), "marginal": worth.marginal_worth()}
    write_arrays(Path(path), own | columns)
    return path
