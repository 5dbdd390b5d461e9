"""Seed x seed: how much any two members share, and one pair feature by feature, as stored or matched now."""

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field

from seedscope.app import render
from seedscope.app.figures.drawing import Figure, pair_links
from seedscope.app.figures.members import pair_histogram, seed_matrix
from seedscope.app.lens import measure_of
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.routes.address import (
    RULE_SAYS,
    EnsembleJudgement,
    EnsembleName,
    JudgedEnsemble,
    Seed,
    StudyName,
    judged,
)
from seedscope.app.store.missing import Missing
from seedscope.app.store.pairs import PairRows
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.study import Ensemble, Study

router, asking_router = APIRouter(), APIRouter()
_PAIRS = pa.schema(
    {"seed": pa.int64(), "other": pa.int64(), "n_anchors": pa.int64(), "n_living": pa.int64(), "n_matched": pa.int64(),
     "n_matched_living": pa.int64(), "theta": pa.float64(), "mean_cosine": pa.float64(), "gap": pa.float64()}
)  # fmt: skip


class MembersQuery(EnsembleJudgement):
    """Which pair, if any, and how many lines of its lists."""

    a: Seed | None = None
    b: Seed | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 20


class MatchQuery(EnsembleJudgement):
    """A pair to be matched now."""

    a: Seed
    b: Seed
    absolute: bool = False
    limit: Annotated[int, Field(ge=1, le=500)] = 20


@dataclass(frozen=True)
class PairLine:
    """One anchor feature and its partner."""

    feature: int
    partner: int | None
    cosine: float | None  # what theta is compared with, under `active` a correlation; None where the rule forms no pair
    runner_up: float  # cosine of the second-nearest decoder row, under every rule
    mutual: bool
    dead: bool | None  # None where nobody knows


@dataclass(frozen=True)
class Contested:
    """A feature that several anchor features have as their match; strongest first."""

    partner: int
    claimants: list[PairLine]


@dataclass(frozen=True)
class PairDetail:
    """Member a's features in member b; the lists are cut at the limit, the counts are whole."""

    a: int
    b: int
    rule: str
    theta: float
    n_anchors: int  # features of a that are judged
    n_matched: int
    n_contested: int  # features of b that more than one of them matches
    n_unclaimed: int  # features of b that none of them matches
    mean_cosine: float  # over the pairs that the rule forms; under `active` of their correlations
    gap: float | None  # proven relative distance of a one-to-one matching to the best one
    matched: list[PairLine]  # best first
    unmatched: list[PairLine]  # nearest miss first
    contested: list[Contested]  # most claimants first


@dataclass(slots=True)  # frozen ones take ten times as long to make, and 96 seeds have 9,120
class Shared:
    """One cell of the seed x seed matrix."""

    a: int
    b: int
    n_anchors: int
    n_matched: int
    shared: float
    mean_cosine: float
    gap: float


@dataclass(frozen=True)
class MembersPage:
    """`/s/{study}/{ensemble}/members`: the matrix, and one pair where `a` and `b` are given."""

    study: Study
    ensemble: Ensemble
    theta: float
    rule: str
    rules: list[str]
    dead: str | None
    not_computed: str | None  # how much one-to-one matching of all pairs would be, where it was not done
    missing: list[Missing]
    mean_shared: float
    mean_cosine: float
    pairs: list[Shared]
    pair: PairDetail | None
    nav_seeds: list[int]
    figure_matrix: Figure
    figure_pair: Figure | None
    nav_query: MembersQuery
    nav_rules: dict[str, str]
    nav_judged: str
    nav_push: str


@dataclass(frozen=True)
class MatchPage:
    """`/s/{study}/{ensemble}/members/match`: a pair matched now by the live engine."""

    study: Study
    ensemble: Ensemble
    theta: float
    rule: str
    absolute: bool
    pair: PairDetail
    figure_pair: Figure
    nav_query: MatchQuery
    nav_alone: bool  # not a part of the page of pairs


@render.page(router, "/s/{study}/{ensemble}/members", "ensemble/members.html", "members")
def members(
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[MembersQuery], Depends(judged(MembersQuery))],
) -> MembersPage:
    """Which share of one seed's features comes back in another, for all pairs; with a and b, that pair's lists."""
    store, row, asked = opened
    store.require_comparisons(ensemble)
    pairs = store.pairs(ensemble, asked.rule)
    cells = []
    for pair in pairs.summaries(asked.theta):
        n_anchors, n = (
            (pair.n_anchors, pair.n_matched) if asked.dead == "count" else (pair.n_living, pair.n_matched_living)
        )
        cells.append(Shared(pair.seed, pair.other, n_anchors, n, n / max(n_anchors, 1), pair.mean_cosine, pair.gap))
    detail = drawn = None
    base = f"/s/{study}/{ensemble}"
    if asked.a is not None and asked.b is not None:
        _check_pair(store, ensemble, asked.a, asked.b)
        gap = next(cell.gap for cell in cells if (cell.a, cell.b) == (asked.a, asked.b))
        rows = pairs.rows(asked.a, asked.b)
        detail = _detail(rows, row, asked, asked.a, asked.b, gap=gap if asked.rule in ("hungarian", "both") else None)
        drawn = _drawn(rows, asked, asked.a, asked.b)
    seeds = [m.seed for m in store.members(ensemble)]
    here = render.url(f"{base}/members", **asked.parameters(a=None, b=None))
    return MembersPage(
        study=store.study,
        ensemble=row,
        theta=asked.theta,
        rule=asked.rule,
        rules=store.rules(ensemble),
        dead=asked.dead,
        not_computed=None if "hungarian" in store.rules(ensemble) else _price(row),
        missing=list(store.missing(ensemble).values()),
        mean_shared=fmean(c.shared for c in cells),
        mean_cosine=fmean(c.mean_cosine for c in cells),
        pairs=cells,
        pair=detail,
        nav_seeds=seeds,
        figure_matrix=seed_matrix(
            seeds, {(c.a, c.b): c.shared for c in cells}, pair_links(here, seeds), asked.theta, asked.rule
        ),
        figure_pair=drawn,
        nav_query=asked,
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_judged=asked.judged(activity=store.has(ensemble, "activity")),
        nav_push=render.url(f"{base}/members", **asked.parameters()),
    )


@router.get("/s/{study}/{ensemble}/members.csv", name="members.csv")
@router.get("/s/{study}/{ensemble}/members.parquet", name="members.parquet")
def members_download(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[MembersQuery], Depends(judged(MembersQuery))],
) -> Response:
    """The complete matching of a pair, or the matrix where no pair is named, as CSV or Parquet."""
    store, _, asked = opened
    store.require_comparisons(ensemble)
    pairs = store.pairs(ensemble, asked.rule)
    name = f"{study}-{ensemble}-{asked.rule}"
    if asked.a is not None and asked.b is not None:
        _check_pair(store, ensemble, asked.a, asked.b)
        rows, name = pairs.rows(asked.a, asked.b), f"{name}-{asked.a}-{asked.b}"
        columns = {
            "partner": rows.partner,
            measure_of(asked.rule): rows.cosine,
            "runner_up": rows.runner_up,
            "mutual": rows.mutual,
        }
        dead = pa.array(rows.dead, mask=None if rows.activity else ~rows.dead)
        table = pa.table({"feature": np.arange(len(rows.cosine))} | columns | {"dead": dead})
    else:
        lives = store.has(ensemble, "activity")  # else nobody knows which do
        lines = [
            {"seed": p.seed, "other": p.other, "n_anchors": p.n_anchors, "n_living": p.n_living if lives else None,
             "n_matched": p.n_matched, "n_matched_living": p.n_matched_living if lives else None, "theta": asked.theta,
             "mean_cosine": p.mean_cosine, "gap": p.gap}
            for p in pairs.summaries(asked.theta)
        ]  # fmt: skip
        table = pa.Table.from_pylist(lines, schema=_PAIRS)
        table = table.rename_columns([name.replace("cosine", measure_of(asked.rule)) for name in table.column_names])
    return render.download(request, table, name)


@render.page(asking_router, "/s/{study}/{ensemble}/members/match", "ensemble/match.html", "match", kept=False)
@asks_engine
def match(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[MatchQuery], Depends(judged(MatchQuery))],
) -> Asking[MatchPage]:
    """Two members matched now, under any rule, by the live engine."""
    store, row, asked = opened
    store.require_comparisons(ensemble)
    _check_pair(store, ensemble, asked.a, asked.b)
    seeds = tuple(m.seed for m in store.members(ensemble))
    query = LiveQuery(
        "pair",
        study,
        ensemble,
        row.folder,
        seeds,
        seed=asked.a,
        other=asked.b,
        rule=asked.rule,
        absolute=asked.absolute,
    )
    answer = yield Ask(query)
    arrays = answer.arrays
    columns = {name: arrays[name] for name in ("partner", "cosine", "runner_up", "mutual")}
    rows = PairRows(**columns, dead=store.dead(ensemble, asked.a), activity=store.has(ensemble, "activity"))
    return MatchPage(
        study=store.study,
        ensemble=row,
        theta=asked.theta,
        rule=asked.rule,
        absolute=asked.absolute,
        pair=_detail(rows, row, asked, asked.a, asked.b, gap=answer.gap),
        figure_pair=_drawn(rows, asked, asked.a, asked.b),
        nav_query=asked,
        nav_alone=not render.wants_fragment(request),
    )


def _check_pair(store: StudyStore, ensemble: str, a: int, b: int) -> None:
    store.member(ensemble, a)
    store.other(ensemble, a, b)


def _price(row: Ensemble) -> str:
    pairs = row.n_members * (row.n_members - 1) // 2
    return f"{pairs:,} pairs of {row.d_sae:,} × {row.d_sae:,} features"


def _judged(rows: PairRows, asked: MembersQuery | MatchQuery) -> np.ndarray:
    """Indices of the anchor's features that count."""
    return np.arange(len(rows.cosine)) if asked.dead == "count" else np.flatnonzero(~rows.dead)


def _detail(
    rows: PairRows, row: Ensemble, asked: MembersQuery | MatchQuery, a: int, b: int, *, gap: float | None
) -> PairDetail:
    anchors = _judged(rows, asked)
    by_cosine = anchors[np.argsort(-rows.cosine[anchors], kind="stable")]
    hits = is_match(rows.cosine[by_cosine], asked.theta)
    matched, unmatched = by_cosine[hits], by_cosine[~hits]
    partners, claims = np.unique(rows.partner[matched], return_counts=True)
    contested = partners[claims > 1][np.argsort(-claims[claims > 1], kind="stable")]
    paired = rows.cosine[anchors] > NO_MATCH
    return PairDetail(
        a=a,
        b=b,
        rule=asked.rule,
        theta=asked.theta,
        n_anchors=len(anchors),
        n_matched=len(matched),
        n_contested=len(contested),
        n_unclaimed=row.d_sae - len(partners),
        mean_cosine=float(rows.cosine[anchors][paired].mean()) if paired.any() else 0.0,
        gap=gap,
        matched=[_line(rows, i) for i in matched[: asked.limit]],
        unmatched=[_line(rows, i) for i in unmatched[: asked.limit]],
        contested=[
            Contested(int(p), [_line(rows, i) for i in matched[rows.partner[matched] == p]])
            for p in contested[: asked.limit]
        ],
    )


def _line(rows: PairRows, i: int) -> PairLine:
    paired = bool(rows.cosine[i] > NO_MATCH)
    return PairLine(
        feature=int(i),
        partner=int(rows.partner[i]) if paired else None,
        cosine=float(rows.cosine[i]) if paired else None,
        runner_up=float(rows.runner_up[i]),
        mutual=bool(rows.mutual[i]),
        dead=bool(rows.dead[i]) if rows.activity or rows.dead[i] else None,
    )


def _drawn(rows: PairRows, asked: MembersQuery | MatchQuery, a: int, b: int) -> Figure:
    anchors = _judged(rows, asked)
    counts, _ = np.histogram(rows.cosine[anchors], bins=np.arange(-1, 1.0001, 0.02))
    n_none = int((rows.cosine[anchors] <= NO_MATCH).sum())
    counts[0] -= n_none
    return pair_histogram(counts.tolist(), n_none, asked.theta, a, b, asked.rule)
