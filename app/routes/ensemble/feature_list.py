"""`/s/{study}/{ensemble}/list`: chosen features as a table with all its filters, notes, and files to keep or pass on."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field, field_validator

from seedscope.app import render
from seedscope.app.routes.address import EnsembleName, JudgedEnsemble, StudyName, judged
from seedscope.app.routes.ensemble.table import TableFilter, TablePage, table_fields
from seedscope.app.store import neuronpedia
from seedscope.app.store.download import feature_download
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.study import Ensemble

router = APIRouter()


class ListFilter(TableFilter):
    """The table's filters within a list; `notes` is what the browser keeps, for the files that are saved."""

    limit: Annotated[int, Field(ge=1, le=500)] = 500
    notes: Annotated[str, Field(max_length=30_000, description='JSON such as {"3/37": "a note"}')] = "{}"

    @field_validator("notes")
    @classmethod
    def _texts(cls, value: str) -> str:
        try:
            notes = json.loads(value)
        except ValueError:
            notes = None
        if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
            raise ValueError('JSON such as {"3/37": "a note"}')
        return value

    @staticmethod
    def usual_sort(q: str | None) -> str:
        """The list's own order, whatever is searched in it."""
        return "listed"

    @property
    def listed(self) -> tuple[str, ...]:
        """The entries of the list; of a single index that one, without `id` none."""
        return () if self.id is None else tuple(str(self.id).split(","))

    def parameters(self, **changes: Any) -> dict[str, Any]:
        """Without notes, which are not part of a list's address."""
        return super().parameters(**{"notes": None} | changes)

    def opening(self) -> dict[str, Any]:
        """With its order, which is not that of other lists where nothing is said."""
        return self.parameters() | {"sort": self.sorted_by}


@dataclass(frozen=True)
class ListedFeature:
    """An entry of the list, whatever the filters."""

    id: str  # SEED/FEATURE
    permalink: str
    note: str


@dataclass(frozen=True)
class ListPage(TablePage):
    """`/s/{study}/{ensemble}/list`: a table of the features that `id` names, in that order."""

    listed: list[ListedFeature]
    unknown: list[str]  # entries that name no feature of this ensemble
    nav_quick_list: str | None  # the list on Neuronpedia, of those features that have pages there; None where none has


@render.page(router, "/s/{study}/{ensemble}/list", "ensemble/list.html", "list")
def feature_list(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ListFilter], Depends(judged(ListFilter))],
) -> ListPage:
    """A list of features: id=3/37,0/40 keeps its order; what it names in vain is said."""
    store, row, filter = opened
    places = _listed_places(store, row, filter)
    known = {f"{seed}/{feature}" for seed, feature in places} | {str(feature) for _, feature in places}
    notes = json.loads(filter.notes)
    return ListPage(
        **table_fields(opened, "list"),
        listed=[
            ListedFeature(f"{seed}/{feature}", _permalink(request, study, row, filter, seed, feature), _note(notes, seed, feature))
            for seed, feature in places
        ],
        unknown=[entry for entry in filter.listed if entry not in known],
        nav_quick_list=_quick_list(store, row, places, notes),
    )  # fmt: skip


@router.get("/s/{study}/{ensemble}/list.csv", name="list.csv")
@router.get("/s/{study}/{ensemble}/list.parquet", name="list.parquet")
def list_download(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ListFilter], Depends(judged(ListFilter))],
) -> Response:
    """The listed features that the filters leave, with the settings they were judged by, as CSV or Parquet."""
    store, row, filter = opened
    if filter.seed is not None:
        store.member(ensemble, filter.seed)
    table = feature_download(store, filter.query(ensemble)).table()
    places = list(zip(table.column("seed").to_pylist(), table.column("feature").to_pylist(), strict=True))
    notes = json.loads(filter.notes)
    columns: dict[str, list[Any]] = {
        "permalink": [_permalink(request, study, row, filter, *place) for place in places],
        "note": [_note(notes, *place) for place in places],
    }
    table = table.drop_columns(["permalink"]).add_column(0, "study", pa.array([study] * len(places), pa.string()))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return render.download(request, table, f"{study}-{ensemble}-list")


def _listed_places(store: StudyStore, row: Ensemble, filter: ListFilter) -> list[tuple[int, int]]:
    """(seed, feature) of all entries that exist, in the list's order, under no filter."""
    query = FeatureQuery(row.ensemble, rule=filter.rule, listed=filter.listed, sort="listed", descending=False)
    return store.features(query).listed_places()


def _quick_list(store: StudyStore, row: Ensemble, places: list[tuple[int, int]], notes: dict[str, str]) -> str | None:
    sources = neuronpedia.sources(store.path.parent, row.ensemble, store.members(row.ensemble))
    known = [(sources[seed], feature, _note(notes, seed, feature)) for seed, feature in places if seed in sources]
    return neuronpedia.quick_list(f"{row.ensemble}: {len(known)} features", known) if known else None


def _permalink(request: Request, study: str, row: Ensemble, filter: ListFilter, seed: int, feature: int) -> str:
    path = f"/s/{study}/{row.ensemble}/{seed}/{feature}"
    return str(request.base_url).rstrip("/") + render.url(path, v=row.digest, **filter.judgement())


def _note(notes: dict[str, str], seed: int, feature: int) -> str:
    return notes.get(f"{seed}/{feature}", "")
