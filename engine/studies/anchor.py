"""An ensemble around one public SAE that has no other seeds: comparisons of its width, sparsity and hook point are trained.

The public SAE is the anchor, the comparisons are the other members. They differ from the anchor in recipe, data and training
length, so a feature of the anchor may lack a counterpart for that reason alone; how well the comparisons agree with each other
shows the agreement that is possible at all.
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
from seedscope.engine.contract.places import same_place
from seedscope.engine.contract.recipe import TrainConfig, Variant
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.machine import named_device
from seedscope.engine.progress import Progress
from seedscope.engine.saes.encode import measure
from seedscope.engine.saes.folding import AGREES, fold, largest_difference
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.importers.hub import PREFIX
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.import_ensemble import as_sae, described
from seedscope.engine.studies.train import TrainingSource, train

ANCHOR = 0  # its seed; those of comparisons are 1, 2, .. unless given
COMPARISONS = 7
TOKENS = 2_000_000  # that a comparison is trained on unless given; all tokens where there are fewer
SAMPLE = 16_384  # tokens that the anchor is tried on
PROVEN_ON = 256  # rows on which its two forms must agree
# {architecture of a folded SAE: recipe of its comparisons}.
VARIANT_OF: dict[str, Variant] = {"topk": "topk", "jumprelu": "jumprelu", "relu": "relu", "gated": "gated"}
# Fields of a recipe that can be set: width, variant and sparsity are the anchor's.
SETTINGS = ("seeds", "n_tokens", "batch", "lr", "data_order", "warmup_frac", "decay_frac")


class AnchorMeasures(NamedTuple):
    """The anchor measured on activations of the text that its comparisons are trained on."""

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
    executor: Executor = HERE,
) -> catalogue.EnsemblePlan:
    """Import one SAE, train comparisons like it on a model's activations, and say of both what a catalogue says.

    `settings` are fields of TrainConfig, some of SETTINGS. The hook point is by default the one that the SAE's files name. What was
    trained before for the same SAE is loaded; a training that was stopped goes on. Raises ValueError, before anything is
    trained, for an SAE that cannot be folded into the form of those trained here, that reads another width or hook point,
    that no recipe here is like, and that explains nothing of these activations (the last two hook points unless `force`).
    """
    settings = dict(settings or {})
    if unknown := set(settings) - set(SETTINGS):
        raise ValueError(f"settings are {', '.join(sorted(unknown))}, expected some of {', '.join(SETTINGS)}")
    seeds = tuple(settings.pop("seeds", range(1, COMPARISONS + 1)))
    if ANCHOR in seeds or len(seeds) < 2:
        raise ValueError(f"seeds are {list(seeds)}, expected at least 2, without {ANCHOR}, which is the anchor's")
    imported = replace(read(path, format), seed=ANCHOR)
    if str(path).startswith(PREFIX):  # not the folder of this machine that it was downloaded to
        imported = replace(imported, source=imported.source | {"path": str(path)})
    if imported.convention.transcoder:
        raise ValueError(
            f"{imported.source['path']} is a transcoder, and comparisons that are trained here give back what they read; import "
            "transcoders of other seeds beside it: seedscope import"
        )
    hookpoint, remarks = _hookpoint(imported, hookpoint, force=force)
    hook_module(model, hookpoint)
    tokens = texts if isinstance(texts, TokenSet) else tokenize(texts, model, n_ctx=n_ctx)
    if (model_width := width(model, tokens, hookpoint)) != imported.d_in:
        raise ValueError(
            f"{imported.source['path']} reads {imported.d_in} numbers per token, {model.name} has {model_width} at "
            f"{hookpoint}: it was trained on another model or hook point"
        )
    rows = _sampled(study, tokens, hookpoint, model, progress)
    anchor, folded = _folded(imported, rows)
    variant = _variant(imported)
    measured = _measure(anchor, rows, device)
    _require_sense(imported, measured, hookpoint, force=force)
    n_tokens = settings.pop("n_tokens", None) or min(TOKENS, int(tokens.counted.sum()))
    by_l1 = "l1" in TrainConfig(variant=variant).uses  # the weight of a penalty, which is found for the anchor's L0
    if not by_l1:
        settings["k"] = anchor.k or max(round(measured.l0), 1)
    config = TrainConfig(d_sae=anchor.d_sae, seeds=seeds, n_tokens=n_tokens, variant=variant, **settings)
    sparsity = f"the l1 that leads to L0 {measured.l0:.1f}" if by_l1 else f"k {config.k}"
    progress.say(
        f"{name}: the anchor has L0 {measured.l0:.1f} and EV {measured.ev:.3f} on {measured.n_tokens:,} tokens of the training "
        f"text; {len(seeds)} comparisons: {variant}, {sparsity}, {n_tokens:,} tokens each"
    )
    made = train(
        study, name, config, TrainingSource(model, hookpoint, tokens), progress, beside=anchor.digest(0), device=device,
        l0=round(measured.l0, 2) if by_l1 else None, executor=executor,
    )  # fmt: skip
    anchor.save(
        study / made.folder,
        provenance={key: imported.source[key] for key in ("model", "hookpoint") if key in imported.source},
    )
    member = replace(described(imported), digest=anchor.digest(0), remarks=("the anchor", *imported.remarks, *folded))
    return replace(
        made,
        members=tuple(sorted((member, *made.members), key=lambda each: each.seed)),
        anchor=ANCHOR,
        remarks=(*_remarks(imported, measured, config, model), *made.remarks, *remarks),
    )


def _hookpoint(imported: Imported, given: str | None, *, force: bool) -> tuple[str, list[str]]:
    """The hook point, the given one before the one that the files name, and a remark where the two differ."""
    named = imported.source.get("hookpoint")
    if given and named and not same_place(given, named):
        differ = f"hook point {given} was given, {imported.source['path']} says {named}"
        if not force:
            raise ValueError(f"{differ}; leave the hook point out, or give --force to go on and have it remembered")
        return given, [f"forced: {differ}"]
    hookpoint = given or named
    if not hookpoint:
        raise ValueError(
            f"{imported.source['path']} does not say where it reads the model, expected a hook point; give one, such as "
            "--hookpoint blocks.6.hook_resid_post"
        )
    return hookpoint, []


def _variant(imported: Imported) -> Variant:
    """The recipe of its family, of an SAE that can be folded into the form of those trained here."""
    name = imported.source.get("architecture", "").lower().replace("_", "").replace("-", "")
    if imported.convention.architecture == "jumprelu" and "batchtopk" in name:
        return "matryoshka" if "matryoshka" in name else "batchtopk"
    return VARIANT_OF[imported.convention.architecture]


def _folded(imported: Imported, rows: np.ndarray) -> tuple[SAE, tuple[str, ...]]:
    """The anchor as those trained here are, float32, shown to be the same SAE in double precision."""
    whole = as_sae(imported)
    try:
        folded = fold(whole)
    except ValueError as error:
        raise ValueError(f"{imported.source['path']}: {error}") from None
    apart = largest_difference(whole, folded.sae, torch.from_numpy(rows[:PROVEN_ON]))
    if not apart < AGREES:
        raise ValueError(
            f"{imported.source['path']}, folded into the form of SAEs trained here, gives other reconstructions than it does "
            f"itself (they differ by {apart:.1e} of the largest); its weights may be too large or not finite"
        )
    return folded.sae.float(), folded.remarks


def _sampled(study: Path, tokens: TokenSet, hookpoint: str, model: LanguageModel, progress: Progress) -> np.ndarray:
    """Activations (about SAMPLE, d_in) of the training text, float32, without those of outlying length."""
    sample = tokens.sample(SAMPLE)
    folder = hashlib.sha256(f"anchor {hookpoint}".encode()).hexdigest()[:16]
    with progress.stage(f"a sample of activations at {hookpoint}", "tokens") as report:
        activations = harvest(model, sample, hookpoint, study / "scratch" / folder, dtype="float32", report=report)
    rows = np.array(activations[: len(activations)], np.float32)
    return np.delete(rows, find_outliers(rows), axis=0)


def _measure(anchor: SAE, rows: np.ndarray, device: str) -> AnchorMeasures:
    measures = measure(anchor, rows, device=named_device(device))
    return AnchorMeasures(float(measures.l0[0]), float(measures.ev[0]), len(rows))


def _require_sense(imported: Imported, measured: AnchorMeasures, hookpoint: str, *, force: bool) -> None:
    """Raise ValueError for an SAE that is not one of these activations."""
    path = imported.source["path"]
    if measured.l0 == 0:
        raise ValueError(
            f"{path} is never active on {measured.n_tokens:,} tokens at {hookpoint}, so it has no sparsity to train "
            "others by; name the model and hook point that it was trained on"
        )
    if not measured.ev > 0 and not force:
        raise ValueError(
            f"{path} explains nothing of the activations at {hookpoint} (EV {measured.ev:.2f} on {measured.n_tokens:,} "
            "tokens): name the model and hook point that it was trained on, or give --force to go on"
        )


def _remarks(imported: Imported, measured: AnchorMeasures, config: TrainConfig, model: LanguageModel) -> list[str]:
    """What a reader of the ensemble's numbers should know."""
    on = f"{measured.l0:.1f} on {measured.n_tokens:,} tokens of the text"
    if imported.convention.k:
        sparsity = f"k {config.k} (the anchor’s own)"
    elif "l1" in config.uses:
        sparsity = f"the l1 that leads to the anchor’s L0, {on}"
    else:
        sparsity = f"k {config.k} (the anchor’s L0, {on})"
    return [
        f"recipe differs: seed {ANCHOR} is {imported.source['path']} ({imported.library or 'library unknown'}), seeds "
        f"{config.seeds[0]} to {config.seeds[-1]} were trained here to compare it with, on other text, for another length and by "
        f"another recipe: of a feature of seed {ANCHOR}, p counts those; of theirs, one of the {len(config.seeds)} that p counts "
        f"is seed {ANCHOR}",
        f"comparisons: {config.variant} of the same width and hook point, {sparsity}, {config.n_tokens:,} tokens of "
        f"{model.name} each, data order {config.data_order}",
        f"the anchor explains {measured.ev:.3f} of the variance of {measured.n_tokens:,} tokens of the comparisons’ training text",
    ]
