"""A text of the user's own, run through every member now: active features per token, and one feature beside its counterparts."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from seedscope.app import render
from seedscope.app.live.asking import Ask, Asking, asks_engine
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
    TextLine,
    TryQuery,
)
from seedscope.app.store.errors import BadValue
from seedscope.app.store.missing import NO_MODEL, Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import LiveAnswer, LiveQuery
from seedscope.engine.contract.tables.study import NO_TOKENS, Ensemble

router = APIRouter()
LONGEST_ADDRESS = 8192  # bytes behind the question mark: what browsers, proxies and chat programs carry
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
    nav_says: str | None  # instead of an answer
    nav_again: bool
    nav_status: int
    nav_cut: str | None
    nav_line: list[LineToken]
    nav_listed: Listed | None
    nav_lines: list[TextLine]
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
    lacking = store.missing(ensemble)
    missing = lacking.get("activity") if store.study.model is None or row.hookpoint is None else None
    if store.study.synthetic:
        missing = Missing("a text of your own", NO_MODEL, None)
    if store.study.recorded:
        missing = Missing("a text of your own", f"undefined: {NO_TOKENS}", None)
    if row.control_of is not None:
        missing = Missing("a text of your own", f"its seeds read {store.study.model} with random weights", None)
    answer: LiveAnswer | None = None
    says, again, status = None, False, 200
    if asked.text and missing is None:
        try:
            answer = yield _question(store, row, asked)
        except (BadValue, EngineStartingError, EngineBrokenError, EngineRefusedError) as error:
            if request.url.path.endswith(".json"):
                raise
            says, again, status = _instead(error)
    activity = TextActivity(store, row, asked, seed, answer) if answer else None
    on_text = activity.on_text or [] if activity else []
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
        nav_says=says,
        nav_again=again,
        nav_status=status,
        nav_cut=activity.cut() if activity else None,
        nav_line=activity.line() if activity else [],
        nav_listed=activity.listed() if activity else None,
        nav_lines=list(activity.lines()) if activity and on_text else [],
        nav_largest=max((row.max_activation for row in on_text), default=0),
        nav_seeds=[member.seed for member in store.members(ensemble)],
        nav_examples=_examples(store, ensemble, asked) if not asked.text and missing is None else [],
        nav_activity=store.has(ensemble, "activity"),
        nav_links=asked.judgement(),
        nav_query=asked,
    )


def _question(store: StudyStore, row: Ensemble, asked: TryQuery) -> Ask:
    n_bytes = len(render.url("", **asked.parameters())) - 1  # as this page writes it, however the browser did
    if n_bytes > LONGEST_ADDRESS:
        raise BadValue("text", f"an address of {n_bytes:,} bytes", f"at most {LONGEST_ADDRESS:,}: shorten the text")
    seeds = tuple(member.seed for member in store.members(row.ensemble))
    return Ask(
        LiveQuery(
            "try",
            store.study.study,
            row.ensemble,
            row.folder,
            seeds,
            text=asked.text,
            model=store.study.model_digest or "",
        )
    )


def _instead(error: Exception) -> tuple[str, bool, int]:
    """(what the page says instead of an answer, whether it asks again by itself, its status)."""
    if isinstance(error, BadValue):
        says = f"the text makes {error.found}, and a link to this page can have {error.expected.replace(': ', '; ')}"
        return says, False, 422
    if isinstance(error, EngineRefusedError):
        again = error.cause in ("late", "busy")
        return str(error), again, 202 if again else 422 if error.cause == "query" else 503
    return str(error), isinstance(error, EngineStartingError), 202 if isinstance(error, EngineStartingError) else 503


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
