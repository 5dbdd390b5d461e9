"""The feature table, its downloads, and a random feature."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import Field

from seedscope.app import render
from seedscope.app.freshness import check_kept
from seedscope.app.lens import read_lens
from seedscope.app.routes.address import (
    MAX_INDEX,
    RULE_SAYS,
    EnsembleName,
    Filter,
    JudgedEnsemble,
    Plain,
    StudyName,
    judged,
    open_ensemble,
)
from seedscope.app.store.densities import BINS_PER_DECADE, DensityBin, density_facet
from seedscope.app.store.download import described, feature_download
from seedscope.app.store.missing import Missing
from seedscope.app.store.predictions import predictions_at
from seedscope.app.store.table import FeatureRow, FeatureTable
from seedscope.engine.contract import schema
from seedscope.engine.contract.schema import LARGEST_SEED
from seedscope.engine.contract.stability import BUCKETS
from seedscope.engine.contract.tables.predictions import Prediction
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()


class TableFilter(Filter):
    """A page of the table: a filter and a keyset position."""

    after: str | None = None
    before: str | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    at: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,19}/[0-9]{1,9}$",
            description="SEED/FEATURE: the page that holds this feature, unless after or before",
        ),
    ] = None

    @property
    def place(self) -> tuple[int, int] | None:
        """(seed, feature) of the row that is selected."""
        seed, feature = map(int, self.at.split("/")) if self.at else (-1, -1)
        return (seed, feature) if self.at and seed <= LARGEST_SEED and feature <= MAX_INDEX else None


F = TypeVar("F", bound=TableFilter)


@dataclass(frozen=True)
class TablePage:
    """`/s/{study}/{ensemble}/features`: one page of the filtered features with facet counts and exact total."""

    study: Study
    ensemble: Ensemble
    filter: dict[str, Any]
    theta: float
    epsilon: float
    rule: str
    rules: list[str]
    total: int
    rows: list[FeatureRow]
    predicted: list[Prediction] | None  # of the rows of one SAE that a predictor was asked about; None of all others
    buckets: dict[str, int | None]  # None, but for the dead, of one SAE alone
    seeds: dict[int, int]
    triggers: dict[str, int] | None  # of features that fire
    found_by: dict[str, int] | None  # of a search: features found by a token, and by their explanation
    scores: dict[str, int] | None  # features whose explanation scores at least so much
    densities: list[DensityBin] | None  # of features that fire, under all other filters; None without activity
    null_rates: dict[str, float]
    null_p999: dict[str, float]
    missing: list[Missing]  # what the rows hold None for, among others
    after: str | None
    before: str | None
    nav_filter: Filter
    nav_rules: dict[str, str]
    nav_push: str
    nav_bins_per_decade: int  # of densities
    nav_at: tuple[int, int] | None  # the row that is selected


@render.page(router, "/s/{study}/{ensemble}/features", "ensemble/table.html", "features")
def feature_table(
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[TableFilter], Depends(judged(TableFilter))],
) -> TablePage:
    """Features of all members, filtered and sorted, page by page."""
    return TablePage(**table_fields(opened, "features"))


@dataclass(frozen=True)
class RowsPage:
    """`/s/{study}/{ensemble}/features/page.json`: the rows and the total of a page of the table, no facets."""

    study: str
    ensemble: str
    digest: str
    theta: float
    epsilon: float
    rule: str
    total: int
    rows: list[FeatureRow]
    after: str | None
    before: str | None


@router.get("/s/{study}/{ensemble}/features/page.json", name="features.page.json", dependencies=[Depends(check_kept)])
def rows_page(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[TableFilter], Depends(judged(TableFilter))],
) -> JSONResponse:
    """Features of all members, filtered and sorted, page by page: what `features.json` has without counts of facets, which cost
    several times as much.
    """
    _, row, filter = opened
    table = _table(opened)
    rows, after, before = _rows_and_ends(table, filter)
    page = RowsPage(
        study, ensemble, row.digest, filter.theta, filter.epsilon, filter.rule, table.count(), rows, after, before
    )
    return render.as_json(page, request)


def _table(opened: JudgedEnsemble[F]) -> FeatureTable:
    """What a filter finds; raises NotFound for a seed that there is not."""
    store, row, filter = opened
    if filter.seed is not None:
        store.member(row.ensemble, filter.seed)
    return store.features(filter.query(row.ensemble))


def _rows_and_ends(table: FeatureTable, filter: TableFilter) -> tuple[list[FeatureRow], str | None, str | None]:
    """The rows of a page, and the positions of the next and the previous one; None where there is none."""
    after = filter.after
    if filter.place and not (after or filter.before):
        after = table.page_of(*filter.place, limit=filter.limit)
    rows = table.page(limit=filter.limit + 1, after=after, before=filter.before)
    more = len(rows) > filter.limit
    if filter.before:
        rows = rows[-filter.limit :]
        has_after, has_before = True, more
    else:
        rows = rows[: filter.limit]
        has_after, has_before = more, after is not None
    return (
        rows,
        table.key(rows[-1]) if rows and has_after else None,
        table.key(rows[0]) if rows and has_before else None,
    )


def table_fields(opened: JudgedEnsemble[F], page: str) -> dict[str, Any]:
    """The fields of a table page; `page` is the last part of its address."""
    store, row, filter = opened
    study, ensemble = store.study.study, row.ensemble
    table = _table(opened)
    rows, after, before = _rows_and_ends(table, filter)
    facets = table.facets()
    base = f"/s/{study}/{ensemble}/{page}"
    usual = type(filter).model_fields["limit"].default
    position = {
        "limit": filter.limit if filter.limit != usual else None,
        "after": filter.after,
        "before": filter.before,
    }
    return dict(
        study=store.study,
        ensemble=row,
        filter=filter.shown(),
        theta=filter.theta,
        epsilon=filter.epsilon,
        rule=filter.rule,
        rules=store.rules(ensemble),
        total=table.count(),
        rows=rows,
        predicted=predictions_at(store, ensemble, [(each.seed, each.feature) for each in rows])
        if not row.n_comparisons and "predicted" not in store.missing(ensemble)
        else None,
        buckets={b: facets["bucket"].get(b, 0) if row.n_comparisons or b == "dead" else None for b in BUCKETS},
        seeds={m.seed: facets["seed"].get(m.seed, 0) for m in store.members(ensemble)},
        triggers={t: facets["trigger"].get(t, 0) for t in schema.TRIGGERS} if store.has_tokens(ensemble) else None,
        found_by=table.hit_facet(),
        scores=table.score_facet() if store.has(ensemble, "explain") else None,
        densities=density_facet(table, row.n_tokens),
        null_rates=store.null_rates(ensemble, filter.theta, filter.rule),
        null_p999=store.null_p999(ensemble, filter.rule),
        missing=list(store.missing(ensemble).values()),
        after=after,
        before=before,
        nav_filter=filter,
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_bins_per_decade=BINS_PER_DECADE,
        nav_at=filter.place,
        nav_push=render.url(base, **filter.parameters(), **position),
    )


class Typed(Plain):
    """What stands in a search box."""

    q: Annotated[str, Field(max_length=100, description="the beginning of a search, or a part of a token")] = ""


@dataclass(frozen=True)
class SuggestionList:
    """Searches that what was typed may mean."""

    q: str
    suggestions: list[dict[str, Any]]


@router.get("/s/{study}/{ensemble}/features/suggest.json", name="suggestions.json", dependencies=[Depends(check_kept)])
def suggestions(
    request: Request, study: StudyName, ensemble: EnsembleName, typed: Annotated[Typed, Query()]
) -> JSONResponse:
    """Tokens that features fire on and words of explanations that a search may mean, with the features that have them."""
    store, _ = open_ensemble(request, study, ensemble)
    found = [each._asdict() for each in store.suggestions.of(ensemble, typed.q)]
    return render.as_json(SuggestionList(typed.q, found), request)


@router.get("/s/{study}/{ensemble}/features.csv", name="features.csv")
@router.get("/s/{study}/{ensemble}/features.parquet", name="features.parquet")
@router.get("/s/{study}/{ensemble}/features/rows.json", name="features.rows.json")
def download_features(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[Filter], Depends(judged(Filter))],
) -> Response:
    """All features that the filter finds as CSV, Parquet or JSON, with the settings that they were judged by."""
    store, _, filter = opened
    if filter.seed is not None:
        store.member(ensemble, filter.seed)
    query = filter.query(ensemble)
    name = f"{study}-{ensemble}-features"
    about = described(store, query) if request.url.path.endswith(".json") else None
    found = feature_download(store, query)
    return render.stream(request, found.schema, found.batches, name, about=about, n=found.n)


@router.get("/s/{study}/{ensemble}/random", name="random", response_class=RedirectResponse, status_code=303)
def random_feature(request: Request, study: StudyName, ensemble: EnsembleName) -> RedirectResponse:
    """Any feature that is not known to be dead."""
    store, row = open_ensemble(request, study, ensemble)
    seed, feature = store.random_feature(ensemble)
    lens = read_lens(request.query_params, row.theta, row.epsilon)
    return RedirectResponse(render.url(f"/s/{study}/{ensemble}/{seed}/{feature}", **lens.parameters), 303)
