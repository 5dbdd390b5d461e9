"""Results that an ensemble lacks, why, and the command that adds each."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from seedscope.engine.contract.directions import NO_OUTPUT, TRANSCODERS_DO_NOT_POOL, WAY_OUT
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.contract.sources import MODEL, cause_of
from seedscope.engine.contract.stability import ALONE
from seedscope.engine.contract.tables.study import NO_LOGITS, NO_TOKENS, Ensemble, Study

NO_MODEL = "undefined: samples of known true features are made, there is no language model"
PREDICTOR = "predictor: whether stability can be told from one SAE"
TRAJECTORY = "trajectory: agreement and features along training"
SPANS = "subspaces: what spans of unstable features share"
SHARED_SPANS = "spans: small subspaces that unstable features share, as objects of their own"
FUNCTION = "function: whether counterparts fire alike and substitute, and the match rule by activations"


@dataclass(frozen=True)
class Missing:
    """One result that is not there."""

    result: str  # in words
    reason: str
    command: str | None  # that adds it; None where none does
    job: dict[str, str] | None = None  # the fields that start it; None: they need what only users know

    def __str__(self) -> str:
        return self.reason + (f"; run `{self.command}`" if self.command else "")


def missing(
    study: Study,
    ensemble: Ensemble,
    rules: Collection[str],
    *,
    logits: bool,
    snapshots: bool,
    predicted: bool = False,
    file: Path | None = None,
) -> dict[str, Missing]:
    """{result: why it is not there and what adds it} of an ensemble; `rules` are those that its pairs were matched by.

    Results: `activity`, `contexts` (where rows came without tokens), `live` (the rule), `one-to-one`, `ablate`,
    `explanations`, `loss`, `logits`, `subspaces`, `trajectory`, `predictor`, `function`, `shared_spans`, and of one SAE alone,
    which lies in `file`, `stability` and `predicted`. `logits`, `snapshots` and `predicted` say whether the store has any of the
    ensemble.
    """
    blind = f"undefined: in {study.model} every token sees the tokens after it" if study.causal is False else None
    blind = NO_MODEL if study.synthetic else f"undefined: {NO_TOKENS}" if study.recorded else blind

    def job(**parameters: str) -> dict[str, str]:
        return {"kind": "analyze", "study": study.study} | parameters

    def lacks(result: str, analysis: str) -> Missing:
        command = f"seedscope analyze {study.study}"
        if cause_of(json.loads(ensemble.recipe or "null")) == MODEL:
            return Missing(result, "undefined: each member reads a language model of its own", None)
        place = " --hookpoint NAME" if ensemble.hookpoint is None and not study.recorded else ""
        if study.model is None and not study.synthetic and not study.recorded:
            return Missing(
                result, "the study has no model to run on tokens", f"{command} --model DIR_OR_ID{place} --tokens FILE"
            )
        if place:
            return Missing(result, "the hook point that the SAEs read is not known", command + place)
        return Missing(result, "not computed yet", f"{command} --only {analysis}", job(only=analysis))

    def compares(result: str, analysis: str) -> Missing:
        """What compares an output with the model: undefined where what transcoders predict is not known or not there."""
        if ensemble.undefined and ensemble.undefined != NO_OUTPUT:
            return Missing(result, ensemble.undefined, None)
        if ensemble.undefined and study.model is not None:
            return Missing(result, NO_OUTPUT, f"seedscope analyze {study.study} {WAY_OUT}")
        return lacks(result, analysis)

    if not ensemble.n_comparisons:
        rules = ("live", "hungarian", *rules)  # what has no comparison lacks no rule
    match, activity, ablate, explain, loss, subspaces, trajectory, predictor, function, shared_spans, *_ = ANALYSES
    lacking = {}
    if not ensemble.n_comparisons:
        command = f"seedscope anchor {study.study} {ensemble.ensemble}-anchored {quote(str(file or 'SAE'))}"
        command += " --model DIR_OR_ID --tokens FILES" if study.model is None else ""
        command += " --hookpoint NAME" if ensemble.hookpoint is None else ""
        lacking["stability"] = Missing("stability: p, buckets and their intervals", ALONE, command)
    if activity not in ensemble.computed:
        lacking["activity"] = lacks("activity: density, contexts, triggers, dead features", activity)
    elif study.recorded:
        lacking["contexts"] = Missing("contexts, top tokens and triggers", f"undefined: {NO_TOKENS}", None)
    if "live" not in rules:
        known = activity in ensemble.computed
        result = "matching with living features alone"
        lacking["live"] = lacks(result, match if known else activity)
    if "hungarian" not in rules:
        reason = "not done for all pairs at this size; the page of a pair matches it on demand"
        command = f"seedscope analyze {study.study} --only match --rule hungarian"
        lacking["one-to-one"] = Missing("one-to-one matching", reason, command, job(only=match, rule="hungarian"))
    if ablate not in ensemble.computed:
        lacking["ablate"] = compares("ablation: explained variance with features removed", ablate)
    if explain not in ensemble.computed:
        result = "explanations: token rules and their scores"
        without = f"undefined: {NO_TOKENS}" if study.recorded else None
        lacking["explanations"] = Missing(result, without, None) if without else lacks(result, explain)
    if loss not in ensemble.computed:
        result = "next-token loss"
        lacking["loss"] = Missing(result, blind, None) if blind else compares(result, loss)
    if not logits:
        result = "logits: next tokens raised and lowered"
        if ensemble.undefined and not blind:
            lacking["logits"] = compares(result, activity)
        elif activity not in ensemble.computed and not blind:
            lacking["logits"] = lacks(result, activity)
        else:
            width = "the hook point does not have the residual stream's width"
            norm = [remark.removeprefix(NO_LOGITS) for remark in ensemble.remarks if remark.startswith(NO_LOGITS)]
            width = norm[0] if norm else width
            lacking["logits"] = Missing(result, blind or width, None)
    if subspaces not in ensemble.computed:
        command = f"seedscope analyze {study.study} --only {subspaces}"
        lacking["subspaces"] = (
            Missing(SPANS, "not computed yet", command, job(only=subspaces))
            if ensemble.n_members > 1
            else Missing(SPANS, "spans are compared among seeds, and the ensemble has one", None)
        )
    if trajectory not in ensemble.computed:
        command = f"seedscope analyze {study.study} --only {trajectory}"
        why = "it was trained elsewhere, and only its end was imported"
        if ensemble.origin == "trained":
            why = "no seeds were kept along its training"
        alone = "agreement is between seeds, and the ensemble has one"
        lacking["trajectory"] = (
            Missing(TRAJECTORY, "not computed yet", command, job(only=trajectory))
            if snapshots and ensemble.n_members > 1
            else Missing(TRAJECTORY, alone if snapshots else why, None)
        )
    if not ensemble.n_comparisons and not predicted:
        command = f"seedscope predict {study.study}/{ensemble.ensemble} --from STUDY/ENSEMBLE"
        why = "no predictor was asked: it is trained on an ensemble of such SAEs"
        lacking["predicted"] = Missing("predicted stability", why, command)
    if ensemble.n_comparisons and predictor not in ensemble.computed:
        lacking["predictor"] = lacks(PREDICTOR, predictor)
    if function not in ensemble.computed:
        lacking["function"] = (
            lacks(FUNCTION, function)
            if ensemble.n_members > 1
            else Missing(FUNCTION, "counterparts are in other seeds, and the ensemble has one", None)
        )
    if shared_spans not in ensemble.computed:
        why = f"a span is tested on a seed that was left out, which takes three seeds, and the ensemble has {ensemble.n_members}"
        command = f"seedscope analyze {study.study} --only {shared_spans}"
        lacking["shared_spans"] = (
            Missing(SHARED_SPANS, "not computed yet", command, job(only=shared_spans))
            if ensemble.n_members > 2
            else Missing(SHARED_SPANS, why, None)
        )
    return lacking


def pool_missing(study: Study, ensemble: Ensemble) -> list[Missing]:
    """What adds an ensemble's feature pool: trained on where its recipe and text to train on are known here, or alone."""
    pool = "feature pool: the unique features of all seeds as one SAE, trained on beside its controls"
    alone = "the pool without training on: which features it has and where they come from"
    if ensemble.n_members < 2:
        return [Missing(pool, "an ensemble of one seed has nothing to pool", None)]
    if ensemble.transcoder:
        return [Missing(pool, TRANSCODERS_DO_NOT_POOL, None)]
    if ensemble.variant == "groupmax":
        return [Missing(pool, "groupmax means nothing outside its groups of features, so none can be taken out", None)]
    command = f"seedscope pool {study.study} {ensemble.ensemble}"
    job = {"kind": "pool", "study": study.study, "ensemble": ensemble.ensemble}
    whole = Missing(pool, "not computed yet", command, job)
    bare = Missing(alone, "not computed yet", f"{command} --tokens 0", job | {"tokens": "0"})
    if ensemble.variant.endswith("archetypal"):
        kind = f"{ensemble.variant} rows are made of their own seed’s centroids, so a pool of several is not trained on"
        return [Missing(pool, kind, None), bare]
    if ensemble.recipe is None and ensemble.origin == "imported":
        if ensemble.variant != "topk":
            why = f"how these {ensemble.variant} SAEs were trained is not known, and what weighs their sparsity decides it"
            return [Missing(pool, why, None), bare]
        if study.model is None:  # recorded activations are no model's either: only a model has further ones to train on
            return [Missing(pool, "the study has no model whose activations it could be trained on", None), bare]
        why = "only you know text that the SAEs are not measured on"
        return [Missing(pool, why, f"{command} --text FILES"), bare]
    return [whole]
