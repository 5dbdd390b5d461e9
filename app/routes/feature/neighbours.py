"""The nearest features of one feature in any members, searched now by the live engine."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field, field_validator

from seedscope.app import render
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.parameters import is_number
from seedscope.app.routes.address import EnsembleName, Filter, JudgedFeature, StudyName, judged_feature
from seedscope.app.routes.feature.contexts import ShownContext, show_context
from seedscope.app.store.errors import BadValue
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import LiveQuery

router = APIRouter()


class NeighboursQuery(Filter):
    """Where to look, for how many, by which vectors; the list filter it came from stays for the links."""

    members: str = ""
    k: Annotated[int, Field(ge=1, le=100)] = 3
    by: Literal["decoder", "encoder"] = "decoder"
    absolute: bool = False

    @field_validator("members")
    @classmethod
    def _numbers(cls, value: str) -> str:
        if not all(is_number(part.strip()) for part in value.split(",") if part.strip()):
            raise ValueError("seeds as numbers with commas between them, such as 0,3; empty for all")
        return value


@dataclass(frozen=True)
class Neighbour:
    """One near feature; `cosine` is of decoder rows or encoder columns, as asked for."""

    seed: int
    feature: int
    cosine: float
    bucket: str | None
    dead: bool | None
    top_tokens: list[str] | None  # None without activity, as are dead and the next
    top_context: ShownContext | None  # its strongest; None as well for a feature that never fires
    explanation: str | None


@dataclass(frozen=True)
class NeighboursPage:
    """`/s/{study}/{ensemble}/{seed}/{feature}/neighbours`: its nearest features, the nearest first in every member."""

    study: str
    ensemble: str
    seed: int
    feature: int
    by: str
    k: int
    members: list[int]
    absolute: bool
    neighbours: list[Neighbour]
    nav_largest: float  # activation at which highlights are strongest
    nav_query: NeighboursQuery
    nav_seeds: list[int]
    nav_links: dict[str, Any]


@render.page(
    router, "/s/{study}/{ensemble}/{seed}/{feature}/neighbours", "feature/neighbours.html", "neighbours", kept=False
)
@asks_engine
def neighbours(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedFeature[NeighboursQuery], Depends(judged_feature(NeighboursQuery))],
) -> Asking[NeighboursPage]:
    """The k nearest features in every member asked for, this feature's own included, by decoder or encoder."""
    store, row, asked, member, feature = opened
    seeds = [m.seed for m in store.members(ensemble)]
    chosen = sorted({int(part) for part in asked.members.split(",") if part.strip()})
    unknown = [s for s in chosen if s not in seeds]
    if unknown:
        raise BadValue("members", repr(asked.members), "seeds of this ensemble: " + ", ".join(map(str, seeds)))
    query = LiveQuery(
        "neighbours", study, ensemble, row.folder, tuple(seeds), seed=member.seed, feature=feature.feature, by=asked.by,
        k=asked.k, members=tuple(chosen), absolute=asked.absolute,
    )  # fmt: skip
    answer = yield Ask(query)
    found = _described(store, ensemble, answer.rows(), asked)
    return NeighboursPage(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=feature.feature,
        by=asked.by,
        k=asked.k,
        members=chosen or seeds,
        absolute=asked.absolute,
        neighbours=found,
        nav_largest=max([max(each.top_context.activations) for each in found if each.top_context], default=0),
        nav_query=asked,
        nav_seeds=seeds,
        nav_links=asked.judgement(),
    )


def _described(store: StudyStore, ensemble: str, rows: list[tuple], asked: NeighboursQuery) -> list[Neighbour]:
    places = [row[:2] for row in rows]
    features = store.features_at(ensemble, places)
    activity = store.has(ensemble, "activity")
    contexts = store.contexts_at(ensemble, places, n=1) if activity else {}
    described = []
    for seed, feature, cosine in rows:
        row = features[seed, feature]
        described.append(
            Neighbour(
                seed=seed,
                feature=feature,
                cosine=cosine,
                bucket=asked.bucket_of(row),
                dead=row.dead,
                top_tokens=[store.tokens[i] for i in row.top_token_ids if i >= 0]
                if store.has_tokens(ensemble)
                else None,
                top_context=next((show_context(store, each) for each in contexts.get((seed, feature), [])), None),
                explanation=row.explanation,
            )
        )
    return described
