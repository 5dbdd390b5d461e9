"""Next tokens that a feature raises and lowers: those stored, and the histogram over the whole vocabulary, computed now."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.next_tokens import logit_histogram
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.routes.address import EnsembleName, Filter, JudgedFeature, StudyName, judged_feature
from seedscope.app.store.errors import NotFound
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.study import Ensemble

router = APIRouter()


@dataclass(frozen=True)
class ShownLogit:
    """A next token and the feature's direct effect on its logit."""

    token: str
    logit: float


@dataclass(frozen=True)
class NextTokensPage:
    """`/s/{study}/{ensemble}/{seed}/{feature}/logits`: direct logit effects on all tokens, as a histogram."""

    study: str
    ensemble: str
    seed: int
    feature: int
    n_tokens: int  # of the vocabulary
    mean: float
    sd: float
    skewness: float | None  # None where all effects are equal, as is the next
    excess_kurtosis: float | None
    edges: list[float]  # of equal bins, from the lowest effect to the highest
    counts: list[int]  # tokens in each
    positive_logits: list[ShownLogit]  # the strongest first
    negative_logits: list[ShownLogit]
    figure_logits: Figure


def stored_logits(store: StudyStore, feature: Feature) -> tuple[list[ShownLogit], list[ShownLogit]]:
    """The next tokens that the feature raises, and those that it lowers, the strongest first."""
    rows = store.logits(feature.ensemble, feature.seed, feature.feature)
    raised, lowered = (
        [ShownLogit(store.tokens[row.token], row.logit) for row in rows if row.sign == sign] for sign in (1, -1)
    )
    return raised, lowered


def can_compute(store: StudyStore, row: Ensemble, feature: Feature) -> bool:
    """Whether the model is there whose vocabulary the feature acts on: controls were measured on another."""
    return "logits" not in store.missing(row.ensemble) and feature.decoder_norm > 0 and row.control_of is None


@render.page(router, "/s/{study}/{ensemble}/{seed}/{feature}/logits", "feature/logits.html", "logits", kept=False)
@asks_engine
def logits(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedFeature[Filter], Depends(judged_feature(Filter))],
) -> Asking[NextTokensPage]:
    """How a feature's direct logit effects spread over the vocabulary, beside the tokens at both ends."""
    store, row, _, member, feature = opened
    if missing := store.missing(ensemble).get("logits"):
        raise NotFound("logits", f"a feature of {ensemble}", f"none: {missing}")
    if row.control_of is not None:
        raise NotFound("logits", f"a feature of {ensemble}", f"one of {row.control_of}: controls run on another model")
    query = LiveQuery(
        "logits", study, ensemble, row.folder, tuple(m.seed for m in store.members(ensemble)), seed=member.seed,
        feature=feature.feature, model=store.study.model_digest or "",
    )  # fmt: skip
    arrays = (yield Ask(query)).arrays
    mean, sd, skewness, kurtosis = (None if np.isnan(value) else float(value) for value in arrays["moments"])
    edges, counts = arrays["edges"].tolist(), arrays["counts"].tolist()
    raised, lowered = stored_logits(store, feature)
    return NextTokensPage(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=feature.feature,
        n_tokens=sum(counts),
        mean=mean or 0.0,
        sd=sd or 0.0,
        skewness=skewness,
        excess_kurtosis=kurtosis,
        edges=edges,
        counts=counts,
        positive_logits=raised,
        negative_logits=lowered,
        figure_logits=logit_histogram(
            f"{ensemble}-{member.seed}-{feature.feature}",
            edges,
            counts,
            [(each.token, each.logit) for each in raised],
            [(each.token, each.logit) for each in lowered],
            mean or 0.0,
            sd or 0.0,
        ),
    )
