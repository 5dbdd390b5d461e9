"""Whether counterparts do the same work: co-firing and substitution of every bucket's features, beside controls."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.function import (
    KINDS,
    PairScore,
    SubstitutingShare,
    score_against_cosine,
    substituting_dots,
)
from seedscope.app.findings.function_claim import function_sentence
from seedscope.app.routes.address import EnsembleName, Plain, StudyName, open_ensemble
from seedscope.app.store.function import (
    SubstitutingPairs,
    TransportReached,
    function_table,
    read_summaries,
    read_transport,
)
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.function import FUNCTION_BUCKETS, SUBSTITUTES, FunctionSummary
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()


@dataclass(frozen=True)
class FunctionSide:
    """The ensemble or its control on random weights: what nearest counterparts of one bucket do."""

    ensemble: str
    is_control: bool
    bucket: str
    summary: FunctionSummary


@dataclass(frozen=True)
class FunctionPage:
    """`/s/{study}/{ensemble}/function`: whether counterparts fire alike and substitute."""

    study: Study
    ensemble: Ensemble
    theta: float  # that the buckets were judged by
    epsilon: float
    substitutes: float  # score from which on a counterpart substitutes
    sentence: str
    summaries: list[FunctionSummary]
    most_similar: list[SubstitutingPairs]  # empty where there are too many pairs to sort
    transport: TransportReached | None  # None where partners by optimal transport were not looked at
    sides: list[FunctionSide]  # empty without a control
    missing: list[Missing]
    figure_list: list[Figure]
    nav_kinds: dict[str, tuple[str, bool]]


@render.page(router, "/s/{study}/{ensemble}/function", "ensemble/function.html", "function")
def function(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> FunctionPage:
    """Whether counterparts fire on the same tokens and can take a feature's place, bucket by bucket, beside controls."""
    store, row = open_ensemble(request, study, ensemble)
    summaries = sorted(read_summaries(store, ensemble), key=_in_order)
    lacking = store.missing(ensemble)
    return FunctionPage(
        study=store.study,
        ensemble=row,
        theta=row.theta,
        epsilon=row.epsilon,
        substitutes=SUBSTITUTES,
        sentence=function_sentence(summaries) if summaries else str(lacking["function"]),
        summaries=summaries,
        most_similar=store.most_similar(ensemble) if summaries else [],
        transport=read_transport(store, ensemble),
        sides=_sides(store, row),
        missing=[lacking["function"]] if "function" in lacking else [],
        figure_list=_figures(store, row, summaries) if summaries else [],
        nav_kinds=KINDS,
    )


@router.get("/s/{study}/{ensemble}/function.csv", name="function.csv")
@router.get("/s/{study}/{ensemble}/function.parquet", name="function.parquet")
def function_download(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> Response:
    """Every bucket and kind of counterpart, as CSV or Parquet."""
    store, _ = open_ensemble(request, study, ensemble)
    return render.download(request, function_table(store, ensemble), f"{study}-{ensemble}-function")


def _in_order(row: FunctionSummary) -> tuple[int, int]:
    return FUNCTION_BUCKETS.index(row.bucket), list(KINDS).index(row.kind)


def _figures(store: StudyStore, row: Ensemble, summaries: list[FunctionSummary]) -> list[Figure]:
    shares = [
        SubstitutingShare(
            each.kind, each.bucket, each.scaled_share, each.scaled_share_low, each.scaled_share_high, each.n_scored
        )
        for each in summaries
        if each.bucket in ("stable", "unstable") and each.scaled_share is not None
    ]
    figures = [substituting_dots(shares, "Whose counterparts can take its place?")] if shares else []
    if points := store.function_sample(row.ensemble):
        shown = [
            PairScore(f"seed {p.seed} #{p.feature} by seed {p.other} #{p.partner}", p.bucket, p.cosine, p.score)
            for p in points
        ]
        figures.append(
            score_against_cosine(
                shown, points[0].seed, row.theta, "Does a larger cosine mean that the counterpart can stand in?"
            )
        )
    return figures


def _sides(store: StudyStore, row: Ensemble) -> list[FunctionSide]:
    """The ensemble beside its control, or the control beside what it is of."""
    own = row.control_of or row.ensemble
    names = [own, *(each.ensemble for each in store.ensembles.values() if each.control_of == own)]
    if len(names) < 2:
        return []
    return [
        FunctionSide(name, name != own, bucket, summary)
        for bucket in ("stable", "unstable", "living")
        for name in names if name in store.ensembles
        for summary in read_summaries(store, name)
        if summary.bucket == bucket and summary.kind == "argmax"
    ]  # fmt: skip
