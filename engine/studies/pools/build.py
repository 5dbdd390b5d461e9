"""The feature pool of a study's ensemble: made, trained on, measured beside its controls and written as one folder.

`sae/` holds the pool as SAELens loads it, `pool.json` where each of its features came from, and the curves.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from seedscope.engine.contract.checksums import write_sums
from seedscope.engine.contract.directions import TRANSCODERS_DO_NOT_POOL
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.machine import named_device
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.encode import measure
from seedscope.engine.saes.sae import SAE
from seedscope.engine.saes.saelens import refusal, save
from seedscope.engine.store import catalogue
from seedscope.engine.store.staged import staged
from seedscope.engine.studies.pools.curves import HeldOut, measure_curves, open_held_out
from seedscope.engine.studies.pools.pool import Pool, pool
from seedscope.engine.studies.pools.posttrain import halves, starts, two_pools
from seedscope.engine.studies.pools.record import (
    FORMAT,
    FORMAT_VERSION,
    RECORD,
    SAE_FOLDER,
    PoolCurvePoint,
    PooledFrom,
    PoolRecord,
    members_of,
    read,
)
from seedscope.engine.studies.pools.settings import PoolRun, PoolSettings, post_training_recipe, settings_digest
from seedscope.engine.studies.pools.training_rows import (
    TrainingText,
    fresh_recipe,
    post_training,
    train_fresh,
    training_text,
    whole_batches,
)
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.train import forget_checkpoints


def pool_ensemble(
    study: Path,
    name: str,
    folder: Path,
    settings: PoolSettings | None = None,
    *,
    progress: Progress | None = None,
    executor: Executor = HERE,
) -> PoolRecord:
    """Pool an ensemble into a new folder; returns its record.

    Stopped, nothing is left in the folder, and activations and training go on from where they were. Raises ValueError for a
    study without a catalogue, an ensemble that it does not have or of one member, features that cannot be pooled, and
    where what post-training needs is missing.
    """
    settings, progress = settings or PoolSettings(), progress or Progress()
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}, expected a study; bring SAEs with: seedscope import")
    entry = plan.ensemble(name)
    if len(entry.members) < 2:
        raise ValueError(
            f"ensemble {name} has one seed, expected at least 2 to pool, and 4 for two disjoint pools; import or train more "
            "seeds"
        )
    members = sae.load(study / entry.folder, entry.seeds, [m.digest for m in entry.members]).requires_grad_(False)
    if members.convention.transcoder:
        raise ValueError(f"ensemble {name} holds transcoders: {TRANSCODERS_DO_NOT_POOL}")
    recipe = post_training_recipe(entry, members, settings)
    theta = plan.theta if settings.theta is None else settings.theta
    made_from = settings_digest(plan, entry, settings, recipe, theta)
    if folder.exists():
        record = read(folder)
        if record and record.made_from == made_from:
            progress.say(f"{name}: this pool is there already, in {folder}")
            return record
        if not settings.replaced:
            raise ValueError(
                f"{folder} is there already, of other seeds or settings; pass --replace to put the new pool in its place, or "
                "another --out"
            )
    if reason := refusal(members.convention):
        raise ValueError(f"ensemble {name} cannot be saved for SAELens as a pool: {reason}")
    device = named_device(settings.device)
    run = PoolRun(study, plan, entry, members, theta, settings, recipe, device, progress, executor)
    hookpoint = _measurable_hookpoint(run)
    if recipe and hookpoint is None:
        raise ValueError(
            f"post-training reads a model's activations, and study {plan.name} lacks a model, tokens or {name}'s hook point; "
            f"name them with: seedscope analyze {plan.name} --model .. --tokens .. --hookpoint .., or pass --tokens 0 for "
            "the pool alone"
        )
    text = training_text(run) if recipe else None
    held_out = open_held_out(run, hookpoint) if hookpoint else None
    record, saved = _make_pool(run, made_from, text, held_out)
    _write(folder, record, saved, {
        "model_name": plan.model, "hook_name": entry.hookpoint, "training_architecture": entry.variant,
        "context_size": (held_out.evaluator.evaluation.n_ctx or None) if held_out else None, "seedscope_digest": record.digest,
        "seedscope_pool_of": [member.digest for member in entry.members],
    })  # fmt: skip
    shutil.rmtree(study / "scratch", ignore_errors=True)
    forget_checkpoints(study, name)
    return record


def _measurable_hookpoint(run: PoolRun) -> str | None:
    """The ensemble's hook point where the study has samples, or a model and tokens, to measure at it; None elsewhere."""
    has_source = synthetic.read(run.study) or run.plan.activations or (run.plan.model and run.plan.tokens)
    return (run.entry.hookpoint or None) if has_source else None


def _make_pool(
    run: PoolRun, made_from: str, text: TrainingText | None, held_out: HeldOut | None
) -> tuple[PoolRecord, SAE]:
    """The record of an ensemble's pool, and the pool as it is saved."""
    name, members, theta, device = run.name, run.members, run.theta, run.device
    density = None
    if held_out:
        with run.progress.stage(f"{name}: densities", "rows") as report:
            density = measure(members, held_out.rows, device=device).n_active / len(held_out.rows)
            report(len(held_out.rows), len(held_out.rows))
    with run.progress.stage(f"{name}: unique features", "rows") as report:
        whole = pool(members, density=density, theta=theta, device=device, report=report)
    two = two_pools(members, density=density, theta=theta, device=device)
    groups, saved, remarks = starts(members, whole, two), whole.sae, _remarks(run, whole)
    if two is None:
        remarks.append(f"{len(members.seeds)} members: two disjoint pools need at least 4, so there is no stability")
    training, fresh = None, None
    curves: list[PoolCurvePoint] = []
    if held_out:
        if run.recipe:
            training = post_training(run, run.recipe, text, held_out.evaluator, held_out.hookpoint)
            if two is not None:
                fresh = fresh_recipe(run, run.recipe)
                if fresh is None:
                    remarks.append(
                        "no fresh seeds: the study does not know how long its members were trained; members trained on stand "
                        "for them"
                    )
                else:
                    groups["fresh"] = train_fresh(run, fresh, training)
        curves, saved = measure_curves(run, groups, training, held_out)
    record = replace(
        _record(run, whole, made_from, saved.digest(0)),
        curves=tuple(curves),
        evaluation=held_out.about if held_out else None,
        training=training.about if training else None,
        fresh=as_parameters(fresh) if fresh else None,
        remarks=tuple(remarks),
    )
    return record, saved


def _remarks(run: PoolRun, whole: Pool) -> list[str]:
    """What a reader should know of the pool and its recipe."""
    remarks = []
    if whole.sae.d_sae < run.members.d_sae:
        remarks.append(
            f"{whole.sae.d_sae:,} unique features: the pool is narrower than its members ({run.members.d_sae:,})"
        )
    if run.recipe and run.entry.recipe is None:
        remarks.append("recipe settings that the study does not keep have their defaults")
    if run.recipe and "group_fracs" in run.recipe.uses:
        remarks.append("features that most members hold stand first, and so in the inner groups of training on")
    return remarks


def _record(run: PoolRun, whole: Pool, made_from: str, digest: str) -> PoolRecord:
    """The record without what is measured."""
    members, recipe = run.members, run.recipe
    sets = halves(members.n_members) if members.n_members >= 4 else ()
    density = [None] * len(whole.seed) if whole.density is None else whole.density.tolist()
    columns = whole.seed.tolist(), whole.feature.tolist(), whole.holders.tolist(), density
    return PoolRecord(
        format=FORMAT,
        version=FORMAT_VERSION,
        study=run.plan.name,
        ensemble=run.name,
        theta=run.theta,
        members=members_of(run.entry),
        halves=tuple(tuple(members.seeds[member] for member in half) for half in sets),
        d_sae=whole.sae.d_sae,
        d_in=members.d_in,
        k=members.k or None,
        tokens=whole_batches(recipe) if recipe else 0,
        recipe=_settings(recipe) if recipe else None,
        unique_by_holders=tuple(whole.n_unique.tolist()),
        features=tuple(PooledFrom(*row) for row in zip(*columns, strict=True)),
        curves=(),
        evaluation=None,
        training=None,
        fresh=None,
        remarks=(),
        made_from=made_from,
        digest=digest,
    )


def _settings(recipe: TrainConfig) -> dict[str, Any]:
    """A recipe as a record names it: without seeds and length."""
    return {name: value for name, value in as_parameters(recipe).items() if name not in ("seeds", "n_tokens")}


def _write(folder: Path, record: PoolRecord, saved: SAE, metadata: dict[str, Any]) -> None:
    """The folder whole, or not there; a former one gives way when the new one is whole."""
    former = folder.with_name(f".{folder.name}-former.tmp")
    shutil.rmtree(former, ignore_errors=True)
    with staged(folder) as unfinished:
        save(saved, unfinished / SAE_FOLDER, metadata)
        (unfinished / RECORD).write_text(json.dumps(record.to_json(), indent=1, allow_nan=False))
        write_sums(unfinished)
        if folder.exists():
            folder.replace(former)
    shutil.rmtree(former, ignore_errors=True)
