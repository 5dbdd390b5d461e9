"""An ensemble's feature pool: where its features came from, what training on does, and whether the paper's claims hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.pools import POOL_KINDS, AxisBand, PoolAt, PoolMeasure, holders_figure, pool_figure
from seedscope.app.findings.pool_verdict import EV_KEPT, PairSpread, PoolVerdict, judge_pool, least_difference
from seedscope.app.formats import percent
from seedscope.app.routes.address import Plain, Seed, StudyName
from seedscope.app.store.errors import BadValue
from seedscope.app.store.missing import Missing, pool_missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.stability import buckets, is_match
from seedscope.engine.contract.tables.pools import FeaturePool, PoolPoint
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
PER_PAGE = 50
CONTROL_SAYS = {"members": "single seeds", "fresh": "fresh seeds", "subset": "random features of the seeds"}


class EnsembleQuery(Plain):
    """Which ensemble's pool; the first that has one if not given. Empty values count as absent."""

    ensemble: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values):
        return {k: v for k, v in values.items() if v != ""} if isinstance(values, dict) else values


class PoolQuery(EnsembleQuery):
    """Which of its features are listed."""

    holders: Annotated[int, Field(ge=1, le=10**6, description="seeds that hold the feature")] | None = None
    seed: Annotated[Seed, Field(description="the seed that the feature came from")] | None = None
    first: Annotated[int, Field(ge=0, le=10**9, description="the first of them that is listed")] = 0


class PoolTableQuery(EnsembleQuery):
    """Which table is downloaded."""

    table: Literal["features", "curves"] = "features"


@dataclass(frozen=True)
class Given:
    """What one member gave."""

    seed: int
    n: int
    n_by_all: int  # of them, held by every member
    n_alone: int  # held by no other


@dataclass(frozen=True)
class PooledLine:
    """A pooled feature and the original that it was taken from, judged at the ensemble's own settings."""

    id: int  # its row in the pool
    seed: int
    feature: int
    holders: int
    density: float | None
    n_matched: int
    stability: float
    bucket: str
    explanation: str | None
    score: float | None


@dataclass(frozen=True)
class PoolPage:
    """`/s/{study}/pool`: the feature pool of one of its ensembles, beside what adds it where there is none."""

    study: Study
    ensemble: Ensemble
    ensembles: dict[str, bool]  # all of the study's, and whether there is a pool
    pool: FeaturePool | None
    sentence: str
    says: list[str]  # the verdict, claim by claim
    verdicts: list[PoolVerdict]  # at every length
    points: list[PoolPoint]
    at_length: list[PoolPoint]  # those after the length that was asked for
    pairs: PairSpread | None
    least_difference: float | None
    null_rates: dict[str, float]
    given: list[Given]
    holders: int | None
    seed: int | None
    first: int
    total: int
    features: list[PooledLine]
    folder: str | None  # of the pool on the server's disk
    missing: list[Missing]
    figure_first: Figure | None
    figure_list: list[Figure]
    nav_kinds: dict[str, str]  # {curve: what it is called}
    nav_pages: dict[str, str]  # {what the link says: address}


@render.page(router, "/s/{study}/pool", "study/pool.html", "pool")
def pool(request: Request, study: StudyName, asked: Annotated[PoolQuery, Query()]) -> PoolPage:
    """The unique features of all members as one SAE: who held them, and stability and EV as it is trained on."""
    store = request.app.state.studies.get(study)
    row = _chosen(store, asked)
    pools, record = store.pools, store.pools.rows.get(row.ensemble)
    points = pools.points(row.ensemble)
    pairs = pools.pairs(row.ensemble) if record else None
    verdicts = judge_pool(points, pairs)
    lines, total = _lines(store, row, asked) if record else ([], 0)
    counts = pools.given(row.ensemble)
    return PoolPage(
        study=store.study,
        ensemble=row,
        ensembles={name: name in pools.rows for name in store.ensembles},
        pool=record,
        sentence=sentence(row, record, verdicts),
        says=_says(row, record, verdicts, pairs),
        verdicts=verdicts,
        points=points,
        at_length=_at(points, record.tokens) if record else [],
        pairs=pairs,
        least_difference=least_difference(pairs),
        null_rates=store.null_rates(row.ensemble, row.theta) if record else {},
        given=_given(store, row, counts) if record else [],
        holders=asked.holders,
        seed=asked.seed,
        first=asked.first,
        total=total,
        features=lines,
        folder=str(store.path.parent / record.folder) if record else None,
        missing=[] if record else pool_missing(store.study, row),
        figure_first=_holders(record, counts, study) if record else None,
        figure_list=_figures(row, record, points, verdicts, pairs) if record else [],
        nav_kinds={curve: label for curve, (label, *_) in POOL_KINDS.items()},
        nav_pages=_pages(study, row.ensemble, asked, total),
    )


@router.get("/s/{study}/pool.csv", name="pool.csv")
@router.get("/s/{study}/pool.parquet", name="pool.parquet")
def pool_download(request: Request, study: StudyName, asked: Annotated[PoolTableQuery, Query()]) -> Response:
    """Every pooled feature with its original, or every SAE of every curve, as CSV or Parquet."""
    store = request.app.state.studies.get(study)
    name = _chosen(store, asked).ensemble
    if name not in store.pools.rows:
        raise BadValue("ensemble", repr(name), f"one with a pool; make it with: seedscope pool {study} {name}")
    table = store.pools.feature_table(name) if asked.table == "features" else store.pools.curve_table(name)
    return render.download(request, table, f"{study}-{name}-pool-{asked.table}")


def _chosen(store: StudyStore, asked: EnsembleQuery) -> Ensemble:
    """The ensemble that was asked for, else the first with a pool, else the first that is no control."""
    if asked.ensemble is not None:
        return store.ensemble(asked.ensemble)
    rows = list(store.ensembles.values())
    with_pool = [row for row in rows if row.ensemble in store.pools.rows]
    return [*with_pool, *(row for row in rows if row.control_of is None), *rows][0]


def _at(points: list[PoolPoint], tokens: int) -> list[PoolPoint]:
    by_curve = {each.curve: each for each in points if each.tokens == tokens}
    return [by_curve[curve] for curve in POOL_KINDS if curve in by_curve]


# -- in words ----------------------------------------------------------------------------------------------------


def sentence(row: Ensemble, record: FeaturePool | None, verdicts: list[PoolVerdict]) -> str:
    """The page in one sentence, made from its numbers."""
    if record is None:
        return f"The unique features of {row.ensemble}’s {row.n_members} seeds were not pooled."
    unique = (
        f"{sum(record.unique_by_holders):,} unique features of {row.n_members} seeds make a pool of {record.d_sae:,}"
    )
    asked = next((each for each in verdicts if each.tokens == record.tokens), None)
    if asked is None or asked.is_more_stable is None:
        return f"{unique}."
    more = "more stable" if row.shared_start == "no" else "more alike"
    stable = (
        f"two such pools are {more} than every control" if asked.is_more_stable else "two such pools are not " + more
    )
    if not asked.is_more_stable and any(each.compared == "more" for each in asked.against):
        stable = f"two such pools are {more} than some controls, not than all"
    kept = "EV is kept" if asked.keeps_ev else "EV is not kept"
    joined = "and" if asked.is_more_stable == asked.keeps_ev else "but"
    return f"{unique}; {stable}, {joined} {kept}."


def _says(
    row: Ensemble, record: FeaturePool | None, verdicts: list[PoolVerdict], pairs: PairSpread | None
) -> list[str]:
    asked = next((each for each in verdicts if record and each.tokens == record.tokens), None)
    if record is None or asked is None or (shared := asked.against[0].shared) is None:
        return []
    word = "stability" if row.shared_start == "no" else "agreement"
    first, sentences = asked.against[0], []
    others = ", ".join(
        f"{CONTROL_SAYS[each.control]} {percent(each.control_shared)}"
        for each in asked.against
        if each.control_shared is not None
    )
    length = f"After {record.tokens:,} more tokens" if record.tokens else "As they were taken"
    sentences.append(
        f"More {word}? {length} two pools of disjoint halves of the seeds share {percent(shared)} of their living features, "
        f"with as much training on {others}: {_compared(asked)}."
    )
    kept = f"kept, as a loss of at most {EV_KEPT:g} counts as none" if first.keeps_ev else "not kept"
    beside = CONTROL_SAYS[first.control]
    sentences.append(
        f"EV kept? The two pools reach {first.ev:.3f}, {beside} trained on as long {first.control_ev:.3f}: {kept}."
    )
    if len(verdicts) > 1:
        more, ev = ([each.tokens for each in verdicts if getattr(each, n)] for n in ("is_more_stable", "keeps_ev"))
        sentences.append(
            f"And with another length? Of {len(verdicts)} lengths up to {verdicts[-1].tokens:,} more tokens, {word} is higher "
            f"than every control’s at {_lengths(more, verdicts)}, EV is kept at {_lengths(ev, verdicts)}."
        )
    return sentences


def _compared(asked: PoolVerdict) -> str:
    by = {
        kind: [CONTROL_SAYS[e.control] for e in asked.against if e.compared == kind]
        for kind in ("more", "equal", "less")
    }
    words = {"more": "more than", "equal": "no more or less than", "less": "less than"}
    parts = "; ".join(f"{words[kind]} {_listed(names)}" for kind, names in by.items() if names)
    return parts or "with so few seeds nobody can tell whether that is more"


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _lengths(lengths: list[int], verdicts: list[PoolVerdict]) -> str:
    if len(lengths) == len(verdicts):
        return "every one"
    return _listed([f"{tokens:,}" for tokens in lengths]) if lengths else "none"


# -- where features came from ------------------------------------------------------------------------------------


def _given(store: StudyStore, row: Ensemble, counts: list[tuple[int, int, int]]) -> list[Given]:
    given = []
    for member in store.members(row.ensemble):
        own = {holders: n for seed, holders, n in counts if seed == member.seed}
        given.append(Given(member.seed, sum(own.values()), own.get(row.n_members, 0), own.get(1, 0)))
    return given


def _lines(store: StudyStore, row: Ensemble, asked: PoolQuery) -> tuple[list[PooledLine], int]:
    if asked.seed is not None:
        store.member(row.ensemble, asked.seed)
    pooled, total = store.pools.features(
        row.ensemble, holders=asked.holders, seed=asked.seed, first=asked.first, n=PER_PAGE
    )
    if asked.first and asked.first >= total:
        raise BadValue("first", str(asked.first), f"0 to {max(total - 1, 0)}: {total} features are listed")
    features = store.features_at(row.ensemble, [(each.seed, each.feature) for each in pooled])
    originals = [features[each.seed, each.feature] for each in pooled]
    counts = np.array([is_match(own.cosines, row.theta).sum() for own in originals], np.int64)
    dead = np.array([bool(own.dead) for own in originals], bool)
    named = buckets(counts, row.n_comparisons, dead, row.epsilon).tolist()
    lines = []
    for each, own, n_matched, bucket in zip(pooled, originals, counts.tolist(), named, strict=True):
        lines.append(
            PooledLine(each.id, each.seed, each.feature, each.holders, each.density, n_matched,
                       n_matched / row.n_comparisons, bucket, own.explanation, own.score)
        )  # fmt: skip
    return lines, total


def _pages(study: str, ensemble: str, asked: PoolQuery, total: int) -> dict[str, str]:
    """The places around the listed features."""
    base, pages = f"/s/{study}/pool", {}
    same = {"ensemble": ensemble, "holders": asked.holders, "seed": asked.seed}
    if asked.first:
        pages["before"] = render.url(base, **same, first=max(asked.first - PER_PAGE, 0) or None) + "#features"
    if asked.first + PER_PAGE < total:
        pages["further"] = render.url(base, **same, first=asked.first + PER_PAGE) + "#features"
    return pages


# -- figures -----------------------------------------------------------------------------------------------------


def _holders(record: FeaturePool, counts: list[tuple[int, int, int]], study: str) -> Figure:
    pooled = [sum(n for _, holders, n in counts if holders == h + 1) for h in range(len(record.unique_by_holders))]
    links = [
        render.url(f"/s/{study}/pool", ensemble=record.ensemble, holders=h + 1) + "#features"
        for h in range(len(pooled))
    ]
    return holders_figure(record.unique_by_holders, pooled, record.theta, links)


def _figures(
    row: Ensemble,
    record: FeaturePool,
    points: list[PoolPoint],
    verdicts: list[PoolVerdict],
    pairs: PairSpread | None,
) -> list[Figure]:
    def drawn(
        what: PoolMeasure,
        values: Callable[[PoolPoint], Sequence[float]],
        n: int | None,
        mean: Callable[[PoolPoint], float | None] = lambda p: None,
        bands: Sequence[AxisBand] = (),
    ) -> list[Figure]:
        at = [
            PoolAt(p.curve, p.tokens, fmean(values(p)) if (of_all := mean(p)) is None else of_all, list(values(p)))
            for p in points
            if values(p)
        ]
        return [pool_figure(what, at, record.tokens, bands, n)] if at else []

    if not points:
        return []
    n, word = record.n_evaluated, "stability" if row.shared_start == "no" else "agreement"
    asked = next((each for each in verdicts if each.tokens == record.tokens), None)
    of_pairs = (
        [AxisBand(f"{pairs.n_pairs} pairs of seeds as they are", pairs.mean, pairs.low, pairs.high)] if pairs else []
    )
    title = f"Does pooling raise {word}?"
    if asked and asked.is_more_stable is not None:
        title = (
            "Two pools agree more than every control"
            if asked.is_more_stable
            else "Two pools do not agree more than all controls"
        )
    share = PoolMeasure(
        "pool_shared", title, "share of living features in the other",
        f"Share of both SAEs’ living features with a counterpart at θ = {record.theta:.2f} in the other. Band: pairs of seeds as "
        "they are, smallest to largest.", ".1%",
    )  # fmt: skip
    ev = PoolMeasure(
        "pool_ev", f"EV is {'kept' if asked.keeps_ev else 'not kept'}" if asked else "What is explained?",
        "explained variance", "Explained variance of held-out activations.", ".3f",
    )  # fmt: skip
    loss = PoolMeasure("pool_loss", "What does the model lose?", "next-token loss, nats per token",
                               "Next-token loss with the reconstruction in place of the activations.", ".3f")  # fmt: skip
    dead = PoolMeasure("pool_dead", "How many features never fire?", "share of dead features",
                               "Share of features that fire on none of the held-out tokens.", ".1%")  # fmt: skip
    l0 = PoolMeasure("pool_l0", "How many features fire at once?", "L0", "Active features per token.", ".1f")
    shares = drawn(share, lambda p: p.shares, n, lambda p: p.shared, of_pairs) if any(p.shares for p in points) else []
    return [
        *shares, *drawn(ev, lambda p: p.evs, n), *drawn(loss, lambda p: p.losses, record.n_loss_tokens),
        *drawn(dead, lambda p: p.deads, n), *drawn(l0, lambda p: p.l0s, n),
    ]  # fmt: skip
