"""What activity is measured on: a study's model and evaluation tokens, and activations of it at any hook point."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.activations.documents import Document, documents, split
from seedscope.engine.activations.harvest import (
    BeyondRangeError,
    LanguageModel,
    TokenSet,
    harvest,
    hook_module,
    load_model,
    token_texts,
    tokenize,
    width,
)
from seedscope.engine.activations.model import randomised
from seedscope.engine.activations.outliers import TIMES, Without, find_outliers
from seedscope.engine.activations.shards import Shards
from seedscope.engine.activations.tokens import save_tokens
from seedscope.engine.contract.files import write_whole
from seedscope.engine.demo import stdlib
from seedscope.engine.features.triggers import Vocabulary
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import VERSION
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.samples import Labelled, label

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What activity was measured on: the model, and the tokens as they are shown."""

    model: str | None  # None for samples of known true features: no model made them
    model_digest: str
    control_digest: str | None  # of the same model with random weights, where an ensemble is a control
    causal: bool
    n_ctx: int
    policy: str
    token_digest: str
    n_tokens: int
    remark: str
    texts: tuple[str, ...]  # of every token id
    documents: tuple[str, ...]
    outliers: float | None = None  # times the median length from which on tokens are left out; None: they count


def read_evaluation(study: Path) -> Evaluation | None:
    """The evaluation that the parts of a study were measured on, None where there was none."""
    try:
        held = json.loads((study / "parts" / EVALUATION).read_text())
    except FileNotFoundError:
        return None
    return Evaluation(**held | {name: tuple(held[name]) for name in ("texts", "documents")})


def measured_from(ensemble: catalogue.Ensemble, evaluation: Evaluation) -> dict[str, Any]:
    """What the parts of an ensemble's activity, and all that follows from it, say that they were computed from."""
    return {
        "version": VERSION,
        "saes": [member.digest for member in ensemble.members],
        "tokens": evaluation.token_digest,
        "outliers": evaluation.outliers,
        "hookpoint": ensemble.hookpoint,
        "model": evaluation.control_digest if ensemble.control_of else evaluation.model_digest,
    }


class Place(NamedTuple):
    """Activations at a hook point, and the tokens that count there, in their order."""

    rows: np.ndarray | Shards | Without  # (tokens, d_in)
    tokens: TokenSet


class Bench:
    """A model with its evaluation tokens, and activations of it at any hook point."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: TokenSet,
        evaluation: Evaluation,
        scratch: Path,
        progress: Progress,
        *,
        control: "Bench | None" = None,
    ) -> None:
        self.model, self.tokens, self.evaluation = model, tokens, evaluation
        self.control = control  # the same tokens on the model with random weights, where an ensemble asks for it
        self.texts = list(evaluation.texts)
        self._scratch, self._progress = scratch, progress

    def loss_tokens(self, n: int, left_out: np.ndarray) -> TokenSet:
        """Windows, drawn at random, that hold about n tokens that count; `left_out` says what does not at a hook point."""
        return self.tokens._replace(left_out=left_out).sample(n)

    def sample(self, hookpoint: str, n: int, left_out: np.ndarray) -> np.ndarray | Shards:
        """Activations (tokens, d_in) of about n tokens that count, those of the windows of `loss_tokens`, in float32."""
        folder = self._scratch / f"some-{hashlib.sha256(hookpoint.encode()).hexdigest()[:16]}"
        with self._progress.stage(f"some activations at {hookpoint}", "tokens") as report:
            return harvest(self.model, self.loss_tokens(n, left_out), hookpoint, folder, dtype="float32", report=report)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the classes of triggers need to know of the tokens."""
        return Vocabulary(self.texts, self.tokens.ids[self.tokens.counted])

    def place(self, hookpoint: str, d_in: int) -> Place:
        """Activations from disk, in float32 where float16 cannot hold them; without outliers unless they count."""
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
        if (outliers := self.evaluation.outliers) is None:
            return Place(rows, self.tokens)
        with self._progress.stage(f"outliers at {hookpoint}", "tokens") as report:
            found = find_outliers(rows, times=outliers, report=report)
        if len(found):
            self._progress.say(
                f"{len(found):,} of {len(rows):,} tokens left out at {hookpoint}: their activations are longer than "
                f"{outliers:g} times the median"
            )
        tokens = self.tokens._replace(left_out=np.flatnonzero(self.tokens.counted)[found])
        return Place(Without(rows, found) if len(found) else rows, tokens)


class SampleBench(Bench):
    """Evaluation samples of known true features: each stands for a token that names its strongest one."""

    def __init__(self, samples: synthetic.SyntheticConfig, held: Labelled) -> None:
        # No model made them: what stands in its place computes nothing and predicts no token.
        model = LanguageModel(torch.nn.Identity(), None, "a generator of samples", samples.digest, causal=False)
        evaluation = Evaluation(
            model=None,
            model_digest=model.digest,
            control_digest=None,
            causal=False,
            n_ctx=held.tokens.ids.shape[1],
            policy="every sample counts; a sample is shown as the name of its strongest true feature",
            token_digest=held.tokens.digest,
            n_tokens=int(held.tokens.counted.sum()),
            remark="samples of known true features that training did not see",
            texts=tuple(held.texts),
            documents=tuple(held.tokens.names),
        )
        self.model, self.tokens, self.evaluation, self.control, self._held = model, held.tokens, evaluation, None, held
        self.texts = held.texts

    def place(self, hookpoint: str, d_in: int) -> Place:
        """The samples themselves, whatever the hook point is called; raises ValueError for SAEs of another width."""
        if self._held.rows.shape[1] != d_in:
            raise ValueError(
                f"samples have {self._held.rows.shape[1]} numbers, the SAEs at {hookpoint} read {d_in}: they were trained on "
                "something else; import them into a study of their own"
            )
        return Place(self._held.rows, self.tokens)

    def sample(self, hookpoint: str, n: int, left_out: np.ndarray) -> np.ndarray:
        """Some of the samples themselves."""
        window = np.flatnonzero(self.tokens.counted) // self.tokens.ids.shape[1]
        return self._held.rows[np.isin(window, self.tokens.draw(n))]


def open_samples(study: Path, made: synthetic.Plan, plan: catalogue.Study, progress: Progress) -> SampleBench:
    """The evaluation samples of a synthetic study; raises ValueError where its catalogue names a model or text."""
    if plan.model or plan.tokens:
        raise ValueError(
            f"{plan.name} is a synthetic study, measured on samples of its own, and was given "
            f"{'a model' if plan.model else 'text'}; leave out --model, --tokens and what belongs to them"
        )
    with progress.stage("evaluation samples", "samples") as report:
        held = label(made.samples, made.n_evaluated)
        report(len(held.rows), len(held.rows))
    bench = SampleBench(made.samples, held)
    _keep(study, bench.evaluation, held.tokens)
    return bench


def _keep(study: Path, record: Evaluation, tokens: TokenSet) -> None:
    (study / "parts").mkdir(parents=True, exist_ok=True)
    write_whole(study / "parts" / EVALUATION, json.dumps(asdict(record)))
    save_tokens(tokens, study / "parts")


def open_bench(
    study: Path,
    plan: catalogue.Study,
    model: LanguageModel | None,
    texts: Iterable[Document] | None,
    device: torch.device,
    progress: Progress,
) -> Bench | None:
    """Model and tokens as the catalogue names them, or a synthetic study's samples; None, with a word, without either."""
    if made := synthetic.read(study):
        return open_samples(study, made, plan, progress)
    if plan.model is None or (plan.tokens is None and texts is None):
        lacks = " and ".join(name for name, held in (("--model", plan.model), ("--tokens", plan.tokens)) if not held)
        progress.say(f"activity, ablate: left out, no {lacks} was given for {plan.name}")
        return None
    settings = plan.tokens or catalogue.Tokens(())
    model = model or load_model(plan.model)
    if device.type != "cpu":
        model.network.to(device)
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
    outliers = TIMES if settings.outliers == "exclude" else None
    control = randomised(model) if any(each.control_of for each in plan.ensembles) else None
    record = Evaluation(
        model=model.name,
        model_digest=model.digest,
        control_digest=control.digest if control else None,
        causal=model.causal,
        n_ctx=found.ids.shape[1],
        policy=f"{found.policy}; tokens with activations longer than {outliers:g} times the median excluded"
        if outliers
        else f"{found.policy}; norm outliers counted",
        token_digest=found.digest,
        n_tokens=n_tokens,
        remark=settings.remark or ", ".join(settings.source),
        texts=tuple(token_texts(model)),
        documents=tuple(found.names),
        outliers=outliers,
    )
    _keep(study, record, found)
    where = found, record
    twin = control and Bench(control, *where, study / "scratch" / "control", progress)
    return Bench(model, *where, study / "scratch", progress, control=twin)


def _require_place(model: LanguageModel, ensemble: catalogue.Ensemble) -> None:
    try:
        hook_module(model, ensemble.hookpoint)
    except ValueError as error:
        raise ValueError(f"ensemble {ensemble.name}: {error}") from None


def documents_of(tokens: catalogue.Tokens) -> Iterator[Document]:
    """The documents that a catalogue's evaluation tokens name."""
    if tokens.source == (stdlib.SOURCE,):
        return iter(stdlib.load_corpus().held_out)
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
