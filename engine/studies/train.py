"""Trains an ensemble for a study, on a model's activations or on given rows; one trained before is loaded.

A training that was stopped goes on from its last checkpoint.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from seedscope.engine.activations.harvest import LanguageModel, TokenSet, harvest
from seedscope.engine.contract.checksums import damaged_file, write_sums
from seedscope.engine.contract.progress_files import Curves
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.machine import named_device
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.training.batches import Rows
from seedscope.engine.training.calibrate import NEAR, Calibration, calibrated
from seedscope.engine.training.ensemble import train_ensemble, training_space
from seedscope.engine.training.snapshots import ALONG, Snapshots
from seedscope.engine.training.summary import in_words, summarise
from seedscope.engine.training.trace import Point, Trace
from seedscope.engine.training.trace import read as read_trace

CHECKPOINTS = "checkpoints"  # in the study's folder
CALIBRATION = "calibration.json"  # in the study's folder: which l1 were tried, with what L0


@dataclass(frozen=True)
class TrainingSource:
    """What SAEs are trained on: activations of a model at one hook point, on the tokens that count."""

    model: LanguageModel
    hookpoint: str
    tokens: TokenSet


def train(
    study: Path,
    name: str,
    config: TrainConfig,
    source: TrainingSource,
    progress: Progress,
    *,
    beside: str | None = None,
    device: str = "cpu",
    l0: float | None = None,
    executor: Executor = HERE,
) -> catalogue.EnsemblePlan:
    """Train an ensemble on a model's activations, about as many as `config` asks for, or load it if it was trained before.

    `beside` names an SAE that will stand with the members, in a folder that no other one shares. Where an `l0` is asked for,
    its l1 is found first and stands in the recipe; members that miss it by more than a tenth are remarked on.
    """
    model, hookpoint = source.model, source.hookpoint
    tokens = enough(source.tokens, config.n_tokens, config.data_samples)

    def made_from(config: TrainConfig, *more: float | str) -> str:
        recipe = json.dumps([as_parameters(config), tokens.digest + model.digest, hookpoint, *more], sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()[:16]

    rows_at = study / "scratch" / f"train-{hashlib.sha256(hookpoint.encode()).hexdigest()[:16]}"

    @cache
    def rows() -> Rows:
        with progress.stage(f"training activations at {hookpoint}", "tokens") as report:
            return harvest(model, tokens, hookpoint, rows_at, executor=executor, report=report)

    calibration = None
    if l0 is not None:
        calibration = calibrated(
            rows, config, l0, name=name, kept=study / CALIBRATION, key=made_from(config, l0), device=named_device(device),
            progress=progress,
        )  # fmt: skip
        config = replace(config, l1=calibration.l1)
    provenance, made = {"model": model.digest, "hookpoint": hookpoint}, made_from(config, *([beside] if beside else []))
    ensemble = train_once(
        study, name, config, made, rows, provenance, progress, device=device, executor=executor, rows_at=rows_at
    )
    entry = trained_entry(
        study, name, config, made, ensemble, hookpoint=hookpoint, train_token_digest=tokens.digest,
        n_train_tokens=int(tokens.counted.sum()) // config.data_samples,
    )  # fmt: skip
    return entry if calibration is None else _with_l0(entry, calibration, study, progress)


def _with_l0(
    entry: catalogue.EnsemblePlan, calibration: Calibration, study: Path, progress: Progress
) -> catalogue.EnsemblePlan:
    """The entry with the L0 that was asked for, and a remark where its members miss it."""
    points = read_trace(study / entry.folder)
    last = max(point.step for point in points)
    mean, remarks = fmean(l0 for point in points if point.step == last for l0 in point.l0), [calibration.says]
    if abs(mean / calibration.asked - 1) > NEAR:
        remarks.append(
            f"L0 = {calibration.asked:g} was asked for and missed: its members end with {mean:.2f} active features"
        )
        progress.say(f"{entry.name}: {remarks[-1]}")
    return replace(entry, recipe=(entry.recipe or {}) | {"l0": calibration.asked}, remarks=tuple(remarks))


def train_once(
    study: Path,
    name: str,
    config: TrainConfig,
    made_from: str,
    rows: Callable[[], Rows],
    provenance: dict[str, str],
    progress: Progress,
    *,
    device: str = "cpu",
    executor: Executor = HERE,
    rows_at: Path | None = None,
) -> sae.SAE:
    """Train on rows, or load what was trained from the same before.

    In units, where the executor works elsewhere and `rows_at` says where a harvest left the rows.
    """
    folder = study / "sae" / name / made_from
    ensemble = _trained_before(study, folder, config)
    if ensemble is None:
        activations = rows()
        trace, checkpoints = Trace(), checkpoints_of(study, name)
        begun = time.time()

        def show(newest: Point) -> None:
            moments = summarise(trace.points, config.seeds)
            curves = Curves(study.name, name, config.variant, begun, len(config.seeds), config.n_tokens, moments)
            progress.show(curves, in_words(newest))

        trace.on_point = show
        with progress.stage(f"{name}: {len(config.seeds)} SAEs in lockstep", "tokens") as report:
            ensemble = train_ensemble(
                activations, config, device=named_device(device), checkpoints=checkpoints / made_from, trace=trace, report=report,
                snapshots=Snapshots(folder), say=lambda text: progress.say(f"{name}: {text}"), executor=executor,
                rows_at=rows_at,
            )  # fmt: skip
        ensemble.save(folder, provenance=provenance)
        trace.save(folder)
        training_space(activations, config).save(folder / ALONG)
        write_sums(folder)
        (folder / "complete").touch()
        forget_checkpoints(study, name)
    return ensemble


def checkpoints_of(study: Path, name: str) -> Path:
    """Folder of the checkpoints of an ensemble's trainings: outside scratch/, which every analysis empties."""
    return study / CHECKPOINTS / name


def forget_checkpoints(study: Path, name: str) -> None:
    """Remove the checkpoints of an ensemble, those of trainings by other recipes among them."""
    shutil.rmtree(checkpoints_of(study, name), ignore_errors=True)
    with suppress(OSError):  # not empty, as other ensembles have checkpoints, or not there
        (study / CHECKPOINTS).rmdir()


def trained_entry(
    study: Path, name: str, config: TrainConfig, made_from: str, ensemble: sae.SAE, **more: Any
) -> catalogue.EnsemblePlan:
    """What the catalogue says of an ensemble that was trained here."""
    library = f"seedscope {version('seedscope')}"
    members = [catalogue.MemberPlan(seed, ensemble.digest(i), None, library) for i, seed in enumerate(ensemble.seeds)]
    return catalogue.EnsemblePlan(
        name=name,
        origin="trained",
        folder=str((study / "sae" / name / made_from).relative_to(study)),
        members=tuple(members),
        variant=config.variant,
        shared_start="yes" if config.shares_start else "no",
        data_order=config.data_order,
        train_tokens=config.n_tokens,
        batch=config.batch,
        lr=config.lr,
        recipe={name: value for name, value in as_parameters(config).items() if name != "seeds"},
        made_from=made_from,
        **more,
    )


def _trained_before(study: Path, folder: Path, config: TrainConfig) -> sae.SAE | None:
    """The members that were trained; None where there are none, some are gone, or some are not as they were written."""
    if not (folder / "complete").exists():
        return None
    try:
        if damaged_file(folder, beginning="seed-"):
            raise ValueError(f"an SAE in {folder} is not as it was written")
        return sae.load(folder, config.seeds, _digests_before(study, folder, config))
    except (FileNotFoundError, ValueError):  # somebody tidied up, or the disk did: train again
        (folder / "complete").unlink()
        return None


def _digests_before(study: Path, folder: Path, config: TrainConfig) -> list[str] | None:
    """The members' digests as the catalogue has them, None where it does not name this folder."""
    plan = catalogue.read(study)
    for each in plan.ensembles if plan else ():
        of = {member.seed: member.digest for member in each.members}
        if study / each.folder == folder and set(config.seeds) <= of.keys():
            return [of[seed] for seed in config.seeds]
    return None


def enough(tokens: TokenSet, n_tokens: int, n_samples: int = 1) -> TokenSet:
    """A random choice of windows (seed 0) that holds about the tokens that training will see.

    Several samples stand one behind the other, in random order, so that each is drawn from the whole text.
    """
    n_windows = int(
        np.ceil(1.02 * n_samples * n_tokens / tokens.counted.sum() * len(tokens.ids))
    )  # windows differ in length
    if n_samples == 1 and n_windows >= len(tokens.ids):
        return tokens
    chosen = np.random.default_rng(0).permutation(len(tokens.ids))[:n_windows]
    return tokens.only(np.sort(chosen) if n_samples == 1 else chosen)
