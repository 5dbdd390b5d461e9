"""Runs whole studies: ensembles are trained or imported, analysed and published, from settings or from a study file."""

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
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.progress import Progress
from seedscope.engine.saes.importers.ensemble import located
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import StoreReader
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.anchor import anchor_ensemble
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.model_seeds import train_on_models
from seedscope.engine.studies.pools.build import pool_ensemble
from seedscope.engine.studies.pools.record import PoolRecord, pool_folder
from seedscope.engine.studies.pools.settings import PoolSettings
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.recorded import describe
from seedscope.engine.studies.studyfile.read import AnchorPlan, ImportPlan, ModelSeedsPlan, StudyFile, TrainPlan
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.generator import TRAINING
from seedscope.engine.studies.synthetic.phase_map import draw_map
from seedscope.engine.studies.synthetic.samples import draw_rows
from seedscope.engine.studies.train import TrainingSource, train, train_once, trained_entry

# The analyses that `seedscope demo` waits for before it serves; the rest is computed while pages are open already.
FIRST = ("match", "activity", "ablate")
# Without a server to go on: all but what takes minutes.
CORE = (*FIRST, "explain", "subspaces", "function", "shared_spans", "predictor")


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

        def train_named(name: str, model: LanguageModel) -> catalogue.EnsemblePlan:
            texts = tokenize(corpus.train, model, n_ctx=config.n_ctx)
            return train(folder, name, config.train, TrainingSource(model, config.hookpoint, texts), progress)

        for trained in _with_control(train_named, config.ensemble, model, control=control):
            plan = plan.with_ensemble(trained)
        catalogue.write(plan, folder)
        analyse(folder, only=only, loss_tokens=loss_tokens, texts=corpus.held_out, model=model, progress=progress)
        return _published(folder, progress)


def run_file(
    file: StudyFile, root: Path, *, device: str = "auto", progress: Progress | None = None, executor: Executor = HERE
) -> Path:
    """Everything that a study file asks for, computed where it is missing; returns the store's path.

    Groups of members to train and what `analyse` names are units of the `executor`; who opens one reads `file.executor`.

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
            model_path, settings = _training_source(file)
            model = model or load_model(model_path)
            tokens = tokens or tokenize(_training_texts(file, settings), model, n_ctx=settings.n_ctx)
            if isinstance(wanted, AnchorPlan):
                # Without a control: the SAE was trained on this model's weights.
                anchored = anchor_ensemble(
                    folder, wanted.name, wanted.path, wanted.hookpoint or file.hookpoint, model, tokens, settings.n_ctx,
                    progress, settings=wanted.settings, format=wanted.format, force=wanted.force, device=device,
                    executor=executor,
                )  # fmt: skip
                _enter(anchored, folder)
                continue
            if isinstance(wanted, ModelSeedsPlan):
                models = [model if each == model_path else load_model(each) for each in wanted.models]
                _enter(
                    train_on_models(
                        folder, wanted.name, wanted.config, models, _hookpoint_of(file, wanted), model, tokens,
                        progress,
                        device=device,
                    ), folder,
                )  # fmt: skip
                continue
            train_on = partial(
                _train_planned, folder, file, wanted, tokens, device=device, progress=progress, executor=executor
            )
            for trained in _with_control(train_on, wanted.name, model, control=file.control is not None):
                _enter(trained, folder)
        plan = catalogue.read(folder) or catalogue.StudyPlan(file.name)
        recorded = None
        if (named := file.recorded) is not None:
            recorded = describe(named.source, named.hookpoint, progress, before=plan.activations, **named.settings)
        plan = replace(
            plan, model=file.model, tokens=file.tokens, activations=recorded, theta=file.theta, epsilon=file.epsilon
        )
        catalogue.write(plan, folder)
        analyse(
            folder, only=file.analyses, loss_tokens=file.loss_tokens, model=model, device=device, progress=progress,
            executor=executor,
        )  # fmt: skip
        return _published(folder, progress)


def _enter(ensemble: catalogue.EnsemblePlan, folder: Path) -> None:
    """Put an ensemble into the catalogue of a study, which begins with it if need be."""
    plan = catalogue.read(folder) or catalogue.StudyPlan(folder.name)
    catalogue.write(plan.with_ensemble(ensemble), folder)


def _with_control(
    train_named: Callable[[str, LanguageModel], catalogue.EnsemblePlan],
    name: str,
    model: LanguageModel,
    *,
    control: bool,
) -> Iterator[catalogue.EnsemblePlan]:
    """An ensemble as soon as it is trained, and then its control: the same recipe on the model with random weights."""
    yield train_named(name, model)
    if control:
        yield replace(train_named(f"{name}-{catalogue.CONTROL}", randomised(model)), control_of=name)


def _train_planned(
    folder: Path,
    file: StudyFile,
    wanted: TrainPlan,
    tokens: TokenSet,
    name: str,
    model: LanguageModel,
    *,
    device: str,
    progress: Progress,
    executor: Executor,
) -> catalogue.EnsemblePlan:
    hookpoint = wanted.hookpoint or file.hookpoint
    if hookpoint is None:
        raise ValueError(f"ensemble {name} has no hook point to be trained at; name one in the study file")
    source = TrainingSource(model, hookpoint, tokens)
    return train(folder, name, wanted.config, source, progress, device=device, l0=wanted.l0, executor=executor)


def _hookpoint_of(file: StudyFile, wanted: TrainPlan | ModelSeedsPlan) -> str:
    hookpoint = wanted.hookpoint or file.hookpoint
    if hookpoint is None:
        raise ValueError(f"ensemble {wanted.name} has no hook point to be trained at; name one in the study file")
    return hookpoint


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
                samples = draw_rows(made.samples, made.recipe.n_tokens, stream=TRAINING)
                report(len(samples), len(samples))
            return samples

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
            wanted = made.cells(plan.theta, plan.epsilon)
            with progress.stage("map", "cells") as report:
                draw_map(folder / synthetic.CELLS, wanted, report=report)
            path = _published(folder, progress)
        return path


def _training_source(file: StudyFile) -> tuple[str, catalogue.Tokens]:
    """The model and the token settings that ensembles are trained with; raises ValueError for a file without them."""
    if file.model is None or file.tokens is None:
        raise ValueError(f"study file of {file.name} trains ensembles, expected both [model] and [tokens]; add them")
    return file.model, file.tokens


def _training_texts(file: StudyFile, tokens: catalogue.Tokens) -> Iterable[Document]:
    if file.train_source == (stdlib.SOURCE,):
        return stdlib.load_corpus().train
    texts = documents(file.train_source)
    return split(texts, "train") if tokens.part == "held-out" else texts


def _published(folder: Path, progress: Progress) -> Path:
    with progress.stage("publishing", "seeds") as report:
        return publish(folder, report=report)


def _import(root: Path, file: StudyFile, wanted: ImportPlan, progress: Progress) -> None:
    """Enrol an ensemble unless exactly these files were."""
    made_from = _files_digest(wanted)
    plan = catalogue.read(root / file.name)
    if plan and any(each.name == wanted.name and each.made_from == made_from for each in plan.ensembles):
        return
    with progress.stage(f"{wanted.name}: importing", "SAEs") as report:
        imported = enrol(
            root, file.name, wanted.name, wanted.paths, format=wanted.format, seeds=wanted.seeds,
            hookpoint=wanted.hookpoint or file.hookpoint, hookpoint_out=wanted.hookpoint_out,
            shared_start=wanted.shared_start, force=wanted.force, replaced=True, report=report,
        )  # fmt: skip
    _enter(replace(imported, made_from=made_from), root / file.name)


def _files_digest(wanted: ImportPlan) -> str:
    """16 hex digits over what an import reads: settings, names, sizes and times of the files."""
    files = []
    for path in wanted.paths:
        for each in located(path, "auto"):
            inside = [each.path] if each.path.is_file() else sorted(each.path.iterdir())
            files += [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in inside if p.is_file()]
    content = [files, wanted.format, wanted.seeds, wanted.hookpoint, wanted.shared_start, wanted.force]
    content += [wanted.hookpoint_out] if wanted.hookpoint_out else []
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def pool_study(
    study: Path,
    name: str,
    settings: PoolSettings | None = None,
    *,
    progress: Progress | None = None,
    executor: Executor = HERE,
) -> PoolRecord:
    """Pool an ensemble of a study where the study keeps it, and publish it; at once where exactly that is done already.

    Takes the study's lock. Raises ValueError as `pool_ensemble` does. A study without results is not published.
    """
    progress = progress or Progress()
    with only_writer(study):
        record = pool_ensemble(study, name, pool_folder(study, name), settings, progress=progress, executor=executor)
        store = published(study)
        if store is None:
            progress.say(f"{name}: published with the study's results: seedscope analyze {study.name}")
            return record
        if not _is_published(study / store.name, record):
            with progress.stage("publishing", "seeds") as report:
                publish(study, report=report)
        return record


def _is_published(store: Path, record: PoolRecord) -> bool:
    """Whether a store has this very pool."""
    try:
        with StoreReader(store) as reader:
            return record.digest in [row.sae_digest for row in reader.rows(FeaturePool, ensemble=record.ensemble)]
    except ValueError:  # of another version
        return False
