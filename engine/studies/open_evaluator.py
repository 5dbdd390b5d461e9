"""Opens the evaluator of a study: loads its model, tokenizes its evaluation text, and checks hook points."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from seedscope.engine.activations.documents import Document, documents, split
from seedscope.engine.activations.harvest import (
    LanguageModel,
    TokenSet,
    hook_module,
    load_model,
    token_texts,
    tokenize,
    width,
)
from seedscope.engine.activations.model import randomised
from seedscope.engine.activations.outliers import TIMES
from seedscope.engine.contract.sources import MODELS
from seedscope.engine.contract.urls import url_in
from seedscope.engine.demo import stdlib
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import Evaluation
from seedscope.engine.studies.evaluator import Evaluator, keep_evaluation, require_width
from seedscope.engine.studies.model_seeds import OWN_MODELS
from seedscope.engine.studies.recorded import open_rows
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.evaluator import open_samples


def open_evaluator(
    study: Path,
    plan: catalogue.StudyPlan,
    model: LanguageModel | None,
    texts: Iterable[Document] | None,
    device: torch.device,
    progress: Progress,
    executor: Executor = HERE,
) -> Evaluator | None:
    """Model and tokens as the catalogue names them, recorded activations, or a synthetic study's samples.

    None, with a word, without any of them.
    """
    if made := synthetic.read(study):
        return open_samples(study, made, plan, progress)
    if plan.activations and texts is None:
        return open_rows(study, plan, plan.activations, progress)
    if plan.model is None or (plan.tokens is None and texts is None):
        lacks = " and ".join(name for name, value in (("--model", plan.model), ("--tokens", plan.tokens)) if not value)
        progress.say(f"activity, ablate: left out, no {lacks} (nor --activations) was given for {plan.name}")
        return None
    settings = plan.tokens or catalogue.Tokens(())
    model = model or load_model(plan.model)
    if device.type != "cpu":
        model.network.to(device)
    for ensemble in plan.ensembles:
        if not ensemble.hookpoint and not reads_own_models(ensemble):
            progress.say(f"{ensemble.name}: no hook point is known, so no activity; give one with --hookpoint")
    unreadable = {each.name: OWN_MODELS for each in plan.ensembles if reads_own_models(each)}
    unreadable |= _unreadable(plan, partial(_require_hookpoint, model), besides=unreadable)
    texts = (
        documents_of(settings) if texts is None else texts
    )  # what lies behind URLs is fetched here, with a bar of its own
    with progress.stage("tokenizing", "tokens") as report:
        evaluated = tokenize(
            texts, model, n_ctx=settings.n_ctx, bos=settings.bos,
            n_tokens=settings.n_eval,
        )  # fmt: skip
        n_tokens = int(evaluated.counted.sum())
        report(n_tokens, n_tokens)
    evaluated = evaluated._replace(names=short_names(evaluated.names))
    unreadable |= _unreadable(plan, partial(_require_width, study, model, evaluated), besides=unreadable)
    for name, reason in unreadable.items():
        progress.say(f"{name}: no activity: {reason}")
    unpredictable = _unpredictable(study, plan, model, evaluated, besides=unreadable)
    for name, reason in unpredictable.items():
        progress.say(f"{name}: no reconstruction: undefined: {reason}")
    outliers = TIMES if settings.outliers == "exclude" else None
    control = randomised(model) if any(each.control_of for each in plan.ensembles) else None
    record = Evaluation(
        model=model.name,
        model_digest=model.digest,
        control_digest=control.digest if control else None,
        causal=model.causal,
        n_ctx=evaluated.ids.shape[1],
        policy=f"{evaluated.policy}; tokens with activations longer than {outliers:g} times the median excluded"
        if outliers
        else f"{evaluated.policy}; norm outliers counted",
        token_digest=evaluated.digest,
        n_tokens=n_tokens,
        remark=settings.remark or ", ".join(settings.source),
        texts=tuple(token_texts(model)),
        documents=tuple(evaluated.names),
        outliers=outliers,
    )
    keep_evaluation(study, record, evaluated)
    scratch = study / "scratch"
    control_evaluator = control and Evaluator(
        control, evaluated, record, scratch / "control", progress, executor=executor
    )
    return Evaluator(
        model, evaluated, record, scratch, progress, control=control_evaluator, unreadable=unreadable,
        unpredictable=unpredictable, executor=executor,
    )  # fmt: skip


def reads_own_models(ensemble: catalogue.EnsemblePlan) -> bool:
    """Whether each member reads a language model of its own: what the study's model makes of a text says nothing of them."""
    return bool((ensemble.recipe or {}).get(MODELS))


def _unreadable(
    plan: catalogue.StudyPlan,
    require: Callable[[catalogue.EnsemblePlan, str], None],
    *,
    besides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{ensemble: why `require(ensemble, hook point)` refuses it}; `besides` are known to be refused already.

    Raises ValueError, naming the ensemble, where no ensemble with a hook point is left.
    """
    besides = besides or {}
    left = [ensemble for ensemble in plan.ensembles if ensemble.hookpoint and ensemble.name not in besides]
    reasons: dict[str, str] = {}
    for ensemble in left:
        try:
            require(ensemble, ensemble.hookpoint or "")
        except ValueError as error:
            reasons[ensemble.name] = str(error)
    if left and len(reasons) == len(left):
        raise ValueError(f"ensemble {left[0].name}: {reasons[left[0].name]}")
    return reasons


def _require_hookpoint(model: LanguageModel, _ensemble: catalogue.EnsemblePlan, hookpoint: str) -> None:
    """Raise ValueError where the model does not have the hook point."""
    hook_module(model, hookpoint)


def _require_width(
    study: Path, model: LanguageModel, tokens: TokenSet, ensemble: catalogue.EnsemblePlan, hookpoint: str
) -> None:
    """Raise ValueError where no row per token passes at the hook point, or one of another width than the SAEs read."""
    require_width(model, width(model, tokens, hookpoint), _shape(study, ensemble, "W_enc")[0], hookpoint)


def _shape(study: Path, ensemble: catalogue.EnsemblePlan, tensor: str) -> list[int]:
    with safe_open(study / ensemble.folder / f"seed-{ensemble.seeds[0]}.safetensors", "pt") as file:
        return file.get_slice(tensor).get_shape()


def _unpredictable(
    study: Path, plan: catalogue.StudyPlan, model: LanguageModel, tokens: TokenSet, *, besides: Mapping[str, str]
) -> dict[str, str]:
    """{ensemble of transcoders: why the model does not have what they predict}; `besides` are not read at all."""
    reasons: dict[str, str] = {}
    for ensemble in plan.ensembles:
        if not (ensemble.hookpoint and ensemble.hookpoint_out) or ensemble.name in besides:
            continue
        try:
            hook_module(model, ensemble.hookpoint_out)
            d_out, model_width = _shape(study, ensemble, "W_dec")[1], width(model, tokens, ensemble.hookpoint_out)
            if model_width != d_out:
                raise ValueError(
                    f"at {ensemble.hookpoint_out} {model.name} has {model_width} numbers per token, the transcoders give {d_out}"
                )
        except ValueError as error:
            reasons[ensemble.name] = str(error)
    return reasons


def documents_of(tokens: catalogue.Tokens) -> Iterator[Document]:
    """The documents that a catalogue's evaluation tokens name."""
    if tokens.source == (stdlib.SOURCE,):
        return iter(stdlib.load_corpus().held_out)
    texts = documents(tokens.source)
    return split(texts, tokens.part) if tokens.part != "all" else texts


def short_names(names: list[str]) -> list[str]:
    """Names of documents without the folder that all of them share: where a corpus lies says nothing about it."""
    top = "/" if not names or names[0].startswith("/") else "/".join([*names[0].split("/", 3)[:3], ""])
    if not names or not (top == "/" or url_in(names[0])) or not all(name.startswith(top) for name in names):
        return names
    shared = names[0].rsplit("/", 1)[0] + "/"
    while not all(name.startswith(shared) for name in names):
        shared = shared.rstrip("/").rsplit("/", 1)[0] + "/"
    return [name.removeprefix(shared) for name in names]
