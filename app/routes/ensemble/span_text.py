"""A text of the user's own on one shared span, now: in every seed, token by token, what the span's members write inside it."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from pydantic import field_validator

from seedscope.app import render
from seedscope.app.lens import read_lens
from seedscope.app.live.asking import Asking, asks_engine
from seedscope.app.live.client import EngineRefusedError
from seedscope.app.live.process import EngineBrokenError, EngineStartingError
from seedscope.app.routes.address import EnsembleName, Plain, StudyName, open_ensemble
from seedscope.app.routes.ensemble.text_lines import TextLine, aligned_lines
from seedscope.app.routes.ensemble.text_question import as_forms_send_it, instead, text_question, why_cut, why_no_text
from seedscope.app.store.errors import BadValue
from seedscope.app.store.kept_spans import kept_span
from seedscope.app.store.missing import Missing
from seedscope.engine.contract.queries import LiveAnswer

router = APIRouter()
SpanId = Annotated[str, Path(description="id of a kept shared span, 12 hex digits")]


class SpanTextQuery(Plain):
    """The text."""

    text: str = ""

    @field_validator("text")
    @classmethod
    def _as_forms_send_it(cls, value: str) -> str:
        return as_forms_send_it(value)


@dataclass(frozen=True)
class SpanInSeed:
    """The span in one seed on the text, in units of activation."""

    seed: int
    max_strength: float
    at: int | None  # token of the largest strength; None where it is silent
    n_active: int  # tokens on which any member of the seed fires
    activations: list[float]  # strength at every token: the norm of what the members write inside the span
    # Norm of what lies in the span of the activation as the SAE reads it, less its decoder bias; None for transcoders.
    raw: list[float] | None
    max_raw: float | None


@dataclass(frozen=True)
class SpanTextPage:
    """`/s/{study}/{ensemble}/spans/{span}/text`: one kept shared span on a text.

    Without a text, or without an answer to it, everything from `n_read` on is None.
    """

    study: str
    ensemble: str
    span: str
    number: int
    rank: int
    n_sharing: int
    text: str
    model: str | None
    hookpoint: str | None
    missing: Missing | None  # why no text can be tried
    n_read: int | None  # tokens of the text that were read
    n_all: int | None
    ids: list[int] | None
    tokens: list[str] | None
    counts: list[bool] | None  # False for tokens such as BOS, on which nothing counts
    seeds: list[SpanInSeed] | None
    nav_says: str | None  # instead of an answer
    nav_again: bool
    nav_status: int
    nav_cut: str | None
    nav_lines: list[TextLine[SpanInSeed]]
    nav_largest: float
    nav_here: str
    nav_parameters: dict[str, Any]


@render.page(router, "/s/{study}/{ensemble}/spans/{span}/text", "ensemble/span_text.html", "span_text", kept=False)
@asks_engine
def span_text(
    request: Request, study: StudyName, ensemble: EnsembleName, span: SpanId, asked: Annotated[SpanTextQuery, Query()]
) -> Asking[SpanTextPage]:
    """A text run through every member now: how strong a kept shared span is on each token, beside the raw activation in it."""
    store, row = open_ensemble(request, study, ensemble)
    found = kept_span(store, ensemble, span)
    missing = why_no_text(store, row)
    parameters = ({"text": asked.text} if asked.text else {}) | read_lens(
        request.query_params, row.theta, row.epsilon
    ).parameters
    answer: LiveAnswer | None = None
    says, again, status = None, False, 200
    if asked.text and missing is None:
        try:
            n_bytes = len(render.url("", **parameters)) - 1
            answer = yield text_question(store, row, asked.text, n_bytes=n_bytes, span=found.span)
        except (BadValue, EngineStartingError, EngineBrokenError, EngineRefusedError) as error:
            if request.url.path.endswith(".json"):
                raise
            says, again, status = instead(error)
    seeds = _in_seeds([member.seed for member in store.members(ensemble)], answer) if answer else None
    n_read, n_all = answer.arrays["extent"].tolist() if answer else (None, None)
    return SpanTextPage(
        study=study,
        ensemble=ensemble,
        span=found.span,
        number=found.number,
        rank=found.rank,
        n_sharing=found.n_sharing,
        text=asked.text,
        model=store.study.model,
        hookpoint=row.hookpoint,
        missing=missing,
        n_read=n_read,
        n_all=n_all,
        ids=answer.arrays["id"].tolist() if answer else None,
        tokens=answer.texts if answer else None,
        counts=answer.arrays["counts"].tolist() if answer else None,
        seeds=seeds,
        nav_says=says,
        nav_again=again,
        nav_status=status,
        nav_cut=why_cut(store, len(answer.texts)) if answer and n_read != n_all else None,
        nav_lines=list(aligned_lines(answer.texts, seeds)) if answer and seeds else [],
        nav_largest=max((one.max_strength for one in seeds or ()), default=0),
        nav_here=f"/s/{study}/{ensemble}/spans/{span}/text",
        nav_parameters=parameters,
    )


def _in_seeds(seeds: list[int], answer: LiveAnswer) -> list[SpanInSeed]:
    strengths: np.ndarray = answer.arrays["strength"][0]
    raw = answer.arrays.get("raw")
    return [
        SpanInSeed(
            seed=seed,
            max_strength=float(strength.max(initial=0)),
            at=int(strength.argmax()) if strength.any() else None,
            n_active=int((strength > 0).sum()),
            activations=strength.tolist(),
            raw=None if raw is None else raw[i].tolist(),
            max_raw=None if raw is None else float(raw[i].max(initial=0)),
        )
        for i, (seed, strength) in enumerate(zip(seeds, strengths, strict=True))
    ]
