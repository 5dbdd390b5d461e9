"""Whole studies: ensembles trained or imported, measured and published.

`python -m engine.studies ROOT` builds the embedded study; the command line does so in a process of its own.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engine import catalogue, demo, sae
from engine.activations import LanguageModel, TokenSet, harvest, load_model, tokenize
from engine.analyse import analyse
from engine.config import StudyConfig, TrainConfig, as_parameters
from engine.enrol import enrol
from engine.files import only_writer
from engine.fused import named_device
from engine.importers import local, recognise
from engine.models import randomised
from engine.progress import Progress
from engine.publish import publish
from engine.sources import Document, documents, split
from engine.studyfile import ImportPlan, StudyFile, TrainPlan
from engine.train import train_ensemble
from engine.training.trace import Trace

# What `seedscope demo` waits for; the loss follows while people look.
CORE = ("match", "activity", "ablate", "explain", "subspaces")


def run_study(
    config: StudyConfig,
    corpus: demo.Corpus,
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
    tokens = catalogue.Tokens((demo.SOURCE,), n_ctx=config.n_ctx, remark=corpus.remark)
    plan = catalogue.Study(config.name, config.model, tokens, config.theta, config.epsilon, built_from)
    catalogue.require_name("ensemble", config.ensemble)
    folder = root / config.name
    with only_writer(folder):
        model = load_model(config.model)
        before = catalogue.read(folder)
        control = control or any(each.control_of == config.ensemble for each in (before.ensembles if before else ()))

        def made(name: str, model: LanguageModel) -> catalogue.Ensemble:
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
        model = None
        for wanted in file.ensembles:
            if isinstance(wanted, ImportPlan):
                _import(root, file, wanted, progress)
                continue
            model = model or load_model(file.model)
            made = partial(_train_as_asked, folder, file, wanted, device=device, progress=progress)
            for trained in _with_control(made, wanted.name, model, control=file.control is not None):
                catalogue.write((catalogue.read(folder) or catalogue.Study(file.name)).with_ensemble(trained), folder)
        settings = {"model": file.model, "tokens": file.tokens, "theta": file.theta, "epsilon": file.epsilon}
        catalogue.write(replace(catalogue.read(folder), **settings), folder)
        analyse(folder, model=model, device=device, progress=progress)
        return _published(folder, progress)


def _with_control(
    made: Callable[[str, LanguageModel], catalogue.Ensemble], name: str, model: LanguageModel, *, control: bool
) -> Iterator[catalogue.Ensemble]:
    """An ensemble as soon as it was `made`, and then its control: the same recipe on the model with random weights."""
    yield made(name, model)
    if control:
        yield replace(made(f"{name}-{catalogue.CONTROL}", randomised(model)), control_of=name)


def _train_as_asked(
    folder: Path,
    file: StudyFile,
    wanted: TrainPlan,
    name: str,
    model: LanguageModel,
    *,
    device: str,
    progress: Progress,
) -> catalogue.Ensemble:
    hookpoint, texts = wanted.hookpoint or file.hookpoint, _training_texts(file)
    return train(folder, name, wanted.config, hookpoint, model, texts, file.tokens.n_ctx, progress, device=device)


def _training_texts(file: StudyFile) -> Iterable[Document]:
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
    tokens = _enough(tokenize(texts, model, n_ctx=n_ctx), config.n_tokens)
    recipe = json.dumps([as_parameters(config), tokens.digest + model.digest, hookpoint], sort_keys=True)
    made_from = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    folder = study / "sae" / name / made_from
    ensemble = _trained_before(folder, config)
    if ensemble is None:
        place = hashlib.sha256(hookpoint.encode()).hexdigest()[:16]
        with progress.stage(f"training activations at {hookpoint}", "tokens") as report:
            rows = harvest(model, tokens, hookpoint, study / "scratch" / f"train-{place}", report=report)
        trace, checkpoints = Trace(), study / "scratch" / f"checkpoints-{name}-{made_from}"
        with progress.stage(f"{name}: {len(config.seeds)} SAEs in lockstep", "tokens") as report:
            ensemble = train_ensemble(
                rows, config, device=named_device(device), checkpoints=checkpoints, trace=trace, report=report
            )
        ensemble.save(folder, provenance={"model": model.digest, "hookpoint": hookpoint})
        trace.save(folder)
        (folder / "complete").touch()
        shutil.rmtree(checkpoints)
    library = f"seedscope {version('seedscope')}"
    members = [catalogue.Member(seed, ensemble.digest(i), None, library) for i, seed in enumerate(ensemble.seeds)]
    return catalogue.Ensemble(
        name=name,
        origin="trained",
        folder=str(folder.relative_to(study)),
        members=tuple(members),
        variant=config.variant,
        hookpoint=hookpoint,
        shared_start="yes" if "centroids" in config.uses and config.centroids == "shared" else "no",
        data_order=config.data_order,
        train_token_digest=tokens.digest,
        n_train_tokens=int(tokens.counted.sum()),
        train_tokens=config.n_tokens,
        batch=config.batch,
        lr=config.lr,
        made_from=made_from,
    )


def _trained_before(folder: Path, config: TrainConfig) -> sae.SAE | None:
    if not (folder / "complete").exists():
        return None
    try:
        return sae.load(folder, config.seeds)
    except FileNotFoundError:  # somebody tidied up: train again
        (folder / "complete").unlink()
        return None


def _enough(tokens: TokenSet, n_tokens: int) -> TokenSet:
    """A random choice of windows (seed 0) that holds about the tokens that training will see."""
    n_windows = int(np.ceil(1.02 * n_tokens / tokens.counted.sum() * len(tokens.ids)))  # windows differ in length
    if n_windows >= len(tokens.ids):
        return tokens
    chosen = np.sort(np.random.default_rng(0).permutation(len(tokens.ids))[:n_windows])
    return tokens.only(chosen)


def main() -> None:
    """Build the embedded study: `python -m engine.studies ROOT [--quiet] [--tokens N] [--control]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--tokens", type=int, default=demo.STUDY.train.n_tokens, help="training tokens per member")
    parser.add_argument("--control", action="store_true", help="the same on the model with random weights as well")
    args = parser.parse_args()
    progress = Progress(quiet=args.quiet)
    try:
        corpus = demo.load_corpus()
        config = replace(demo.STUDY, train=replace(demo.STUDY.train, n_tokens=args.tokens))
        if not args.quiet:
            print(f"corpus: {corpus.remark}", file=sys.stderr)
        made_from = demo.built_from(corpus) if config == demo.STUDY else f"{args.tokens} tokens"
        run_study(config, corpus, args.root, built_from=made_from, only=None if args.control else CORE, control=args.control,
                  progress=progress)  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"seedscope: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
