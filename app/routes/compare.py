"""`/compare`: any two features beside each other, or any two ensembles, also of two studies; and their cosine, asked now."""

import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from seedscope.app import render
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.routes.address import (
    RULE_SAYS,
    EnsembleJudgement,
    Filter,
    JudgedEnsemble,
    JudgedFeature,
    address_reader,
)
from seedscope.app.routes.ensemble.beside import EnsembleBeside, ensemble_beside
from seedscope.app.routes.feature.pair import FeaturePair, pair_features
from seedscope.app.routes.feature.permalink import VIEWS, FeaturePage, feature_page
from seedscope.app.store.errors import BadValue, NotFound
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.queries import MAX_K, LiveQuery

router, asking_router = APIRouter(), APIRouter()
FORM = "STUDY/ENSEMBLE/SEED/FEATURE for a feature, STUDY/ENSEMBLE for an ensemble"
SideText = Annotated[str, Field(max_length=400, description=FORM)]
View = Literal["stacked", "snippet", "full"]


class CompareQuery(EnsembleJudgement):
    """Which two, and how both are judged; theta and epsilon left open are each ensemble's own."""

    a: SideText | None = None
    b: SideText | None = None
    view: Annotated[View, Field(description="how contexts are shown")] = "stacked"


class Side(NamedTuple):
    """What one side of the address names; of an ensemble without the last two."""

    study: str
    ensemble: str
    seed: str | None
    feature: str | None

    @property
    def text(self) -> str:
        """As it stands in addresses."""
        return "/".join(part for part in self if part is not None)


@dataclass(frozen=True)
class Choice:
    """Something to compare with, as one link."""

    says: str
    address: str


@dataclass(frozen=True)
class ComparePage:
    """`/compare`: `features` or `ensembles` hold a and b; both are None where a side is still to be chosen."""

    a: str | None
    b: str | None
    features: list[FeaturePage] | None
    pair: FeaturePair | None
    ensembles: list[EnsembleBeside] | None
    nav_swapped: str | None  # address with a and b exchanged
    nav_live_cosine: str | None  # where the live engine computes a cosine that is not stored
    nav_choices: list[Choice]  # for a missing b: counterparts, or the other ensembles
    nav_ensembles: list[str]  # STUDY/ENSEMBLE of all studies, for the form


@render.page(router, "/compare", "compare.html", "compare")
def compare(request: Request, query: Annotated[CompareQuery, Depends(address_reader(CompareQuery))]) -> ComparePage:
    """Two features or two ensembles side by side; a form where one is missing."""
    studies: Studies = request.app.state.studies
    places = {name: _read_place(name, text) for name, text in (("a", query.a), ("b", query.b)) if text}
    a, b = places.get("a"), places.get("b")
    page = ComparePage(
        a=a.text if a else None, b=b.text if b else None, features=None, pair=None, ensembles=None, nav_swapped=None,
        nav_live_cosine=None, nav_choices=[], nav_ensembles=[],
    )  # fmt: skip
    lens = _lens(query)
    if a is None or b is None:
        names = [f"{store.study.study}/{row}" for store in studies.all() for row in store.ensembles]
        chosen = a or b
        return replace(page, nav_ensembles=names, nav_choices=_choices(studies, chosen, query, names) if chosen else [])
    if (a.seed is None) != (b.seed is None):
        kinds = ("an ensemble", "a feature") if a.seed is None else ("a feature", "an ensemble")
        raise BadValue("b", repr(b.text), f"{kinds[0]}, for a is one: a={a.text} is {kinds[0]}, b={b.text} {kinds[1]}")
    page = replace(page, nav_swapped=render.url("/compare", a=b.text, b=a.text, **lens))
    if a.seed is None:
        return replace(page, ensembles=[ensemble_beside(_open_ensemble(studies, place, query)) for place in (a, b)])
    opened = _open_feature(studies, a, query), _open_feature(studies, b, query)
    features = [feature_page(each) for each in opened]
    pair = pair_features(opened[0], opened[1], features[0], features[1])
    if pair.one_scale:
        features = _on_one_scale(features)
    views = {view: render.url("/compare", **lens | {"a": a.text, "b": b.text, "view": view}) for view in VIEWS}
    rules = {rule: render.url("/compare", **lens | {"a": a.text, "b": b.text, "rule": rule}) for rule in RULE_SAYS}
    asks = pair.decoder_cosine is None and _of_one_ensemble(*opened)
    return replace(
        page,
        features=[replace(each, nav_views=views, nav_by_rule=rules) for each in features],
        pair=pair,
        nav_live_cosine=render.url("/compare/cosine", a=a.text, b=b.text, **lens) if asks else None,
    )


@dataclass(frozen=True)
class CosinePage:
    """`/compare/cosine`: the cosine of two decoder rows of one ensemble."""

    a: str
    b: str
    cosine: float | None
    below: float | None  # where b is not among the nearest that an answer holds: the least of their cosines
    n_nearest: int
    says: str | None  # why there is none


@render.page(asking_router, "/compare/cosine", "compare_cosine.html", "compare_cosine", kept=False)
@asks_engine
def cosine_now(
    request: Request, query: Annotated[CompareQuery, Depends(address_reader(CompareQuery))]
) -> Asking[CosinePage]:
    """The cosine of two features of one ensemble, computed now by the live engine."""
    studies: Studies = request.app.state.studies
    opened = []
    for name, text in (("a", query.a), ("b", query.b)):
        place = _read_place(name, text or "")
        if place.seed is None:
            raise BadValue(name, repr(text), "STUDY/ENSEMBLE/SEED/FEATURE")
        opened.append(_open_feature(studies, place, query))
    a, b = opened
    if not _of_one_ensemble(a, b):
        raise BadValue("b", repr(query.b), "a feature of the ensemble of a: decoders of others are not compared")
    seeds = tuple(member.seed for member in a.store.members(a.row.ensemble))
    n_nearest = min(MAX_K, a.row.d_sae)
    ask = LiveQuery(
        "neighbours", a.store.study.study, a.row.ensemble, a.row.folder, seeds, seed=a.member.seed,
        feature=a.feature.feature, by="decoder", k=n_nearest, members=(b.member.seed,),
    )  # fmt: skip
    rows = (yield Ask(ask)).rows()
    cosine = next((cosine for _, feature, cosine in rows if feature == b.feature.feature), None)
    undirected = not rows or not b.feature.decoder_norm > 0
    return CosinePage(
        a=query.a or "",
        b=query.b or "",
        cosine=cosine,
        below=None if cosine is not None or undirected else min(cosine for _, _, cosine in rows),
        n_nearest=n_nearest,
        says="one of the two decoder rows has no direction" if cosine is None and undirected else None,
    )


def _read_place(name: str, text: str) -> Side:
    """What a side of the address names; a page's own address is understood as well. Raises BadValue."""
    path = urlsplit(text.strip()).path.removesuffix(".json").strip("/")
    parts = path.split("/")
    if parts[0] == "s" and len(parts) in (3, 5):
        parts = parts[1:]
    if len(parts) not in (2, 4) or not all(re.fullmatch(r"[\w.-]{1,80}", part) for part in parts):
        raise BadValue(name, repr(text), FORM)
    return Side(parts[0], parts[1], *(parts[2:] or (None, None)))


def _lens(query: CompareQuery) -> dict[str, object]:
    """What links to other pages of this kind carry; a theta that the address leaves open stays open."""
    values = query.model_dump(include={"theta", "epsilon", "rule", "dead", "view"})
    defaults = {"rule": "argmax", "view": "stacked"}
    return {name: value for name, value in values.items() if value is not None and value != defaults.get(name)}


def _open_ensemble(studies: Studies, place: Side, query: CompareQuery) -> JudgedEnsemble[EnsembleJudgement]:
    store = studies.get(place.study)
    row = store.ensemble(place.ensemble)
    return JudgedEnsemble(store, row, EnsembleJudgement.resolved(row, query))


def _open_feature(studies: Studies, place: Side, query: CompareQuery) -> JudgedFeature[Filter]:
    store = studies.get(place.study)
    row = store.ensemble(place.ensemble)
    if place.seed is None or place.feature is None:
        raise NotFound("feature", place.text, FORM)
    member = store.member(row.ensemble, place.seed)
    feature = store.feature(row.ensemble, member.seed, place.feature)
    return JudgedFeature(store, row, Filter.resolved(row, query), member, feature)


def _of_one_ensemble(a: JudgedFeature[Filter], b: JudgedFeature[Filter]) -> bool:
    return (a.store.study.study, a.row.ensemble) == (b.store.study.study, b.row.ensemble)


def _on_one_scale(features: list[FeaturePage]) -> list[FeaturePage]:
    """Both with one maximum of highlights, one axis of histograms and one scale of logits."""
    axes = [each.nav_axis for each in features if each.nav_axis]
    axis = (min(low for low, _ in axes), max(high for _, high in axes)) if axes else None
    largest = max(each.nav_largest for each in features)
    logit = max(each.nav_largest_logit for each in features)
    return [
        replace(each, nav_largest=largest, nav_axis=axis if each.nav_axis else None, nav_largest_logit=logit)
        for each in features
    ]


def _choices(studies: Studies, place: Side, query: CompareQuery, names: list[str]) -> list[Choice]:
    """What may stand beside the side that is chosen: a feature's counterparts, or every other ensemble."""
    lens = _lens(query)

    def link(says: str, other: str) -> Choice:
        return Choice(says, render.url("/compare", a=place.text, b=other, **lens))

    if place.seed is None:
        _open_ensemble(studies, place, query)
        return [link(name, name) for name in names if name != place.text]
    opened = _open_feature(studies, place, query)
    base = f"{place.study}/{place.ensemble}"
    return [
        link(f"its counterpart in seed {each.seed}, #{each.rule_partner}", f"{base}/{each.seed}/{each.rule_partner}")
        for each in feature_page(opened).matches
        if each.rule_partner is not None
    ]
