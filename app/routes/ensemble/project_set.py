"""Any set of features projected on the spans of the other seeds' sets, now, by the live engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.spans import CapturedCurve, captured_figure
from seedscope.app.formats import percent
from seedscope.app.lens import RULE_NAMES
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.live.client import EngineRefusedError
from seedscope.app.routes.address import EnsembleName, Filter, JudgedEnsemble, StudyName, judged
from seedscope.app.routes.span_members import TIME_LIMIT_S, Members, chosen_members, known, span_of
from seedscope.app.store.errors import BadValue
from seedscope.app.store.feature_sets import FeatureSets, feature_sets
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.masks import packed
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.contract.tables.study import Ensemble

router = APIRouter()
PAGE_ROWS = 25
CURVES = ("within", "cross", "random_set", "stable")  # PCA of activations is stored, not asked of the engine
NOT_A_FILTER = ("rank", "members", "order", "dir", "page", "sort", "view", "bucket")  # of an address: no chip
CHIPS = {
    "seed": "list seed {}", "id": "list #{}", "theta": "θ = {}", "epsilon": "ε = {}", "rule": "match rule: {}",
    "stability_min": "stability ≥ {}", "stability_max": "stability ≤ {}", "density_min": "density ≥ {}",
    "density_max": "density ≤ {}", "trigger": "trigger: {}", "q": "“{}”", "score_min": "score ≥ {}",
    "cofire_min": "fires alike ≥ {}", "predicted_min": "predicted p ≥ {}", "predicted_max": "predicted p ≤ {}",
}  # fmt: skip
DEAD_CHIPS = {"count": "dead counted in", "only": "dead ones only", "exclude": "without dead ones"}


class ProjectQuery(Members):
    """Which features, at which rank, in whose spans, and how the table of them is sorted."""

    rank: Annotated[int, Field(ge=1, description="directions of each span")] | None = None
    order: Annotated[Literal["others", "own", "difference"], Field(description="what features are sorted by")] = (
        "others"
    )
    page: Annotated[int, Field(ge=1, le=100_000)] = 1

    @property
    def descending(self) -> bool:
        """Largest first unless told otherwise."""
        return self.dir != "asc"


@dataclass(frozen=True)
class MemberSpan:
    """One member's set."""

    seed: int
    n: int  # features of the set that have a direction
    n_undirected: int  # left out
    n_fitted: int | None  # that its span is fitted on, where its curve stops; None: it is not compared, as is the next
    effective_rank: float | None


@dataclass(frozen=True)
class ProjectedFeature:
    """One feature of the set; None: no span of that rank."""

    seed: int
    feature: int
    bucket: str | None
    density: float | None
    top_tokens: list[str] | None
    own: float | None
    others: float | None
    difference: float | None  # own less others


@dataclass(frozen=True)
class ProjectPage:
    """`/s/{study}/{ensemble}/subspaces/project`: what spans of a set capture of it from seed to seed."""

    study: str
    ensemble: str
    filter: dict[str, Any]  # of the address, with theta and epsilon
    subject: str  # the set in words
    d_in: int
    rank: int | None  # None: not asked for, and nothing was projected
    sentence: str
    nav_query: ProjectQuery
    nav_seeds: dict[int, bool]  # whether each is projected
    nav_chips: dict[str, dict[str, Any]]  # what each says: the address's parameters without it
    nav_links: dict[str, Any]
    nav_alone: bool  # not a part of another page, whose address then stays
    nav_push: str | None
    # Where nothing could be projected, only the sentence says why.
    ranks: Sequence[int] = ()
    n: int = 0  # features of the set in the members compared
    n_splits: int = 0  # random halvings that are averaged over
    remarks: Sequence[str] = ()
    curves: Sequence[CapturedCurve] = ()
    overlap: CapturedCurve | None = None
    members: Sequence[MemberSpan] = ()
    total: int = 0  # features listed on all pages
    page: int = 1
    n_pages: int = 1
    features: Sequence[ProjectedFeature] = ()
    figure_captured: Figure | None = None
    nav_reached: int | None = None  # the largest rank that any span has, where none has the one asked for
    nav_status: int = 200


@render.page(router, "/s/{study}/{ensemble}/subspaces/project", "ensemble/project_set.html", "project", kept=False)
@asks_engine
def project(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ProjectQuery], Depends(judged(ProjectQuery))],
) -> Asking[ProjectPage]:
    """A set of features, projected now: captured energy against rank, and every feature's energy at one rank."""
    store, row, asked = opened
    chosen, sets = _sets(store, row, asked)
    here = f"/s/{study}/{ensemble}/subspaces/project"
    alone = not render.wants_fragment(request) or here in request.headers.get("HX-Current-URL", here)
    page = ProjectPage(
        study=study,
        ensemble=ensemble,
        filter=asked.model_dump(exclude={"v", "embed", "sort", "view", "rank", "members", "order", "dir", "page"}),
        subject=_subject(asked),
        d_in=row.d_out,
        rank=asked.rank,
        sentence="",
        nav_query=asked,
        nav_seeds={m.seed: m.seed in chosen for m in store.members(ensemble)},
        nav_chips=_chips(asked),
        nav_links=asked.judgement(),
        nav_alone=alone,
        nav_push=render.url(here, **asked.parameters()) if alone else None,
    )
    # One seed is a wrong address, and its page keeps the form to mend it with; a filter that finds little is none.
    wrong = len(chosen) < 2
    if (unfit := _unfit(chosen, sets, asked)) and not (wrong and request.url.path.endswith(".json")):
        return replace(page, sentence=unfit[0].upper() + unfit[1:] + ".", nav_status=422 if wrong else 200)
    arrays = (yield _question(store, row, asked, chosen, sets)).arrays
    rank = int(arrays["rank"][0])
    curves = [_curve(name, arrays) for name in CURVES if name in arrays]
    subject, n = _subject(asked), len(arrays["seed"])
    by_name = {curve.name: curve for curve in curves}
    members, listed = _members(arrays), _listed(arrays, asked)
    n_pages = max(math.ceil(len(listed) / PAGE_ROWS), 1)
    if asked.page > n_pages:
        raise BadValue("page", str(asked.page), f"1 to {n_pages}")
    shown = listed[(asked.page - 1) * PAGE_ROWS : asked.page * PAGE_ROWS]
    fitted = [m.n_fitted for m in members if m.n_fitted is not None]
    reached = max(fitted) if max(fitted) < rank else None
    return replace(
        page,
        rank=rank,
        ranks=arrays["ranks"].tolist(),
        n=n,
        n_splits=int(arrays["n_splits"][0]),
        sentence=_sentence(by_name, rank, row.d_out, subject, n, len(fitted)),
        remarks=_remarks(row, asked, arrays, members, rank),
        curves=curves,
        overlap=_curve("overlap", arrays),
        members=members,
        total=len(listed),
        page=asked.page,
        n_pages=n_pages,
        features=_described(store, ensemble, arrays, shown, asked),
        figure_captured=captured_figure(
            curves,
            d=row.d_out,
            rank=rank,
            n=f"{n:,} {subject} of {len(fitted)} seeds",
            subject=subject,
            bucket=asked.bucket if asked.bucket in ("stable", "middle", "unstable") else None,
            fitted=f"half of a seed’s ({span_of(fitted)})",
            id="projected",
        ),
        nav_reached=reached,
    )


@router.get("/s/{study}/{ensemble}/subspaces/project.csv", name="project.csv")
@router.get("/s/{study}/{ensemble}/subspaces/project.parquet", name="project.parquet")
@asks_engine
def project_download(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ProjectQuery], Depends(judged(ProjectQuery))],
) -> Asking[Response]:
    """Every feature that the page lists, with its energies, in the page's order."""
    store, row, asked = opened
    arrays = (yield _question(store, row, asked, *_sets(store, row, asked))).arrays
    listed = _listed(arrays, asked)
    columns = {name: arrays[name][listed] for name in ("seed", "feature", "own", "others")}
    columns["difference"] = columns["own"] - columns["others"]
    n = len(listed)
    table = {"ensemble": [ensemble] * n, **columns, "rank": np.repeat(arrays["rank"], n)}
    return render.download(request, _table(table), f"{study}-{ensemble}-projected")


@router.get("/s/{study}/{ensemble}/subspaces/project/curves.csv", name="project_curves.csv")
@router.get("/s/{study}/{ensemble}/subspaces/project/curves.parquet", name="project_curves.parquet")
@asks_engine
def curves_download(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ProjectQuery], Depends(judged(ProjectQuery))],
) -> Asking[Response]:
    """The curves that the page draws, and the overlap of spans, one line per curve and rank."""
    store, row, asked = opened
    arrays = (yield _question(store, row, asked, *_sets(store, row, asked))).arrays
    names = [name for name in (*CURVES, "overlap") if name in arrays]
    ranks = arrays["ranks"]
    values = np.concatenate([arrays[name] for name in names], 1)
    table = {
        "curve": np.repeat(names, len(ranks)), "rank": np.tile(ranks, len(names)), "mean": values[0], "spread": values[1],
        "n_pairs": values[2].astype(np.int64), "random_subspace": np.tile(ranks, len(names)) / row.d_out,
    }  # fmt: skip
    return render.download(request, _table(table), f"{study}-{ensemble}-captured")


def _table(columns: dict[str, Any]) -> pa.Table:
    """NaN as what is not there."""
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _sets(store: StudyStore, row: Ensemble, asked: ProjectQuery) -> tuple[list[int], FeatureSets]:
    """The members asked for and their sets; raises BadValue for a rank or members that there are not."""
    if asked.rank is not None and asked.rank > row.d_out:
        raise BadValue("rank", str(asked.rank), f"1 to {row.d_out}, the width of the decoder rows")
    if asked.seed is not None:
        store.member(row.ensemble, asked.seed)
    chosen = chosen_members(store, row, asked)
    return chosen, feature_sets(store, asked.query(row.ensemble), chosen)


def _unfit(chosen: list[int], sets: FeatureSets, asked: ProjectQuery) -> str | None:
    """Why these sets cannot be compared; None where they can."""
    if len(chosen) < 2:
        return f"found one seed ({chosen[0]}), expected two or more: spans are compared across seeds; tick another one"
    if (sets.found.sum(1) > 1).sum() < 2:
        return (
            f"found {sets.found.sum():,} {_subject(asked)} in {len(chosen)} seeds, expected two or more in each of two "
            "seeds: take a wider filter or more seeds"
        )
    return None


def _question(store: StudyStore, row: Ensemble, asked: ProjectQuery, chosen: list[int], sets: FeatureSets) -> Ask:
    """What the engine is asked; what it would refuse is refused before."""
    if unfit := _unfit(chosen, sets, asked):
        raise EngineRefusedError("query", unfit)
    query = LiveQuery(
        "project", store.study.study, row.ensemble, row.folder, tuple(m.seed for m in store.members(row.ensemble)),
        members=tuple(chosen), rank=asked.rank or 0, rows=packed(sets.found), living=packed(sets.living),
        stable=packed(sets.stable),
    )  # fmt: skip
    return Ask(query, TIME_LIMIT_S)


def _subject(asked: Filter) -> str:
    """The set in words; what chips say is not repeated."""
    filtered = {
        name for name in asked.parameters() if name not in (*NOT_A_FILTER, "seed", "id", "theta", "epsilon", "rule")
    }
    return f"{asked.bucket + ' ' if asked.bucket else ''}features{' of this filter' if filtered else ''}"


def _curve(name: str, arrays: dict[str, np.ndarray]) -> CapturedCurve:
    mean, spread, n_pairs = arrays[name]
    return CapturedCurve(
        name, tuple(arrays["ranks"].tolist()), tuple(map(known, mean)), tuple(map(known, spread)),
        tuple(n_pairs.astype(int).tolist()),
    )  # fmt: skip


def _members(arrays: dict[str, np.ndarray]) -> list[MemberSpan]:
    spans = zip(arrays["n_fitted"].tolist(), arrays["effective_rank"].tolist(), strict=True)
    compared = dict(zip(arrays["compared"].tolist(), spans, strict=True))
    rows = zip(*(arrays[name].tolist() for name in ("asked", "n_rows", "n_undirected")), strict=True)
    return [MemberSpan(seed, n, without, *compared.get(seed, (None, None))) for seed, n, without in rows]


def _listed(arrays: dict[str, np.ndarray], asked: ProjectQuery) -> np.ndarray:
    """Indices of the features that the table lists, sorted; those without a value come last."""
    values = arrays["own"] - arrays["others"] if asked.order == "difference" else arrays[asked.order]
    listed = np.ones(len(values), bool)
    for name, wanted in (("seed", asked.seed), ("feature", asked.id)):
        if wanted is not None:
            listed &= arrays[name] == wanted
    order = np.lexsort((arrays["feature"], arrays["seed"], -values if asked.descending else values))  # NaN sorts last
    return order[listed[order]]


def _described(
    store: StudyStore, ensemble: str, arrays: dict[str, np.ndarray], shown: np.ndarray, asked: ProjectQuery
) -> list[ProjectedFeature]:
    places = list(zip(arrays["seed"][shown].tolist(), arrays["feature"][shown].tolist(), strict=True))
    features = store.features_at(ensemble, places) if places else {}
    activity = store.has_tokens(ensemble)
    described = []
    for place, own, others in zip(places, arrays["own"][shown], arrays["others"][shown], strict=True):
        feature = features[place]
        tokens = [store.tokens[i] for i in feature.top_token_ids if i >= 0] if activity else None
        described.append(
            ProjectedFeature(
                *place,
                asked.bucket_of(feature),
                feature.density,
                tokens,
                known(own),
                known(others),
                known(own - others),
            )
        )
    return described


def _sentence(curves: dict[str, CapturedCurve], rank: int, d: int, subject: str, n: int, n_members: int) -> str:
    """What was found, with its numbers."""
    cross, within = curves["cross"].at(rank), curves["within"].at(rank)
    of = f"n = {n:,} {subject} of {n_members} seeds"
    if cross is None:
        return f"No span of these sets has {rank:,} directions: too few features to fit so many ({of})."
    at = curves["cross"].ranks.index(rank)
    spread = curves["cross"].spread[at] or 0.0
    beside = [f"a random subspace {percent(rank / d)}"]
    if "random_set" in curves and (random := curves["random_set"].at(rank)) is not None:
        beside.insert(0, f"that of as many random living features {percent(random)}")
    own = f"their own seed’s {percent(within)}, " if within is not None else ""
    return (
        f"At rank {rank:,} of {d:,} the span of another seed’s {subject} captures {percent(cross)} of their energy "
        f"(± {100 * spread:.1f} over {curves['cross'].n_pairs[at]:,} ordered pairs); {own}"
        f"{' and '.join(beside)}; {of}."
    )


def _remarks(
    row: Ensemble, asked: ProjectQuery, arrays: dict[str, np.ndarray], members: list[MemberSpan], rank: int
) -> list[str]:
    """What a reader of these numbers should know."""
    remarks = []
    n_all, n_splits = row.n_members, int(arrays["n_splits"][0])
    if not asked.members and len(members) < n_all:
        remarks.append(
            f"The first {len(members)} of {n_all} seeds: all would take longer than a page can wait. Choose others below."
        )
    if few := [m for m in members if m.n_fitted is None]:
        listed = ", ".join(f"seed {m.seed}: {m.n}" for m in few)
        remarks.append(f"Left out, as a set needs two features, one to fit and one to measure ({listed}).")
    if short := [m for m in members if m.n_fitted is not None and m.n_fitted < rank]:
        listed = ", ".join(f"seed {m.seed} at {m.n_fitted}" for m in short[:12]) + (", .." if len(short) > 12 else "")
        remarks.append(
            f"Rank {rank:,} takes {2 * rank:,} features of a seed, half of them to fit: {len(short)} of {len(members) - len(few)} "
            f"curves stop before it ({listed})."
        )
    if without := sum(m.n_undirected for m in members):
        remarks.append(f"{without:,} features without a direction are left out.")
    if "stable" not in arrays:
        remarks.append("A seed has no stable feature, so there is no span of stable ones to compare with.")
    if asked.seed is not None or asked.id is not None:
        remarks.append("Seed and index choose what the table lists; sets and spans are of all seeds.")
    times = (
        f"{n_splits} random halvings of each set"
        if n_splits > 1
        else "one random halving of each set, as more would take too long"
    )
    remarks.append(
        f"Means over {times}; own: in the span of the half without the feature; others: in those of both halves of every "
        "other seed."
    )
    return remarks


def _chips(asked: ProjectQuery) -> dict[str, dict[str, Any]]:
    """{what a part of the filter says: the address's parameters without it}."""
    parameters = asked.parameters(page=1)
    chips = {}
    for name, value in parameters.items():
        if name not in NOT_A_FILTER:
            says = DEAD_CHIPS[value] if name == "dead" else CHIPS[name].format(_chip_value(name, value))
            chips[says] = {k: v for k, v in parameters.items() if k != name}
    return chips


def _chip_value(name: str, value: Any) -> Any:
    """A filter's value as pages write it: densities in percent, rules by their names."""
    if name.startswith("density_"):
        return f"{100 * value:.10g}\u00a0%"
    return RULE_NAMES[value] if name == "rule" else value
