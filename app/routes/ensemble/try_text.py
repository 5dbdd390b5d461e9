"""A text of the user's own, run through every member now: active features per token, and one feature beside its counterparts."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from seedscope.app import render
from seedscope.app.live.asking import Asking, asks_engine
from seedscope.app.live.client import EngineRefusedError
from seedscope.app.live.process import EngineBrokenError, EngineStartingError
from seedscope.app.routes.address import EnsembleName, JudgedEnsemble, StudyName, judged
from seedscope.app.routes.ensemble.text_activity import (
    LineToken,
    Listed,
    MemberActive,
    OnText,
    StrongFeature,
    TextActivity,
    TryQuery,
)
from seedscope.app.routes.ensemble.text_lines import TextLine, aligned_lines
from seedscope.app.routes.ensemble.text_question import instead, text_question, why_no_text
from seedscope.app.routes.ensemble.text_spans import N_SPANS_DRAWN, SpanOnText, spans_on_text
from seedscope.app.store.errors import BadValue
from seedscope.app.store.kept_spans import kept_spans
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import ALL_SPANS, LiveAnswer

router = APIRouter()
N_EXAMPLES = 3


@dataclass(frozen=True)
class TryPage:
    """`/s/{study}/{ensemble}/try`: a text, its tokens, and what is active on them.

    Without a text, or without an answer to it, everything from `n_read` on is None.
    """

    study: str
    ensemble: str
    theta: float
    epsilon: float
    rule: str
    text: str
    model: str | None
    hookpoint: str | None
    seed: int  # whose features are shown
    feature: int | None
    missing: Missing | None  # why no text can be tried
    n_read: int | None  # tokens of the text that were read
    n_all: int | None
    ids: list[int] | None
    tokens: list[str] | None
    counts: list[bool] | None  # False for tokens such as BOS, whose activations never count
    members: list[MemberActive] | None
    strongest: list[StrongFeature] | None
    on_text: list[OnText] | None  # of the feature asked for, itself first; None where none was
    spans: list[SpanOnText] | None  # kept shared spans, the strongest first; None where the ensemble was not searched
    nav_says: str | None  # instead of an answer
    nav_again: bool
    nav_status: int
    nav_cut: str | None
    nav_line: list[LineToken]
    nav_listed: Listed | None
    nav_lines: list[TextLine[OnText]]
    nav_span_lines: list[TextLine[SpanOnText]]
    nav_largest_span: float
    nav_largest: float
    nav_seeds: list[int]
    nav_examples: list[str]
    nav_activity: bool
    nav_links: dict[str, Any]
    nav_query: TryQuery


@render.page(router, "/s/{study}/{ensemble}/try", "ensemble/try_text.html", "try", kept=False)
@asks_engine
def try_text(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[TryQuery], Depends(judged(TryQuery))],
) -> Asking[TryPage]:
    """A text run through the study's model and every member now: active features per token, and one feature's counterparts."""
    store, row, asked = opened
    store.check_rule(ensemble, asked.rule)
    seed = store.members(ensemble)[0].seed if asked.seed is None else store.member(ensemble, asked.seed).seed
    if asked.feature is not None:
        if asked.seed is None:
            raise BadValue("seed", "nothing", f"the seed of feature {asked.feature}")
        store.feature(ensemble, seed, asked.feature)
    missing = why_no_text(store, row)
    kept = kept_spans(store, ensemble)
    answer: LiveAnswer | None = None
    says, again, status = None, False, 200
    if asked.text and missing is None:
        try:
            n_bytes = len(render.url("", **asked.parameters())) - 1  # as this page writes it, however the browser did
            answer = yield text_question(store, row, asked.text, n_bytes=n_bytes, span=ALL_SPANS if kept else "")
        except (BadValue, EngineStartingError, EngineBrokenError, EngineRefusedError) as error:
            if request.url.path.endswith(".json"):
                raise
            says, again, status = instead(error)
    activity = TextActivity(store, row, asked, seed, answer) if answer else None
    on_text = activity.on_text or [] if activity else []
    spans = spans_on_text(answer, kept, [member.seed for member in store.members(ensemble)], seed) if answer else None
    return TryPage(
        study=study,
        ensemble=ensemble,
        theta=asked.theta,
        epsilon=asked.epsilon,
        rule=asked.rule,
        text=asked.text,
        model=store.study.model,
        hookpoint=row.hookpoint,
        seed=seed,
        feature=asked.feature,
        missing=missing,
        n_read=activity.n_read if activity else None,
        n_all=activity.n_all if activity else None,
        ids=answer.arrays["id"].tolist() if answer else None,
        tokens=answer.texts if answer else None,
        counts=answer.arrays["counts"].tolist() if answer else None,
        members=[a.as_columns() for a in activity.members] if activity else None,
        strongest=activity.strongest() if activity else None,
        on_text=activity.on_text if activity else None,
        spans=spans,
        nav_says=says,
        nav_again=again,
        nav_status=status,
        nav_cut=activity.cut() if activity else None,
        nav_line=activity.line() if activity else [],
        nav_listed=activity.listed() if activity else None,
        nav_lines=list(activity.lines()) if activity and on_text else [],
        nav_span_lines=list(aligned_lines(answer.texts, spans[:N_SPANS_DRAWN])) if answer and spans else [],
        nav_largest_span=max((one.max_strength for one in spans or ()), default=0),
        nav_largest=max((row.max_activation for row in on_text), default=0),
        nav_seeds=[member.seed for member in store.members(ensemble)],
        nav_examples=_examples(store, ensemble, asked) if not asked.text and missing is None else [],
        nav_activity=store.has(ensemble, "activity"),
        nav_links=asked.judgement(),
        nav_query=asked,
    )


def _examples(store: StudyStore, ensemble: str, asked: TryQuery) -> list[str]:
    """Passages of the study's own documents: where the feature asked for is strongest, or where some stable ones are."""
    if not store.has(ensemble, "activity"):
        return []
    if asked.feature is not None and asked.seed is not None:
        contexts = store.contexts(ensemble, asked.seed, asked.feature)
    else:
        query = asked.query(ensemble)
        places = [(row.seed, row.feature) for row in store.features(query).page(limit=N_EXAMPLES)]
        contexts = [context for held in store.contexts_at(ensemble, places, n=1).values() for context in held]
    texts = ("".join(store.tokens[i] for i in context.token_ids).strip() for context in contexts)
    return [text for text in dict.fromkeys(texts) if text][:N_EXAMPLES]
