"""The map of decoder directions across seeds: coordinates as drawn, greyed under the feature table's filters."""

from dataclasses import astuple, dataclass
from html import escape
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures import map
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.map import Around, MapPoints
from seedscope.app.findings.map_company import N_NEAR, Company, Places
from seedscope.app.formats import shown_token
from seedscope.app.routes.address import EnsembleName, JudgedEnsemble, StudyName, judged
from seedscope.app.routes.ensemble.span_filter import SpanFilter, choices
from seedscope.app.store.missing import Missing
from seedscope.app.store.spans import map_remark
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.stability import BUCKETS
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
LONGEST = 70  # characters of an explanation in a point's hover


@dataclass(frozen=True)
class MapPage:
    """`/s/{study}/{ensemble}/subspaces/map`: every feature that is drawn, with its place and whether the filter finds it."""

    study: Study
    ensemble: Ensemble
    filter: dict[str, Any]
    theta: float
    epsilon: float
    rule: str
    colour: str
    n: int
    n_chosen: int | None  # that the filter finds; None without one
    remark: str | None  # how the map was drawn; None where there is none
    company: list[Company]  # around stable and unstable features
    points: dict[str, list]  # columns: seed, feature, x, y, bucket, stability, chosen
    missing: list[Missing]
    figure_map: Figure | None
    nav_query: SpanFilter
    nav_choices: dict[str, Any]
    nav_push: str | None


@render.page(router, "/s/{study}/{ensemble}/subspaces/map", "ensemble/map.html", "map")
def direction_map(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[SpanFilter], Depends(judged(SpanFilter))],
) -> MapPage:
    """The map of decoder directions: what comes back lies on top of each other, whatever the seed."""
    store, row, asked = opened
    if asked.seed is not None:
        store.member(ensemble, asked.seed)
    lacking = store.missing(ensemble)
    places = _read(store, asked, ensemble)
    is_drawn = len(places.seed) > 0
    company = [
        of_bucket for bucket in ("unstable", "stable") if (of_bucket := store.maps.company(ensemble, places, bucket))
    ]
    n_chosen = int(places.chosen.sum()) if asked.is_filtered else None
    return MapPage(
        study=store.study,
        ensemble=row,
        filter=asked.model_dump(exclude={"v", "embed", "sort", "dir", "view", "rank", "matrix", "colour"}),
        theta=asked.theta,
        epsilon=asked.epsilon,
        rule=asked.rule,
        colour=asked.colour,
        n=len(places.seed),
        n_chosen=n_chosen,
        remark=map_remark(row),
        company=company,
        points=_columns(places, row),
        missing=[lacking["subspaces"]] if "subspaces" in lacking else [],
        figure_map=_drawn(store, row, asked, places, company, n_chosen) if is_drawn else None,
        nav_query=asked,
        nav_choices=choices(store, ensemble),
        nav_push=_push(request, asked, f"/s/{study}/{ensemble}/subspaces"),
    )


@router.get("/s/{study}/{ensemble}/subspaces/map.csv", name="map.csv")
@router.get("/s/{study}/{ensemble}/subspaces/map.parquet", name="map.parquet")
def map_download(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[SpanFilter], Depends(judged(SpanFilter))],
) -> Response:
    """The coordinates as CSV or Parquet; `chosen` says which features the filter finds."""
    store, row, asked = opened
    columns = _columns(_read(store, asked, ensemble), row)
    return render.download(request, pa.table(columns), f"{study}-{ensemble}-map")


# -- the map -----------------------------------------------------------------------------------------------------


def _read(store: StudyStore, asked: SpanFilter, ensemble: str) -> Places:
    return store.maps.places(asked.judges(ensemble), asked.query(ensemble))


def _push(request: Request, asked: SpanFilter, base: str) -> str | None:
    """The address of whichever page the form stands on; none where the map was merely fetched into it."""
    if request.headers.get("HX-Trigger") != "map-form":
        return None
    inside = urlsplit(request.headers.get("HX-Current-URL", "")).path == base
    return render.url(base if inside else f"{base}/map", **asked.parameters())


def _columns(places: Places, row: Ensemble) -> dict[str, list]:
    return {
        "seed": places.seed.tolist(),
        "feature": places.feature.tolist(),
        "x": places.x.astype(np.float64).round(4).tolist(),
        "y": places.y.astype(np.float64).round(4).tolist(),
        "bucket": [BUCKETS[code] if code < len(BUCKETS) else None for code in places.bucket.tolist()],
        "stability": (places.n_matched / row.n_comparisons).tolist()
        if row.n_comparisons
        else [None] * len(places.seed),
        "chosen": places.chosen.tolist(),
    }


def _drawn(
    store: StudyStore, row: Ensemble, asked: SpanFilter, places: Places, company: list[Company], n_chosen: int | None
) -> Figure:  # fmt: skip
    columns = (column.tolist() for column in (places.seed, places.feature, places.bucket, places.n_matched))
    says = [
        _says(seed, feature, bucket, n_matched, token, explanation, row.n_comparisons)
        for seed, feature, bucket, n_matched, token, explanation in zip(
            *columns, places.token, places.explanation, strict=True
        )
    ]
    points = MapPoints(places.seed, places.feature, places.x, places.y, places.bucket, places.chosen, says)
    return map.direction_map(
        points,
        [Around(*astuple(one)) for one in company],
        by_seed=asked.colour == "seed",
        n_chosen=n_chosen,
        judged=f"judged at θ = {asked.theta:g}, ε = {asked.epsilon:g} ({asked.rule})",
        near=N_NEAR,
        base=f"/s/{store.study.study}/{row.ensemble}",
        query=render.url("", **asked.judgement()),
    )


def _says(
    seed: int, feature: int, bucket: int, n_matched: int, token: str | None, explanation: str | None, n: int
) -> str:
    """A point in words, for Plotly, which reads some markup."""
    parts = [f"seed {seed} #{feature}: {BUCKETS[bucket]}, {n_matched} of {n} seeds"]
    if token is not None:
        parts.append(f"‘{shown_token(token)}’".replace("\n", ""))
    if explanation is not None:
        parts.append(explanation if len(explanation) <= LONGEST else f"{explanation[: LONGEST - 1]}…")
    return "<br>".join(escape(part, quote=False) for part in parts)
