"""Trains one SAE per language model, all in the first model's space: how much another seed of the model itself changes features."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from seedscope.engine.activations.harvest import LanguageModel, TokenSet, harvest
from seedscope.engine.activations.shards import Shards
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.contract.sources import MODELS
from seedscope.engine.demo import stdlib, train_model
from seedscope.engine.geometry.procrustes import Alignment, align
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.studies.train import enough, train_once, trained_entry
from seedscope.engine.training.batches import Rows

AT_ONCE = 65_536  # rows that are turned at once
OWN_MODELS = "each member reads a language model of its own, and a study measures on one"  # why there is no activity


def train_on_models(
    study: Path,
    name: str,
    config: TrainConfig,
    models: Sequence[LanguageModel],
    hookpoint: str,
    reader: LanguageModel,
    tokens: TokenSet,
    progress: Progress,
    *,
    device: str = "cpu",
) -> catalogue.EnsemblePlan:
    """Train an ensemble whose member m reads model m's activations, laid over the first model's by orthogonal Procrustes.

    All members see the same tokens, made by `reader`'s tokenizer, in the same order. `config` has a data sample
    for each: member m's holds what model m made of these tokens. The alignment's R2, on tokens left out of the fit, stands in
    the remarks. Such an ensemble has no hook point for a study to measure at: its activity is unknown. Raises ValueError for
    models whose tokenizers or widths differ.
    """
    texts, digests = enough(tokens, config.n_tokens), [model.digest for model in models]
    _require_one_tokenizer((reader, *models))
    about = [as_parameters(config), texts.digest, digests, hookpoint]
    made_from = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    record = study / "sae" / name / f"{made_from}-alignment.json"

    def rows() -> Rows:
        harvested = [_harvested(study, model, texts, hookpoint, progress) for model in models]
        aligned, found = [harvested[0]], []
        with progress.stage(f"{name}: laying models over the first", "models") as report:
            for done, (model, each) in enumerate(zip(models[1:], harvested[1:], strict=True)):
                alignment = align(each, harvested[0])
                found.append({"model": model.digest, "r2": alignment.r2, "r2_shuffled": alignment.r2_shuffled})
                aligned.append(_turned(each, alignment, study / "scratch" / f"aligned-{model.digest}.npy"))
                report(done + 1, len(models) - 1)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found))
        return Shards(aligned)

    provenance = {"hookpoint": hookpoint}
    ensemble = train_once(study, name, config, made_from, rows, provenance, progress, device=device)
    if not record.exists():  # the members were there and somebody tidied up
        rows()
    entry = trained_entry(
        study, name, config, made_from, ensemble, hookpoint=None, train_token_digest=texts.digest,
        n_train_tokens=int(texts.counted.sum()),
    )  # fmt: skip
    recipe = (entry.recipe or {}) | {MODELS: digests, "read_at": hookpoint}
    return replace(entry, recipe=recipe, remarks=(_remark(json.loads(record.read_text()), hookpoint),))


def trained_models(folder: Path, n_models: int, n_tokens: int, progress: Progress) -> list[Path]:
    """Language models of seeds 0 .. n_models - 1, of the embedded one's size, tokenizer and text, on about `n_tokens` each.

    The embedded model, which was trained for longer, is none of them. A model that is there is not trained again.
    """
    logging.disable_progress_bar()  # of saving: the training has one
    settings = train_model.ModelSettings(window=256, batch=8)
    settings = replace(settings, steps=max(n_tokens // (settings.window * settings.batch), 1))
    texts = [text for _, text in stdlib.load_corpus().train]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stdlib.MODEL_DIR)
    places = []
    for seed in range(n_models):
        place = folder / f"{settings.steps}-steps-seed-{seed}"
        places.append(place)
        if (place / "config.json").exists():
            continue
        unfinished = place.with_name(f"{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with progress.stage(f"language model of seed {seed}", "tokens") as report, torch.enable_grad():
            loss = train_model.train(texts, replace(settings, seed=seed), tokenizer, unfinished, report=report)
        progress.say(f"language model of seed {seed}: last training loss {loss:.2f} nats per token")
        unfinished.replace(place)
    return places


def _remark(found: list[dict], hookpoint: str) -> str:
    r2 = ", ".join(f"{each['r2']:.3f}" for each in found)
    chance = max(each["r2_shuffled"] for each in found)
    return (
        f"{OWN_MODELS}; activations at {hookpoint} were laid over the first model's by orthogonal Procrustes (one rotation, one "
        f"scale), which explains R2 = {r2} of its variance on tokens left out of the fit (fitted to other tokens: {chance:.3f})"
    )


def _require_one_tokenizer(models: Sequence[LanguageModel]) -> None:
    vocabularies = [model.tokenizer.get_vocab() if model.tokenizer else None for model in models]
    for model, vocabulary in zip(models[1:], vocabularies[1:], strict=True):
        if vocabulary != vocabularies[0]:
            raise ValueError(
                f"the tokenizers of {models[0].name} and {model.name} differ, expected one: activations are compared token by "
                "token; take models that were trained with the same tokenizer"
            )


def _harvested(study: Path, model: LanguageModel, tokens: TokenSet, hookpoint: str, progress: Progress) -> Rows:
    with progress.stage(f"activations of {Path(model.name).name} at {hookpoint}", "tokens") as report:
        return harvest(model, tokens, hookpoint, study / "scratch" / f"model-{model.digest}", report=report)


def _turned(rows: Rows, alignment: Alignment, path: Path) -> np.ndarray:
    """Aligned rows on disk, in float16 as harvested ones are."""
    turned = np.lib.format.open_memmap(path, "w+", np.float16, rows.shape)
    for begin in range(0, len(rows), AT_ONCE):
        some = torch.from_numpy(np.array(rows[begin : begin + AT_ONCE])).float()
        turned[begin : begin + AT_ONCE] = alignment.apply(some).half().numpy()
    turned.flush()
    return np.load(path, mmap_mode="r")
