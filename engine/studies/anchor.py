"""One public SAE and no other seeds: SAEs of its width, sparsity and hook point are trained for it to be compared with.

It becomes the anchor of an ensemble whose other members were trained here. Recipe, data and length are not its own, so that a
feature without a counterpart may be missing for their sake; the comparisons among themselves show how much is to be had at all.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.documents import Document
from seedscope.engine.activations.harvest import LanguageModel, TokenSet, harvest, hook_module, tokenize, width
from seedscope.engine.activations.outliers import find_outliers
from seedscope.engine.contract.recipe import TrainConfig, Variant
from seedscope.engine.machine import named_device
from seedscope.engine.progress import Progress
from seedscope.engine.saes.encode import measure
from seedscope.engine.saes.folding import AGREES, fold, largest_difference
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.importers.hub import PREFIX
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.import_ensemble import as_sae, described, same_place
from seedscope.engine.studies.train import train

ANCHOR = 0  # its seed; comparisons have others, 1, 2, .. unless told
COMPARISONS = 7
TOKENS = 2_000_000  # that a comparison is trained on, or all that there are
SAMPLE = 16_384  # tokens that the anchor is tried on
PROVEN_ON = 256  # rows on which its two forms must agree
# The settings of a recipe that can be told: width, variant and sparsity are the anchor's.
TOLD = ("seeds", "n_tokens", "batch", "lr", "data_order", "warmup_frac", "decay_frac")


class Tried(NamedTuple):
    """What the anchor does on activations of the text that its comparisons are trained on."""

    l0: float
    ev: float
    n_tokens: int


def anchor_ensemble(
    study: Path,
    name: str,
    path: Path | str,
    hookpoint: str | None,
    model: LanguageModel,
    texts: Iterable[Document] | TokenSet,
    n_ctx: int | None,
    progress: Progress,
    *,
    settings: Mapping[str, Any] | None = None,
    format: str = "auto",
    force: bool = False,
    device: str = "cpu",
) -> catalogue.EnsemblePlan:
    """Import one SAE, train comparisons like it on a model's activations, and say of both what a catalogue says.

    `settings` are fields of TrainConfig, some of TOLD. The hook point is by default the one that the SAE's files name. What was
    trained before for the same SAE is loaded; a training that was stopped goes on. Raises ValueError, before anything is
    trained, for an SAE that cannot be folded into the form of those trained here, that reads another width or hook point,
    that no recipe here is like, and that explains nothing of these activations (the last two hook points unless `force`).
    """
    settings = dict(settings or {})
    if unknown := set(settings) - set(TOLD):
        raise ValueError(f"settings are {', '.join(sorted(unknown))}, expected some of {', '.join(TOLD)}")
    seeds = tuple(settings.pop("seeds", range(1, COMPARISONS + 1)))
    if ANCHOR in seeds or len(seeds) < 2:
        raise ValueError(f"seeds are {list(seeds)}, expected at least 2, without {ANCHOR}, which is the anchor's")
    given = replace(read(path, format), seed=ANCHOR)
    if str(path).startswith(PREFIX):  # not the folder of this machine that it was downloaded to
        given = replace(given, source=given.source | {"path": str(path)})
    hookpoint, remarks = _place(given, hookpoint, force=force)
    hook_module(model, hookpoint)
    tokens = texts if isinstance(texts, TokenSet) else tokenize(texts, model, n_ctx=n_ctx)
    if (found := width(model, tokens, hookpoint)) != given.d_in:
        raise ValueError(
            f"{given.source['path']} reads {given.d_in} numbers per token, {model.name} has {found} at {hookpoint}: it was trained "
            "on another model or hook point"
        )
    rows = _sampled(study, tokens, hookpoint, model, progress)
    variant = _variant(given)
    anchor, folded = _folded(given, rows)
    tried = _tried(anchor, rows, device)
    _require_sense(given, tried, hookpoint, force=force)
    n_tokens = settings.pop("n_tokens", None) or min(TOKENS, int(tokens.counted.sum()))
    by_l1 = "l1" in TrainConfig(variant=variant).uses  # the weight of a penalty, which is found for the anchor's L0
    k = {} if by_l1 else {"k": anchor.k or max(round(tried.l0), 1)}
    config = TrainConfig(d_sae=anchor.d_sae, seeds=seeds, n_tokens=n_tokens, variant=variant, **k, **settings)
    sparsity = f"the l1 that leads to L0 {tried.l0:.1f}" if by_l1 else f"k {config.k}"
    progress.say(
        f"{name}: the anchor has L0 {tried.l0:.1f} and EV {tried.ev:.3f} on {tried.n_tokens:,} tokens of the training text; "
        f"{len(seeds)} comparisons: {variant}, {sparsity}, {n_tokens:,} tokens each"
    )
    made = train(
        study, name, config, hookpoint, model, tokens, n_ctx, progress, beside=anchor.digest(0), device=device,
        l0=round(tried.l0, 2) if by_l1 else None,
    )  # fmt: skip
    anchor.save(
        study / made.folder,
        provenance={key: given.source[key] for key in ("model", "hookpoint") if key in given.source},
    )
    member = replace(described(given), digest=anchor.digest(0), remarks=("the anchor", *given.remarks, *folded))
    return replace(
        made,
        members=tuple(sorted((member, *made.members), key=lambda each: each.seed)),
        anchor=ANCHOR,
        remarks=(*_told(given, tried, config, model), *made.remarks, *remarks),
    )


def _place(given: Imported, told: str | None, *, force: bool) -> tuple[str, list[str]]:
    """The hook point, and what was forced."""
    named = given.source.get("hookpoint")
    if told and named and not same_place(told, named):
        differ = f"hook point {told} was given, {given.source['path']} says {named}"
        if not force:
            raise ValueError(f"{differ}; leave the hook point out, or give --force to go on and have it remembered")
        return told, [f"forced: {differ}"]
    if not (told or named):
        raise ValueError(
            f"{given.source['path']} does not say where it reads the model, expected a hook point; give one, such as --hookpoint "
            "blocks.6.hook_resid_post"
        )
    return told or named, []


def _variant(given: Imported) -> Variant:
    """The recipe of its family."""
    held = given.convention.architecture
    name = given.source.get("architecture", "").lower().replace("_", "").replace("-", "")
    if held == "jumprelu" and "batchtopk" in name:
        return "matryoshka" if "matryoshka" in name else "batchtopk"
    return held


def _folded(given: Imported, rows: np.ndarray) -> tuple[SAE, tuple[str, ...]]:
    """The anchor as those trained here are, float32, shown to be the same SAE in double precision."""
    whole = as_sae(given)
    try:
        found = fold(whole)
    except ValueError as error:
        raise ValueError(f"{given.source['path']}: {error}") from None
    apart = largest_difference(whole, found.sae, torch.from_numpy(rows[:PROVEN_ON]))
    if not apart < AGREES:
        raise ValueError(
            f"{given.source['path']}, folded into the form of SAEs trained here, gives other reconstructions than it does itself "
            f"(they differ by {apart:.1e} of the largest); its weights may be too large or not finite"
        )
    return found.sae.float(), found.remarks


def _sampled(study: Path, tokens: TokenSet, hookpoint: str, model: LanguageModel, progress: Progress) -> np.ndarray:
    """Activations (about SAMPLE, d_in) of the training text, float32, without those of outlying length."""
    sample = tokens.sample(SAMPLE)
    place = hashlib.sha256(f"anchor {hookpoint}".encode()).hexdigest()[:16]
    with progress.stage(f"a sample of activations at {hookpoint}", "tokens") as report:
        held = harvest(model, sample, hookpoint, study / "scratch" / place, dtype="float32", report=report)
    rows = np.array(held[: len(held)], np.float32)
    return np.delete(rows, find_outliers(rows), axis=0)


def _tried(anchor: SAE, rows: np.ndarray, device: str) -> Tried:
    found = measure(anchor, rows, device=named_device(device))
    return Tried(float(found.l0[0]), float(found.ev[0]), len(rows))


def _require_sense(given: Imported, tried: Tried, hookpoint: str, *, force: bool) -> None:
    """Raise ValueError for an SAE that is not one of these activations."""
    if tried.l0 == 0:
        raise ValueError(
            f"{given.source['path']} is never active on {tried.n_tokens:,} tokens at {hookpoint}, so it has no sparsity to train "
            "others by; name the model and hook point that it was trained on"
        )
    if not tried.ev > 0 and not force:
        raise ValueError(
            f"{given.source['path']} explains nothing of the activations at {hookpoint} (EV {tried.ev:.2f} on {tried.n_tokens:,} "
            "tokens): name the model and hook point that it was trained on, or give --force to go on"
        )


def _told(given: Imported, tried: Tried, config: TrainConfig, model: LanguageModel) -> list[str]:
    """What a reader of the ensemble's numbers should know."""
    on = f"{tried.l0:.1f} on {tried.n_tokens:,} tokens of the text"
    if given.convention.k:
        sparsity = f"k {config.k} (the anchor’s own)"
    elif "l1" in config.uses:
        sparsity = f"the l1 that leads to the anchor’s L0, {on}"
    else:
        sparsity = f"k {config.k} (the anchor’s L0, {on})"
    return [
        f"recipe differs: seed {ANCHOR} is {given.source['path']} ({given.library or 'library unknown'}), seeds "
        f"{config.seeds[0]} to {config.seeds[-1]} were trained here to compare it with, on other text, for another length and by "
        f"another recipe: of a feature of seed {ANCHOR}, p counts those; of theirs, one of the {len(config.seeds)} that p counts "
        f"is seed {ANCHOR}",
        f"comparisons: {config.variant} of the same width and hook point, {sparsity}, {config.n_tokens:,} tokens of "
        f"{model.name} each, data order {config.data_order}",
        f"the anchor explains {tried.ev:.3f} of the variance of {tried.n_tokens:,} tokens of the comparisons’ training text",
    ]
