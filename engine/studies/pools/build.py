"""The feature pool of a study's ensemble: made, trained on, measured beside its controls and written as one folder.

`sae/` holds the pool as SAELens loads it, `pool.json` where each of its features came from, and the curves.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.documents import Document, documents, split
from seedscope.engine.activations.harvest import harvest, tokenize
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.demo import stdlib
from seedscope.engine.features.loss import LOSS_TOKENS, Splice, takes_long
from seedscope.engine.machine import named_device
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.encode import HeldOutMeasures, measure
from seedscope.engine.saes.sae import SAE
from seedscope.engine.saes.saelens import refusal, save
from seedscope.engine.store import catalogue
from seedscope.engine.store.staged import staged
from seedscope.engine.studies.evaluator import Evaluator, HookActivations
from seedscope.engine.studies.open_evaluator import open_evaluator
from seedscope.engine.studies.pools.pool import Pool, pool
from seedscope.engine.studies.pools.posttrain import (
    agreement_of,
    halves,
    lengths,
    recipe_of,
    starts,
    train_on,
    two_pools,
)
from seedscope.engine.studies.pools.record import FORMAT, FORMAT_VERSION, RECORD, SAE_FOLDER, members_of, read
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.generator import TRAINING
from seedscope.engine.studies.synthetic.samples import draw_rows
from seedscope.engine.studies.train import checkpoints_of, enough, forget_checkpoints
from seedscope.engine.training.batches import Rows
from seedscope.engine.training.ensemble import train_ensemble

TOKENS = 2_000_000  # of post-training at most unasked; the ensemble's own length where that is shorter
EVALUATED = 65_536  # rows that are measured at most, evenly spaced
N_FRESH = 2


@dataclass(frozen=True)
class Asked:
    """What a pool is made with."""

    tokens: int | None = None
    """Of post-training; TOKENS or the ensemble's own if not given, 0 for none."""
    texts: tuple[str, ...] = ()
    """What to train on; see engine.activations.documents.documents. The study's training text where it is known."""
    theta: float | None = None
    """The study's if not given."""
    loss_tokens: int | None = None
    """That the loss is measured on; LOSS_TOKENS where that is cheap if not given, 0 for no loss."""
    device: str = "auto"
    replaced: bool = False
    """Whether a pool of other members or settings that lies in the folder gives way."""


class _Held(NamedTuple):
    """Everything that curves are measured on."""

    rows: np.ndarray  # held out
    splice: Splice | None
    theta: float
    device: torch.device


def pool_ensemble(
    study: Path, name: str, folder: Path, asked: Asked | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Pool an ensemble into a new folder; returns what its `pool.json` says.

    Stopped, nothing is left in the folder, and activations and training go on from where they were. Raises ValueError for a
    study without a catalogue, an ensemble that it does not have or of one member, features that cannot be pooled, and
    where what post-training needs is missing.
    """
    asked, progress = asked or Asked(), progress or Progress()
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}, expected a study; bring SAEs with: seedscope import")
    entry = plan.ensemble(name)
    if len(entry.members) < 2:
        raise ValueError(
            f"ensemble {name} has one member, expected at least 2 to pool, and 4 for two disjoint pools; import or train more "
            "seeds"
        )
    members = sae.load(study / entry.folder, entry.seeds).requires_grad_(False)
    config = _config(entry, members, asked)
    theta = plan.theta if asked.theta is None else asked.theta
    made_from = _made_from(plan, entry, asked, config, theta)
    if folder.exists():
        held = read(folder)
        if held and held["made_from"] == made_from:
            progress.say(f"{name}: this pool is there already, in {folder}")
            return held
        if not asked.replaced:
            raise ValueError(
                f"{folder} is there already, of other members or settings; pass --replace to put the new pool in its place, or "
                "another --out"
            )
    if reason := refusal(members.convention):
        raise ValueError(f"ensemble {name} cannot be saved for SAELens as a pool: {reason}")
    device = named_device(asked.device)
    measurable = bool(entry.hookpoint) and bool(synthetic.read(study) or (plan.model and plan.tokens))
    if config and not measurable:
        raise ValueError(
            f"post-training reads a model's activations, and study {plan.name} lacks a model, tokens or {name}'s hook point; "
            f"name them with: seedscope analyze {plan.name} --model .. --tokens .. --hookpoint .., or pass --tokens 0 for "
            "the pool alone"
        )
    texts = _texts(study, plan, entry, asked) if config else None
    evaluator = open_evaluator(study, plan, None, None, device, progress) if measurable else None
    evaluator = evaluator and (evaluator.control if entry.control_of else evaluator)
    spot = evaluator and evaluator.place(entry.hookpoint, members.d_in)
    held = spot and _Held(_evenly(spot.rows), _splice(evaluator, spot, entry, asked, config, progress), theta, device)
    density = None
    if held:
        with progress.stage(f"{name}: densities", "rows") as report:
            density = measure(members, held.rows, device=device).n_active / len(held.rows)
            report(len(held.rows), len(held.rows))
    with progress.stage(f"{name}: unique features", "rows") as report:
        whole = pool(members, density=density, theta=theta, device=device, report=report)
    two = two_pools(members, density=density, theta=theta, device=device)
    told = _told(plan, entry, members, whole, theta, config) | {"made_from": made_from}
    if two is None:
        told["remarks"].append(
            f"{len(members.seeds)} members: two disjoint pools need at least 4, so there is no stability"
        )
    begun, saved = starts(members, whole, two), whole.sae
    if held:
        told["evaluation"] = {
            "rows": len(held.rows), "tokens": evaluator.evaluation.token_digest, "model": evaluator.model.digest,
            "hookpoint": entry.hookpoint, "loss_tokens": held.splice.n_tokens if held.splice else 0,
        }  # fmt: skip
        rows = None
        if config:
            rows, told["training"] = _rows(study, plan, entry, evaluator, texts, config, progress)
            begun |= _fresh(study, entry, rows, config, two, told, device, progress)
        told["curves"], saved = _curves(study, name, begun, rows, config, held, progress)
    told["digest"] = saved.digest(0)
    _write(folder, told, saved, {
        "model_name": plan.model, "hook_name": entry.hookpoint, "training_architecture": entry.variant,
        "context_size": evaluator.evaluation.n_ctx if evaluator else None, "seedscope_digest": told["digest"],
        "seedscope_pool_of": [member.digest for member in entry.members],
    })  # fmt: skip
    shutil.rmtree(study / "scratch", ignore_errors=True)
    forget_checkpoints(study, name)
    return told


def _config(entry: catalogue.EnsemblePlan, members: SAE, asked: Asked) -> TrainConfig | None:
    """The recipe of post-training; None where none is asked for."""
    tokens = min(TOKENS, entry.train_tokens or TOKENS) if asked.tokens is None else asked.tokens
    if tokens == 0:
        return None
    known = {name: value for name in ("batch", "lr") if (value := getattr(entry, name)) is not None}
    try:
        return recipe_of(members, entry.recipe, tokens, variant=entry.variant, **known)
    except ValueError as error:
        raise ValueError(
            f"ensemble {entry.name} cannot be trained on: {error}; pass --tokens 0 for the pool without post-training"
        ) from None


def _made_from(
    plan: catalogue.StudyPlan, entry: catalogue.EnsemblePlan, asked: Asked, config: TrainConfig | None, theta: float
) -> str:
    """16 hex digits over all that a pool depends on, but the content of files that are named."""
    tokens = plan.tokens and asdict(plan.tokens)
    content = [FORMAT_VERSION, members_of(entry), theta, config and as_parameters(config), entry.train_tokens, entry.recipe,
               asked.texts, asked.loss_tokens, plan.model, tokens, entry.hookpoint]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _evenly(rows) -> np.ndarray:
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), EVALUATED)).round().astype(np.int64)
    return rows[chosen].astype(np.float32)


def _splice(
    evaluator: Evaluator,
    spot: HookActivations,
    entry: catalogue.EnsemblePlan,
    asked: Asked,
    config: TrainConfig | None,
    progress: Progress,
) -> Splice | None:
    """What the loss is measured with; None, with a word, where there is none or it takes long and was not asked for."""
    if asked.loss_tokens == 0 or not evaluator.model.causal:
        return None
    n_tokens = asked.loss_tokens or LOSS_TOKENS
    passes = 9 * (len(lengths(config.n_tokens, config.batch)) if config else 1)
    if asked.loss_tokens is None and takes_long(evaluator.model, passes, n_tokens):
        progress.say(
            f"{entry.name}: loss: left out, {passes} passes of {evaluator.model.name} over {n_tokens:,} tokens take long on a CPU; "
            f"ask for them with --loss-tokens {n_tokens}"
        )
        return None
    return Splice(evaluator.model, evaluator.loss_tokens(n_tokens, spot.tokens.left_out), entry.hookpoint)


def _texts(
    study: Path, plan: catalogue.StudyPlan, entry: catalogue.EnsemblePlan, asked: Asked
) -> tuple[Iterable[Document], str] | None:
    """Documents to train on and what they are, None for a synthetic study; ValueError where nobody knows."""
    if synthetic.read(study):
        if asked.texts:
            raise ValueError(f"{plan.name} is a synthetic study, trained on samples of its own; leave out --text")
        return None
    if asked.texts:
        return documents(asked.texts), ", ".join(asked.texts)
    source = plan.tokens.source
    if source == (stdlib.SOURCE,):
        return stdlib.load_corpus().train, stdlib.SOURCE
    if plan.tokens.part == "held-out":
        return split(documents(source), "train"), f"{', '.join(source)}, without what is held out"
    raise ValueError(
        f"found no text to train {entry.name} on: study {plan.name} names text to measure on alone; name some that it does not "
        "measure on with --text FILES, or pass --tokens 0 for the pool without post-training"
    )


def _rows(
    study: Path,
    plan: catalogue.StudyPlan,
    entry: catalogue.EnsemblePlan,
    evaluator: Evaluator,
    texts: tuple[Iterable[Document], str] | None,
    config: TrainConfig,
    progress: Progress,
) -> tuple[Rows, dict[str, Any]]:
    """Activations to train on, as many as the longest training sees if there are, and what they are of."""
    wanted = max(lengths(config.n_tokens, config.batch)[-1], entry.train_tokens or 0)
    if made := synthetic.read(study):
        with progress.stage("training samples", "samples") as report:
            rows = draw_rows(made.samples, wanted, stream=TRAINING)
            report(wanted, wanted)
        return rows, {"text": "samples of known true features", "tokens": made.samples.digest, "rows": wanted}
    found, remark = texts
    tokens = enough(tokenize(found, evaluator.model, n_ctx=plan.tokens.n_ctx), wanted)
    if int(tokens.counted.sum()) < config.batch:
        raise ValueError(
            f"found {int(tokens.counted.sum())} tokens in {remark}, expected a batch ({config.batch}) at least"
        )
    with progress.stage(f"training activations at {entry.hookpoint}", "tokens") as report:
        rows = harvest(
            evaluator.model, tokens, entry.hookpoint, study / "scratch" / f"pool-{entry.name}", report=report
        )
    return rows, {"text": remark, "tokens": tokens.digest, "rows": len(rows)}


def _fresh(
    study: Path,
    entry: catalogue.EnsemblePlan,
    rows: Rows,
    config: TrainConfig,
    two: tuple[Pool, Pool] | None,
    told: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> dict[str, list[SAE]]:
    """Two SAEs of seeds that the ensemble does not have, trained as long as its members; none where nobody knows how long."""
    if two is None:
        return {}
    if not entry.train_tokens:
        told["remarks"].append(
            "no fresh seeds: the study does not know how long its members were trained; members trained on stand for them"
        )
        return {}
    seeds = tuple(max(entry.seeds) + 1 + i for i in range(N_FRESH))
    length = max(entry.train_tokens, config.batch)
    held = {
        name: value for name, value in (entry.recipe or {}).items() if name in vars(config)
    }  # it may say an `l0` as well
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()}
    recipe = TrainConfig(**as_parameters(config) | own | {"seeds": seeds, "n_tokens": length})
    told["fresh"] = as_parameters(recipe)
    with progress.stage(f"{entry.name}: fresh seeds", "tokens") as report:
        fresh = train_ensemble(
            rows, recipe, device=device, checkpoints=checkpoints_of(study, entry.name) / "fresh", report=report
        )
    return {"fresh": [fresh.only(member) for member in range(N_FRESH)]}


def _curves(
    study: Path,
    name: str,
    begun: dict[str, list[SAE]],
    rows: Rows | None,
    config: TrainConfig | None,
    held: _Held,
    progress: Progress,
) -> tuple[list[dict[str, Any]], SAE]:
    """One entry per name and length; and the pool as it is saved, trained for the length that was asked for."""
    flat = [each for group in begun.values() for each in group]
    steps = lengths(config.n_tokens, config.batch) if config else [0]
    asked = config.n_tokens // config.batch * config.batch if config else 0
    curves, saved = [], begun["pool"][0]
    for n_tokens in steps:
        now = flat
        if n_tokens:
            with progress.stage(f"{name}: {len(flat)} SAEs on {n_tokens:,} more tokens", "tokens") as report:
                now = train_on(
                    flat, rows, replace(config, n_tokens=n_tokens), device=held.device, report=report,
                    checkpoints=checkpoints_of(study, name) / f"pool-{n_tokens}",
                )  # fmt: skip
        with progress.stage(f"{name}: measured after {n_tokens:,}", "SAEs") as report:
            found = []
            for each in now:
                found.append((measure(each, held.rows, device=held.device), _loss(held.splice, each)))
                report(len(found), len(now))
        at = 0
        for kind, group in begun.items():
            part = slice(at, at := at + len(group))
            curves.append({"kind": kind, "tokens": n_tokens} | _point(now[part], found[part], held.theta))
        saved = now[0] if n_tokens == asked else saved
    return curves, saved


def _point(members: list[SAE], found: list[tuple[HeldOutMeasures, float | None]], theta: float) -> dict[str, Any]:
    """What one kind reaches at one length: every SAE's own values, and how much they agree."""
    measured = [each for each, _ in found]
    both = agreement_of(members, measured, theta=theta)
    return {
        "ev": [float(each.ev[0]) for each in measured],
        "l0": [float(each.l0[0]) for each in measured],
        "dead": [float(each.dead[0]) for each in measured],
        "n_living": [int((each.n_active[0] > 0).sum()) for each in measured],
        "loss": [loss for _, loss in found] if found[0][1] is not None else None,
        "shares": [both.forward, both.backward] if both and np.isfinite([both.forward, both.backward]).all() else None,
        "shared": both and _number(both.shared),
        "mmcs": both and _number(both.mmcs),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _loss(splice: Splice | None, member: SAE) -> float | None:
    """Next-token loss with the SAE's reconstruction in place, nats per token."""
    if splice is None:
        return None
    loss = splice.spliced(member.to(splice.device))
    member.cpu()
    return loss


def _told(
    plan: catalogue.StudyPlan,
    entry: catalogue.EnsemblePlan,
    members: SAE,
    whole: Pool,
    theta: float,
    config: TrainConfig | None,
) -> dict[str, Any]:
    """The record without what is measured."""
    sets = halves(members.n_members) if members.n_members >= 4 else ()
    columns = {"seed": whole.seed, "feature": whole.feature, "holders": whole.holders}
    columns |= {} if whole.density is None else {"density": whole.density}
    remarks = []
    if whole.sae.d_sae < members.d_sae:
        remarks.append(
            f"{whole.sae.d_sae:,} unique features: the pool is narrower than its members ({members.d_sae:,})"
        )
    if config and entry.recipe is None:
        remarks.append("recipe settings that the study does not keep have their defaults")
    if config and "group_fracs" in config.uses:
        remarks.append("features that most members hold stand first, and so in the inner groups of training on")
    return {
        "format": FORMAT, "version": FORMAT_VERSION, "study": plan.name, "ensemble": entry.name, "theta": theta,
        "members": [{"seed": member.seed, "digest": member.digest} for member in entry.members],
        "halves": [[members.seeds[member] for member in each] for each in sets],
        "d_sae": whole.sae.d_sae, "d_in": members.d_in, "k": members.k or None,
        "tokens": config.n_tokens // config.batch * config.batch if config else 0,
        "recipe": {n: v for n, v in as_parameters(config).items() if n not in ("seeds", "n_tokens")} if config else None,
        "unique_by_holders": whole.n_unique.tolist(),
        "features": [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)],
        "curves": [], "evaluation": None, "training": None, "fresh": None, "remarks": remarks,
    }  # fmt: skip


def _write(folder: Path, told: dict[str, Any], saved: SAE, metadata: dict[str, Any]) -> None:
    """The folder whole, or not there; a former one gives way when the new one is whole."""
    former = folder.with_name(f".{folder.name}-former.tmp")
    shutil.rmtree(former, ignore_errors=True)
    with staged(folder) as unfinished:
        save(saved, unfinished / SAE_FOLDER, metadata)
        (unfinished / RECORD).write_text(json.dumps(told, indent=1, allow_nan=False))
        if folder.exists():
            folder.replace(former)
    shutil.rmtree(former, ignore_errors=True)
