"""Whole studies: ensembles trained or imported, measured and published."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from seedscope.engine.activations.documents import Document, documents, split
from seedscope.engine.activations.harvest import LanguageModel, TokenSet, load_model, tokenize
from seedscope.engine.activations.model import randomised
from seedscope.engine.contract.files import only_writer
from seedscope.engine.contract.published import published
from seedscope.engine.contract.recipe import StudyConfig, as_parameters
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.contract.tables.pools import FeaturePool
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.saes.importers.hub import local
from seedscope.engine.saes.importers.recognise import recognise
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import StoreReader
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.anchor import anchor_ensemble
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.pools.build import pool_ensemble
from seedscope.engine.studies.pools.record import PoolRecord, pool_folder
from seedscope.engine.studies.pools.settings import PoolSettings
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.studyfile.read import AnchorPlan, ImportPlan, StudyFile, TrainPlan
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.generator import TRAINING
from seedscope.engine.studies.synthetic.phase_map import draw_map
from seedscope.engine.studies.synthetic.samples import draw_rows
from seedscope.engine.studies.train import train, train_once, trained_entry

# What `seedscope demo` waits for; the loss follows while people look.
CORE = ("match", "activity", "ablate", "explain", "subspaces")


def run_study(
    config: StudyConfig,
    corpus: stdlib.Corpus,
    root: Path,
    *,
    built_from: str,
    only: Sequence[str] | None = None,
    loss_tokens: int | None = None,
    control: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train, measure and publish one study under `root` from texts in memory; returns the store's path.

    With `control` the same recipe is trained on the model with random weights as well; a control that is there stays.
    Stopped at any moment, it resumes: the harvest at its last complete batch, training when all members were saved,
    analyses behind the last that was done. Nothing is visible to readers before the last step.
    """
    if len(config.train.seeds) < 2:
        raise ValueError(
            f"seeds are {list(config.train.seeds)}, expected at least 2: the stability of a single SAE is undefined"
        )
    progress = progress or Progress()
    tokens = catalogue.Tokens((stdlib.SOURCE,), n_ctx=config.n_ctx, remark=corpus.remark)
    plan = catalogue.StudyPlan(config.name, config.model, tokens, config.theta, config.epsilon, built_from)
    catalogue.require_name("ensemble", config.ensemble)
    folder = root / config.name
    with only_writer(folder):
        model = load_model(config.model)
        before = catalogue.read(folder)
        control = control or any(each.control_of == config.ensemble for each in (before.ensembles if before else ()))

        def made(name: str, model: LanguageModel) -> catalogue.EnsemblePlan:
            return train(folder, name, config.train, config.hookpoint, model, corpus.train, config.n_ctx, progress)

        for trained in _with_control(made, config.ensemble, model, control=control):
            plan = plan.with_ensemble(trained)
        catalogue.write(plan, folder)
        analyse(folder, only=only, loss_tokens=loss_tokens, texts=corpus.held_out, model=model, progress=progress)
        return _published(folder, progress)


def run_file(file: StudyFile, root: Path, *, device: str = "auto", progress: Progress | None = None) -> Path:
    """Everything that a study file asks for, computed where it is missing; returns the store's path.

    Ensembles that were imported from the same files, or trained by the same recipe, before are kept as they are; those
    that the study has beside them stay. Raises ValueError as `enrol`, `train` and `analyse` do.
    """
    progress = progress or Progress()
    folder = root / file.name
    with only_writer(folder):
        model = tokens = None  # to train on, read once
        for wanted in file.ensembles:
            if isinstance(wanted, ImportPlan):
                _import(root, file, wanted, progress)
                continue
            model = model or load_model(file.model)
            tokens = tokens or tokenize(_training_texts(file), model, n_ctx=file.tokens.n_ctx)
            if isinstance(wanted, AnchorPlan):
                found = _anchored(folder, file, wanted, tokens, model, device=device, progress=progress)
                catalogue.write((catalogue.read(folder) or catalogue.StudyPlan(file.name)).with_ensemble(found), folder)
                continue
            made = partial(_train_as_asked, folder, file, wanted, tokens, device=device, progress=progress)
            for trained in _with_control(made, wanted.name, model, control=file.control is not None):
                catalogue.write(
                    (catalogue.read(folder) or catalogue.StudyPlan(file.name)).with_ensemble(trained), folder
                )
        settings = {"model": file.model, "tokens": file.tokens, "theta": file.theta, "epsilon": file.epsilon}
        catalogue.write(replace(catalogue.read(folder), **settings), folder)
        analyse(folder, only=file.analyses, loss_tokens=file.loss_tokens, model=model, device=device, progress=progress)
        return _published(folder, progress)


def _with_control(
    made: Callable[[str, LanguageModel], catalogue.EnsemblePlan], name: str, model: LanguageModel, *, control: bool
) -> Iterator[catalogue.EnsemblePlan]:
    """An ensemble as soon as it was `made`, and then its control: the same recipe on the model with random weights."""
    yield made(name, model)
    if control:
        yield replace(made(f"{name}-{catalogue.CONTROL}", randomised(model)), control_of=name)


def _train_as_asked(
    folder: Path,
    file: StudyFile,
    wanted: TrainPlan,
    tokens: TokenSet,
    name: str,
    model: LanguageModel,
    *,
    device: str,
    progress: Progress,
) -> catalogue.EnsemblePlan:
    hookpoint, n_ctx = wanted.hookpoint or file.hookpoint, file.tokens.n_ctx
    return train(folder, name, wanted.config, hookpoint, model, tokens, n_ctx, progress, device=device, l0=wanted.l0)


def _anchored(
    folder: Path,
    file: StudyFile,
    wanted: AnchorPlan,
    tokens: TokenSet,
    model: LanguageModel,
    *,
    device: str,
    progress: Progress,
) -> catalogue.EnsemblePlan:
    """An SAE with comparisons trained for it; no control, for it was trained on this model's weights."""
    return anchor_ensemble(
        folder, wanted.name, wanted.path, wanted.hookpoint or file.hookpoint, model, tokens, file.tokens.n_ctx, progress,
        settings=wanted.settings, format=wanted.format, force=wanted.force, device=device,
    )  # fmt: skip


def run_synthetic(
    made: synthetic.SyntheticPlan, root: Path, name: str, *, with_map: bool = True, progress: Progress | None = None
) -> Path:
    """Train, measure and publish a study of known true features, then its map; returns the store's path.

    Stopped, it resumes: behind training, behind each analysis, and at the cell that was not finished. Of other settings
    under the same name the new ones stay. Raises ValueError for a name that cannot be one or that another study has.
    """
    progress = progress or Progress()
    catalogue.require_name("study", name)
    folder, ensemble = root / name, f"topk-{made.recipe.d_sae}"
    with only_writer(folder):
        before = catalogue.read(folder)
        if before and not synthetic.read(folder):
            raise ValueError(f"study {name} is there and not synthetic; choose another name with --name")
        content = [asdict(made.samples), as_parameters(made.recipe)]
        made_from = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

        def rows() -> np.ndarray:
            with progress.stage("training samples", "samples") as report:
                found = draw_rows(made.samples, made.recipe.n_tokens, stream=TRAINING)
                report(len(found), len(found))
            return found

        trained = train_once(folder, ensemble, made.recipe, made_from, rows, {"samples": made.samples.digest}, progress)
        entry = trained_entry(
            folder, ensemble, made.recipe, made_from, trained, hookpoint=synthetic.HOOKPOINT,
            train_token_digest=made.samples.digest, n_train_tokens=made.recipe.n_tokens,
        )  # fmt: skip
        synthetic.write(made, folder)
        plan = replace(before or catalogue.StudyPlan(name), built_from=made_from, ensembles=(entry,))
        catalogue.write(plan, folder)
        analyse(folder, only=[each for each in ANALYSES if each != "loss"], progress=progress)  # no token comes next
        path = _published(folder, progress)
        for former in (folder / "sae").glob("*/*"):
            if former != folder / entry.folder:
                shutil.rmtree(former)
        if with_map:
            wanted = made.places(plan.theta, plan.epsilon)
            with progress.stage("map", "cells") as report:
                draw_map(folder / synthetic.CELLS, wanted, report=report)
            path = _published(folder, progress)
        return path


def _training_texts(file: StudyFile) -> Iterable[Document]:
    if file.train_source == (stdlib.SOURCE,):
        return stdlib.load_corpus().train
    found = documents(file.train_source)
    return split(found, "train") if file.tokens.part == "held-out" else found


def _published(folder: Path, progress: Progress) -> Path:
    with progress.stage("publishing", "members") as report:
        return publish(folder, report=report)


def _import(root: Path, file: StudyFile, wanted: ImportPlan, progress: Progress) -> None:
    """Enrol an ensemble unless exactly these files were."""
    made_from = _files_digest(wanted)
    held = catalogue.read(root / file.name)
    if held and any(each.name == wanted.name and each.made_from == made_from for each in held.ensembles):
        return
    with progress.stage(f"{wanted.name}: importing", "SAEs") as report:
        found = enrol(
            root, file.name, wanted.name, wanted.paths, format=wanted.format, seeds=wanted.seeds,
            hookpoint=wanted.hookpoint or file.hookpoint, shared_start=wanted.shared_start, force=wanted.force,
            replaced=True, report=report,
        )  # fmt: skip
    folder = root / file.name
    catalogue.write(catalogue.read(folder).with_ensemble(replace(found, made_from=made_from)), folder)


def _files_digest(wanted: ImportPlan) -> str:
    """16 hex digits over what an import reads: settings, names, sizes and times of the files."""
    files = []
    for path in wanted.paths:
        for each in recognise(local(path)):
            inside = [each.path] if each.path.is_file() else sorted(each.path.iterdir())
            files += [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in inside if p.is_file()]
    content = [files, wanted.format, wanted.seeds, wanted.hookpoint, wanted.shared_start, wanted.force]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def pool_study(
    study: Path, name: str, settings: PoolSettings | None = None, *, progress: Progress | None = None
) -> PoolRecord:
    """Pool an ensemble of a study where the study keeps it, and publish it; at once where exactly that is done already.

    Takes the study's lock. Raises ValueError as `pool_ensemble` does. A study without results is not published.
    """
    progress = progress or Progress()
    with only_writer(study):
        record = pool_ensemble(study, name, pool_folder(study, name), settings, progress=progress)
        store = published(study)
        if store is None:
            progress.say(f"{name}: published with the study's results: seedscope analyze {study.name}")
            return record
        if not _is_published(study / store[0], record):
            with progress.stage("publishing", "members") as report:
                publish(study, report=report)
        return record


def _is_published(store: Path, record: PoolRecord) -> bool:
    """Whether a store has this very pool."""
    try:
        with StoreReader(store) as reader:
            return record.digest in [row.sae_digest for row in reader.rows(FeaturePool, ensemble=record.ensemble)]
    except ValueError:  # of another version
        return False
