"""Ensembles trained once for a study, on a model's activations or on any rows: what is there is loaded.

A training that was stopped goes on from its last checkpoint.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from engine import catalogue, sae
from engine.activations import LanguageModel, TokenSet, harvest, tokenize
from engine.config import TrainConfig, as_parameters
from engine.curves import Curves
from engine.fused import named_device
from engine.progress import Progress
from engine.sources import Document
from engine.train import train_ensemble, training_space
from engine.training.snapshots import ALONG, Snapshots
from engine.training.telling import in_words, told
from engine.training.trace import Point, Trace


def train(
    study: Path,
    name: str,
    config: TrainConfig,
    hookpoint: str,
    model: LanguageModel,
    texts: Iterable[Document],
    n_ctx: int | None,
    progress: Progress,
    *,
    device: str = "cpu",
) -> catalogue.Ensemble:
    """Train an ensemble on a model's activations, or load it if exactly this one was trained before."""
    tokens = enough(tokenize(texts, model, n_ctx=n_ctx), config.n_tokens)
    return train_on(study, name, config, hookpoint, model, tokens, progress, device=device)


def train_on(
    study: Path,
    name: str,
    config: TrainConfig,
    hookpoint: str,
    model: LanguageModel,
    tokens: TokenSet,
    progress: Progress,
    *,
    beside: str | None = None,
    device: str = "cpu",
) -> catalogue.Ensemble:
    """The same from tokens; `beside` names an SAE that will stand with the members, in a folder that no other one shares."""
    made_of = [as_parameters(config), tokens.digest + model.digest, hookpoint, *([beside] if beside else [])]
    made_from = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]

    def rows() -> np.ndarray:
        place = hashlib.sha256(hookpoint.encode()).hexdigest()[:16]
        with progress.stage(f"training activations at {hookpoint}", "tokens") as report:
            return harvest(model, tokens, hookpoint, study / "scratch" / f"train-{place}", report=report)

    provenance = {"model": model.digest, "hookpoint": hookpoint}
    ensemble = train_once(study, name, config, made_from, rows, provenance, progress, device=device)
    return trained_entry(
        study, name, config, made_from, ensemble, hookpoint=hookpoint, train_token_digest=tokens.digest,
        n_train_tokens=int(tokens.counted.sum()),
    )  # fmt: skip


def train_once(
    study: Path,
    name: str,
    config: TrainConfig,
    made_from: str,
    rows: Callable[[], np.ndarray],
    provenance: dict[str, str],
    progress: Progress,
    *,
    device: str = "cpu",
) -> sae.SAE:
    """Train on rows, or load what was trained from the same before."""
    folder = study / "sae" / name / made_from
    ensemble = _trained_before(folder, config)
    if ensemble is None:
        found = rows()
        trace, checkpoints = Trace(), study / "scratch" / f"checkpoints-{name}-{made_from}"
        begun = time.time()

        def show(newest: Point) -> None:
            moments = told(trace.points, config.seeds)
            curves = Curves(study.name, name, config.variant, begun, len(config.seeds), config.n_tokens, moments)
            progress.show(curves, in_words(newest))

        trace.on_point = show
        with progress.stage(f"{name}: {len(config.seeds)} SAEs in lockstep", "tokens") as report:
            ensemble = train_ensemble(
                found, config, device=named_device(device), checkpoints=checkpoints, trace=trace, report=report,
                snapshots=Snapshots(folder), say=lambda text: progress.say(f"{name}: {text}"),
            )  # fmt: skip
        ensemble.save(folder, provenance=provenance)
        trace.save(folder)
        training_space(found, config).save(folder / ALONG)
        (folder / "complete").touch()
        shutil.rmtree(checkpoints)
    return ensemble


def trained_entry(
    study: Path, name: str, config: TrainConfig, made_from: str, ensemble: sae.SAE, **more: Any
) -> catalogue.Ensemble:
    """What the catalogue says of an ensemble that was trained here."""
    library = f"seedscope {version('seedscope')}"
    members = [catalogue.Member(seed, ensemble.digest(i), None, library) for i, seed in enumerate(ensemble.seeds)]
    return catalogue.Ensemble(
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


def _trained_before(folder: Path, config: TrainConfig) -> sae.SAE | None:
    if not (folder / "complete").exists():
        return None
    try:
        return sae.load(folder, config.seeds)
    except FileNotFoundError:  # somebody tidied up: train again
        (folder / "complete").unlink()
        return None


def enough(tokens: TokenSet, n_tokens: int) -> TokenSet:
    """A random choice of windows (seed 0) that holds about the tokens that training will see."""
    n_windows = int(np.ceil(1.02 * n_tokens / tokens.counted.sum() * len(tokens.ids)))  # windows differ in length
    if n_windows >= len(tokens.ids):
        return tokens
    chosen = np.sort(np.random.default_rng(0).permutation(len(tokens.ids))[:n_windows])
    return tokens.only(chosen)
