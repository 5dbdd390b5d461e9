"""What a study's catalogue asks for, computed where it is missing: activity, matching and worth of every ensemble.

Every analysis leaves a part on disk as soon as it is done, so a stopped run goes on behind it, and a study that gains an
ensemble computes that one alone. `publish` turns the parts into a store.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import catalogue, demo, sae, stability
from engine.ablate import AblationPass, MaskPass, headline, headline_masks
from engine.activations import (
    BeyondRangeError,
    LanguageModel,
    TokenSet,
    harvest,
    load_model,
    token_texts,
    tokenize,
    width,
)
from engine.activity import ActivityPass
from engine.files import write_whole
from engine.fused import choice
from engine.match import NULL_KINDS, affordable, match_ensemble, null_cosines
from engine.parts import Part, Parts
from engine.progress import Progress
from engine.sae import SAE, Codes
from engine.schema import ANALYSES
from engine.sources import Document, documents, split
from engine.triggers import Vocabulary

BATCH_TOKENS = 2048  # of the measuring pass: small enough to stay near the caches
BATCH_NUMBERS = 2**26  # activations of a batch, all members together, before they are packed: 256 MiB
EVALUATION = "evaluation.json"
VERSION = 1  # of what a part holds; older ones are computed again


@dataclass(frozen=True)
class Evaluation:
    """What activity was measured on: the model, and the tokens as they are shown."""

    model: str
    model_digest: str
    causal: bool
    n_ctx: int
    policy: str
    token_digest: str
    n_tokens: int
    remark: str
    texts: tuple[str, ...]  # of every token id
    documents: tuple[str, ...]


def read_evaluation(study: Path) -> Evaluation | None:
    """The evaluation that the parts of a study were measured on, None where there was none."""
    try:
        held = json.loads((study / "parts" / EVALUATION).read_text())
    except FileNotFoundError:
        return None
    return Evaluation(**held | {name: tuple(held[name]) for name in ("texts", "documents")})


@torch.no_grad()
def analyse(
    study: Path,
    *,
    only: Sequence[str] = ANALYSES,
    one_to_one: bool | None = None,
    device: str = "auto",
    texts: Iterable[Document] | None = None,
    model: LanguageModel | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute the analyses named in `only`, and what they need, for every ensemble of a study, where they are missing.

    `one_to_one` asks for one-to-one matching of all pairs, by default where it is cheap. `texts` and `model` stand for what
    the catalogue names. Without a model activity and worth are left out, and that is said. Raises ValueError for a study
    without a catalogue, a model or tokens that cannot be read, and a hook point that the model does not have.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    if unknown := set(only) - set(ANALYSES):
        raise ValueError(f"analyses are {', '.join(sorted(unknown))}, expected some of {', '.join(ANALYSES)}")
    progress = progress or Progress()
    wanted = {"match", *only} | ({"activity"} if "ablate" in only else set())
    bench = None
    if wanted & {"activity", "ablate"}:
        bench = _bench(study, plan, model, texts, device, progress)
    on = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    progress.say(f"best cosines: {choice(on)[1]}")
    for ensemble in plan.ensembles:
        _analyse(study, plan, ensemble, bench if ensemble.hookpoint else None, wanted, one_to_one, on, progress)
    shutil.rmtree(study / "scratch", ignore_errors=True)


class _Bench:
    """A model with its evaluation tokens, and activations of it at any hook point."""

    def __init__(self, model: LanguageModel, tokens: TokenSet, scratch: Path, progress: Progress) -> None:
        self.model, self.tokens = model, tokens
        self.digest, self.n_tokens = tokens.digest, int(tokens.counted.sum())
        self._scratch, self._progress = scratch, progress
        self.texts = token_texts(model)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the classes of triggers need to know of the tokens."""
        return Vocabulary(self.texts, self.tokens.ids[self.tokens.counted])

    def rows(self, hookpoint: str, d_in: int):
        """(tokens, d_in) activations, from disk; in float32 where float16 cannot hold them."""
        found = width(self.model, self.tokens, hookpoint)
        if found != d_in:
            raise ValueError(
                f"at {hookpoint} {self.model.name} has {found} numbers per token, the SAEs read {d_in}: they were trained on "
                "another model or hook point"
            )
        folder = self._scratch / hashlib.sha256(hookpoint.encode()).hexdigest()[:16]
        for dtype in ("float16", "float32"):
            try:
                with self._progress.stage(f"activations at {hookpoint}", "tokens") as report:
                    rows = harvest(self.model, self.tokens, hookpoint, folder, dtype=dtype, report=report)
                break
            except BeyondRangeError as error:
                if dtype == "float32":
                    raise
                self._progress.say(f"{error}: taken in float32")
        return rows


def _bench(
    study: Path,
    plan: catalogue.Study,
    model: LanguageModel | None,
    texts: Iterable[Document] | None,
    device: str,
    progress: Progress,
) -> _Bench | None:
    """Model and tokens as the catalogue names them; None, with a word, where it names none."""
    if plan.model is None or (plan.tokens is None and texts is None):
        lacks = " and ".join(name for name, held in (("--model", plan.model), ("--tokens", plan.tokens)) if not held)
        progress.say(f"activity, ablate: left out, no {lacks} was given for {plan.name}")
        return None
    settings = plan.tokens or catalogue.Tokens(())
    model = model or load_model(plan.model)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        model.network.to("cuda")
    for ensemble in plan.ensembles:
        if ensemble.hookpoint:
            _require_place(model, ensemble)
        else:
            progress.say(f"{ensemble.name}: no hook point is known, so no activity; give one with --hookpoint")
    with progress.stage("tokenizing", "tokens") as report:
        found = tokenize(
            documents_of(settings) if texts is None else texts, model, n_ctx=settings.n_ctx, bos=settings.bos,
            n_tokens=settings.n_eval,
        )  # fmt: skip
        n_tokens = int(found.counted.sum())
        report(n_tokens, n_tokens)
    found = found._replace(names=short_names(found.names))
    bench = _Bench(model, found, study / "scratch", progress)
    record = Evaluation(
        model=model.name,
        model_digest=model.digest,
        causal=model.causal,
        n_ctx=found.ids.shape[1],
        policy=found.policy,
        token_digest=bench.digest,
        n_tokens=bench.n_tokens,
        remark=settings.remark or ", ".join(settings.source),
        texts=tuple(bench.texts),
        documents=tuple(found.names),
    )
    (study / "parts").mkdir(parents=True, exist_ok=True)
    write_whole(study / "parts" / EVALUATION, json.dumps(asdict(record)))
    return bench


def _require_place(model: LanguageModel, ensemble: catalogue.Ensemble) -> None:
    from engine.activations import hook_module

    try:
        hook_module(model, ensemble.hookpoint)
    except ValueError as error:
        raise ValueError(f"ensemble {ensemble.name}: {error}") from None


def documents_of(tokens: catalogue.Tokens) -> Iterator[Document]:
    """The documents that a catalogue's evaluation tokens name."""
    if tokens.source == (demo.SOURCE,):
        return iter(demo.load_corpus().held_out)
    found = documents(tokens.source)
    return split(found, tokens.part) if tokens.part != "all" else found


def short_names(names: list[str]) -> list[str]:
    """Names of documents without the folder that all of them share: where a corpus lies says nothing about it."""
    if not names or not all(name.startswith("/") for name in names):
        return names
    shared = names[0].rsplit("/", 1)[0] + "/"
    while not all(name.startswith(shared) for name in names):
        shared = shared.rstrip("/").rsplit("/", 1)[0] + "/"
    return [name.removeprefix(shared) for name in names]


def _analyse(
    study: Path,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    bench: _Bench | None,
    wanted: set[str],
    one_to_one: bool | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """All wanted parts of one ensemble: one pass over the tokens for activity and worth, then matching, then masks."""
    parts, name = Parts(study, ensemble.name), ensemble.name
    saes = [member.digest for member in ensemble.members]
    members = sae.load(study / ensemble.folder, ensemble.seeds)
    measured = _measured(saes, ensemble, bench) if bench else {}
    known = measured or {"version": VERSION, "saes": saes, "hookpoint": ensemble.hookpoint}
    activity = parts.find("activity", **known)
    new_activity = bench is not None and activity is None
    live = None if new_activity else _live(activity, ensemble)
    match = None if new_activity else _found_match(parts, saes, live, one_to_one, members)
    judged = {"theta": plan.theta, "epsilon": plan.epsilon}
    worth = parts.find("ablate", **measured, **judged) if bench and not new_activity else None
    new_worth = bench is not None and "ablate" in wanted and worth is None
    activity_pass = ActivityPass(members) if new_activity else None
    ablation_pass = AblationPass(members) if new_worth else None
    rows = bench.rows(ensemble.hookpoint, members.d_in) if new_activity or new_worth else None
    if rows is not None:
        positions = np.flatnonzero(bench.tokens.counted)
        with progress.stage(f"{name}: activity{' and ablation' if new_worth else ''}", "tokens") as report:
            for first, batch, codes in _batches(members, rows, device):
                if activity_pass:
                    activity_pass.add(codes, positions[first : first + len(batch)])
                if ablation_pass:
                    ablation_pass.add(batch, codes)
                report(first + len(batch), len(rows))
    if activity_pass:
        with (
            progress.stage(f"{name}: contexts", "members") as report,
            parts.write("activity", measured) as put,
        ):
            for index, seed in enumerate(ensemble.seeds):
                put(seed, _flat(activity_pass.finish(index, bench.tokens, vocabulary=bench.vocabulary)))
                report(index + 1, members.n_members)
        activity = parts.find("activity", **measured)
        live = _live(activity, ensemble)
        match = _found_match(parts, saes, live, one_to_one, members)
    if match is None:
        match = _match(parts, ensemble, members, saes, live, one_to_one, device, progress)
    if ablation_pass:
        _ablate(
            parts, plan, ensemble, members, ablation_pass, activity, match, rows, measured | judged, device, progress
        )


def _measured(saes: list[str], ensemble: catalogue.Ensemble, bench: _Bench) -> dict[str, Any]:
    """What activity and worth are computed from."""
    return {
        "version": VERSION, "saes": saes, "model": bench.model.digest, "hookpoint": ensemble.hookpoint,
        "tokens": bench.digest,
    }  # fmt: skip


def _batches(members: SAE, rows, device: torch.device) -> Iterator[tuple[int, torch.Tensor, Codes]]:
    """(first row, rows, codes) of consecutive batches, on the CPU; encoded on the device."""
    encoder = members if device.type == "cpu" else copy.deepcopy(members).to(device)
    n = max(min(BATCH_TOKENS, BATCH_NUMBERS // (members.n_members * members.d_sae)), 1)
    for first in range(0, len(rows), n):
        batch = torch.from_numpy(rows[first : first + n].astype(np.float32))
        with torch.no_grad():
            codes = encoder.encode(batch.to(device))
        yield first, batch, Codes(*(None if each is None else each.cpu() for each in codes))


def _flat(activity) -> dict[str, Any]:
    """Activity as named arrays, its contexts and triggers among them."""
    held = activity._asdict()
    contexts, triggers = held.pop("contexts")._asdict(), held.pop("triggers")._asdict()
    triggers["what"] = triggers["what"].astype(str)  # text of fixed width: no pickle
    return (
        held
        | {f"context_{name}": array for name, array in contexts.items()}
        | {f"trigger_{name}": array for name, array in triggers.items()}
    )


def _live(activity: Part | None, ensemble: catalogue.Ensemble) -> np.ndarray | None:
    """(members, d_sae) features that fired; None where activity is not known."""
    if activity is None:
        return None
    return np.stack([activity.read(seed)["n_active"] > 0 for seed in ensemble.seeds])


def _live_digest(live: np.ndarray | None) -> str | None:
    return None if live is None else hashlib.sha256(np.packbits(live).tobytes()).hexdigest()[:16]


def _found_match(
    parts: Parts, saes: list[str], live: np.ndarray | None, one_to_one: bool | None, members: SAE
) -> Part | None:
    found = parts.find("match", version=VERSION, saes=saes, live=_live_digest(live))
    asked = affordable(members.n_members, members.d_sae, members.d_in) if one_to_one is None else one_to_one
    return None if found and asked and not found.about["one_to_one"] else found


def _match(
    parts: Parts,
    ensemble: catalogue.Ensemble,
    members: SAE,
    saes: list[str],
    live: np.ndarray | None,
    one_to_one: bool | None,
    device: torch.device,
    progress: Progress,
) -> Part:
    name = ensemble.name
    assign = affordable(members.n_members, members.d_sae, members.d_in) if one_to_one is None else one_to_one
    with progress.stage(f"{name}: matching", "pairs") as report:
        matches = match_ensemble(members, live, assign=assign, device=device, report=report)
    with progress.stage(f"{name}: chance", "nulls") as report:
        chance = {}
        for done, kind in enumerate(NULL_KINDS):
            chance[kind] = null_cosines(members, kind, device=device)
            report(done + 1, len(NULL_KINDS))
    about = {"version": VERSION, "saes": saes, "live": _live_digest(live), "one_to_one": assign, "device": device.type}
    with parts.write("match", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            mine = {field: array[index] for field, array in matches._asdict().items()}
            null = {f"null_{kind}": found.cosine[index] for kind, found in chance.items()}
            put(seed, mine | null | {"null_feature": chance[NULL_KINDS[0]].feature})
    return parts.find("match", **about)


def _ablate(
    parts: Parts,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    members: SAE,
    ablation_pass: AblationPass,
    activity: Part,
    match: Part,
    rows,
    about: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> None:
    """Every feature's worth, and what whole buckets are worth."""
    buckets, densities = [], []
    directed = sae.directed(members.W_dec).numpy()
    for index, seed in enumerate(ensemble.seeds):
        n_active = activity.read(seed)["n_active"]
        n_matched = stability.count_matches(match.read(seed)["cosine"], plan.theta)
        dead = (n_active == 0) | ~directed[index]
        buckets.append(stability.buckets(n_matched, members.n_members - 1, dead, plan.epsilon))
        densities.append(n_active)
    mask_pass = None
    if not ablation_pass.pairwise:
        mask_pass = MaskPass(members, [headline_masks(*each) for each in zip(buckets, densities, strict=True)])
        with progress.stage(f"{ensemble.name}: masks", "tokens") as report:
            for first, batch, codes in _batches(members, rows, device):
                mask_pass.add(batch, codes)
                report(first + len(batch), len(rows))
    with progress.stage(f"{ensemble.name}: worth", "members") as report, parts.write("ablate", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            worth = ablation_pass.finish(index)
            masks = headline(mask_pass.finish(index, worth) if mask_pass else worth, buckets[index], densities[index])
            columns = {
                f"mask_{name}": np.array(column)
                for name, column in zip(masks[0]._fields, zip(*masks, strict=True), strict=True)
            }
            put(seed, {"ev": worth.explained_variance(), "marginal": worth.marginal_worth()} | columns)
            report(index + 1, members.n_members)
