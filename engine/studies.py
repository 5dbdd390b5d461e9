"""The pipeline on one screen: tokens -> activations -> ensemble -> matches -> rows -> published store.

`python -m engine.studies ROOT` builds the embedded study; the command line does so in a process of its own.
"""

import argparse
import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from engine import demo, sae, stability, store
from engine.ablate import AblationPass, MaskPass, Worth, headline, headline_masks
from engine.activations import LanguageModel, TokenSet, harvest, load_model, token_texts, tokenize
from engine.activity import ActivityPass
from engine.config import StudyConfig, as_parameters
from engine.fused import choice
from engine.match import NULL_KINDS, Matches, match_ensemble, null_cosines
from engine.progress import Progress
from engine.rows import Origin, add_member, add_null, add_pairs, add_row
from engine.schema import ANALYSES, SCHEMA_VERSION, Ablation, Document, Ensemble, Study, Token, name_problem
from engine.train import train_ensemble

BATCH_TOKENS = 2048  # of the measuring pass: small enough to stay near the caches


def run_study(
    config: StudyConfig, corpus: demo.Corpus, root: Path, *, built_from: str, progress: Progress | None = None
) -> Path:
    """Train, measure and publish one study under `root`; returns the store's path.

    Stopped at any moment, it resumes: the harvest at its last complete batch, training when all members were saved.
    Nothing is visible to readers before the last step.
    """
    for field, name in (("name", config.name), ("ensemble", config.ensemble)):
        if problem := name_problem(name):
            raise ValueError(f"{field} is {name!r}, {problem}")
    if len(config.train.seeds) < 2:
        raise ValueError(
            f"seeds are {list(config.train.seeds)}, expected at least 2: the stability of a single SAE is undefined"
        )
    progress = progress or Progress()
    folder = root / config.name
    with _only_builder(folder):
        model = load_model(config.model)
        tokens = tokenize(corpus.train, model, n_ctx=config.n_ctx)
        held_out = tokenize(corpus.held_out, model, n_ctx=config.n_ctx)
        tokens = _enough(tokens, config.train.n_tokens)
        scratch = folder / "scratch"
        with progress.stage("activations", "tokens") as report:
            rows = harvest(model, tokens, config.hookpoint, scratch / "train", report=report)
        sae_folder = folder / "sae" / config.ensemble / _recipe_digest(config, tokens.digest + model.digest)
        ensemble = _trained(config, rows, model.digest, sae_folder, progress)
        with progress.stage("held-out activations", "tokens") as report:
            held_rows = harvest(model, held_out, config.hookpoint, scratch / "held-out", report=report)
        with store.Writer(folder) as writer:
            _add_study(writer, config, corpus, model, held_out)
            _analyse(writer, config, ensemble, sae_folder.relative_to(folder), held_rows, tokens, held_out, progress)
            with progress.stage("publishing", "stores"):
                path = writer.publish(built_from=built_from)
        shutil.rmtree(scratch)
    return path


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Hold the study's lock; raises RuntimeError where another process is building it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is building {folder}; wait for it or stop it") from None
        yield


def _enough(tokens: TokenSet, n_tokens: int) -> TokenSet:
    """A random choice of windows (seed 0) that holds about the tokens that training will see."""
    n_windows = int(np.ceil(1.02 * n_tokens / tokens.counted.sum() * len(tokens.ids)))  # windows differ in length
    if n_windows >= len(tokens.ids):
        return tokens
    chosen = np.sort(np.random.default_rng(0).permutation(len(tokens.ids))[:n_windows])
    return tokens._replace(ids=tokens.ids[chosen], document=tokens.document[chosen], start=tokens.start[chosen])


def _recipe_digest(config: StudyConfig, data_digest: str) -> str:
    recipe = json.dumps([as_parameters(config.train), data_digest, config.hookpoint], sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _trained(config: StudyConfig, rows: np.ndarray, model_digest: str, folder: Path, progress: Progress) -> sae.SAE:
    """Load the members if exactly these were trained before, else train and save them."""
    with progress.stage(f"{len(config.train.seeds)} SAEs in lockstep", "tokens") as report:
        if (folder / "complete").exists():
            try:
                return sae.load(folder, config.train.seeds)
            except FileNotFoundError:  # somebody tidied up: train again
                (folder / "complete").unlink()
        ensemble = train_ensemble(rows, config.train, report=report)
        ensemble.save(folder, provenance={"model": model_digest, "hookpoint": config.hookpoint})
        (folder / "complete").touch()
    return ensemble


def _add_study(
    writer: store.Writer,
    config: StudyConfig,
    corpus: demo.Corpus,
    model: LanguageModel,
    held_out: TokenSet,
) -> None:
    row = Study(
        study=config.name,
        schema_version=SCHEMA_VERSION,
        seedscope_version=version("seedscope"),
        model=model.name,
        model_digest=model.digest,
        causal=model.causal,
        n_ctx=config.n_ctx,
        token_policy="BOS and padding excluded",
        eval_token_digest=held_out.digest,
        n_eval_tokens=int(held_out.counted.sum()),
        corpus_remark=corpus.remark,
        device="cpu",
        precision="float32 (activations kept as float16)",
    )
    add_row(writer, row)
    texts = token_texts(model)
    writer.add(Token, {"id": np.arange(len(texts)), "text": texts})
    writer.add(Document, {"id": np.arange(len(held_out.names)), "name": held_out.names})


@torch.no_grad()
def _analyse(
    writer: store.Writer,
    config: StudyConfig,
    ensemble: sae.SAE,
    sae_folder: Path,
    rows: np.ndarray,
    tokens: TokenSet,
    held_out: TokenSet,
    progress: Progress,
) -> None:
    """Measure one ensemble on the held-out activations and add all its rows."""
    name, seeds = config.ensemble, ensemble.seeds
    activity_pass, ablation_pass = ActivityPass(ensemble), AblationPass(ensemble)
    positions = np.flatnonzero(held_out.counted)
    with progress.stage("activity and ablation", "tokens") as report:
        for first in range(0, len(rows), BATCH_TOKENS):
            batch = torch.from_numpy(rows[first : first + BATCH_TOKENS].astype(np.float32))
            codes = ensemble.encode(batch)
            activity_pass.add(codes, positions[first : first + BATCH_TOKENS])
            ablation_pass.add(batch, codes)
            report(first + len(batch), len(rows))
    with progress.stage("contexts", "members") as report:
        activities = []
        for member in range(ensemble.n_members):
            activities.append(activity_pass.finish(member, held_out))
            report(member + 1, ensemble.n_members)
    directed = sae.directed(ensemble.W_dec).numpy()
    norms = np.where(directed, ensemble.W_dec.norm(dim=-1).numpy(), 0)
    dead = np.stack([a.n_active == 0 for a in activities]) | ~directed
    progress.say(f"best cosines: {choice(torch.device('cpu'))[1]}")
    with progress.stage("matching", "pairs") as report:
        matches = match_ensemble(ensemble, ~dead, report=report)
    add_pairs(writer, name, seeds, matches, dead, directed)
    with progress.stage("chance", "nulls") as report:
        for done, kind in enumerate(NULL_KINDS):
            add_null(writer, name, seeds, kind, null_cosines(ensemble, kind))
            report(done + 1, len(NULL_KINDS))
    n_comparisons = ensemble.n_members - 1
    n_matched = stability.count_matches(matches.cosine, config.theta)
    bucket = stability.buckets(n_matched, n_comparisons, dead, config.epsilon)
    digests = [ensemble.digest(member) for member in range(ensemble.n_members)]
    if not ablation_pass.pairwise:
        masks = [headline_masks(mine, activity.n_active) for mine, activity in zip(bucket, activities, strict=True)]
        mask_pass = MaskPass(ensemble, masks)
        with progress.stage("masks", "tokens") as report:
            for first in range(0, len(rows), BATCH_TOKENS):
                batch = torch.from_numpy(rows[first : first + BATCH_TOKENS].astype(np.float32))
                mask_pass.add(batch, ensemble.encode(batch))
                report(first + len(batch), len(rows))
    with progress.stage("features", "members") as report:
        for member, seed in enumerate(seeds):
            worth = ablation_pass.finish(member)
            mine = Matches(*(array[member] for array in matches))
            add_member(
                writer,
                name,
                seed,
                digests[member],
                norms[member],
                mine,
                activity=activities[member],
                worth=Worth(worth.explained_variance(), worth.marginal_worth()),
                origin=Origin(library="seedscope"),
            )
            answers = worth if ablation_pass.pairwise else mask_pass.finish(member, worth)
            for masking in headline(answers, bucket[member], activities[member].n_active):
                add_row(writer, Ablation(name, seed, *masking))
            report(member + 1, len(seeds))
    row = Ensemble(
        ensemble=name,
        origin="trained",
        hookpoint=config.hookpoint,
        variant="topk",
        convention=json.dumps(ensemble.convention.as_json()),
        d_in=ensemble.d_in,
        d_sae=ensemble.d_sae,
        k=ensemble.k,
        n_members=ensemble.n_members,
        n_comparisons=n_comparisons,
        shared_start="no",
        data_order=config.train.data_order,
        train_token_digest=tokens.digest,
        n_train_tokens=int(tokens.counted.sum()),
        train_tokens=config.train.n_tokens,
        batch=config.train.batch,
        lr=config.train.lr,
        rule="argmax, signed cosine, ties to the lowest index",
        theta=config.theta,
        epsilon=config.epsilon,
        digest=_ensemble_digest(seeds, digests, config),
        folder=str(sae_folder),
        computed=list(ANALYSES),
        remarks=[],
    )
    add_row(writer, row)


def _ensemble_digest(seeds: tuple[int, ...], digests: list[str], config: StudyConfig) -> str:
    """A permalink's v: the SAEs and the matching settings, nothing else, so that new analyses leave links fresh."""
    content = [sorted(zip(seeds, digests, strict=True)), "argmax", "signed", config.theta, config.epsilon]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def main() -> None:
    """Build the embedded study: `python -m engine.studies ROOT [--quiet] [--tokens N]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--tokens", type=int, default=demo.STUDY.train.n_tokens, help="training tokens per member")
    args = parser.parse_args()
    progress = Progress(quiet=args.quiet)
    try:
        corpus = demo.load_corpus()
        config = replace(demo.STUDY, train=replace(demo.STUDY.train, n_tokens=args.tokens))
        if not args.quiet:
            print(f"corpus: {corpus.remark}", file=sys.stderr)
        made_from = demo.built_from(corpus) if config == demo.STUDY else f"{args.tokens} tokens"
        run_study(config, corpus, args.root, built_from=made_from, progress=progress)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"seedscope: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
