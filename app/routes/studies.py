"""Home, study and the definitions page."""

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import render
from app.routes.query import Plain, StudyName, judged_shares
from app.store import FeatureQuery, Studies, StudyStore
from engine import schema
from engine.stability import EPSILON, THETA

router = APIRouter()


@dataclass(frozen=True)
class StudyCard:
    """A study as the home page lists it."""

    study: schema.Study
    ensembles: list[schema.Ensemble]


@dataclass(frozen=True)
class HomePage:
    """`/`: the published studies under the root."""

    studies: list[StudyCard]


@dataclass(frozen=True)
class EnsembleSummary:
    """An ensemble in one line; shares are of living features, `dead` of all."""

    ensemble: schema.Ensemble
    n_features: int
    n_dead: int
    stable: float
    middle: float
    unstable: float
    ev: float
    l0: float


@dataclass(frozen=True)
class StudyPage:
    """`/s/{study}`: its ensembles and what they stand on."""

    study: schema.Study
    ensembles: list[EnsembleSummary]


@dataclass(frozen=True)
class MethodsPage:
    """`/methods`: what every number means."""

    theta: float
    epsilon: float


def _studies(request: Request) -> Studies:
    return request.app.state.studies


@render.page(router, "/", "home.html", "home")
def home(request: Request, address: Annotated[Plain, Query()]) -> HomePage:
    """All published studies."""
    return HomePage([StudyCard(store.study, list(store.ensembles.values())) for store in _studies(request).all()])


@render.page(router, "/methods", "methods.html", "methods")
def methods(address: Annotated[Plain, Query()]) -> MethodsPage:
    """Definitions of every number on the pages."""
    return MethodsPage(THETA, EPSILON)


@render.page(router, "/s/{study}", "study.html", "study")
def study(request: Request, study: StudyName, address: Annotated[Plain, Query()]) -> StudyPage:
    """One study: its ensembles and its provenance."""
    store = _studies(request).get(study)
    return StudyPage(store.study, [_summary(store, e) for e in store.ensembles.values()])


def _summary(store: StudyStore, row: schema.Ensemble) -> EnsembleSummary:
    counts = store.features(FeatureQuery(row.ensemble, row.theta, row.epsilon)).matched_counts()
    members = store.members(row.ensemble)
    return EnsembleSummary(
        ensemble=row,
        n_features=row.n_members * row.d_sae,
        n_dead=sum(m.n_dead for m in members),
        **judged_shares(counts),
        ev=fmean(m.ev for m in members),
        l0=fmean(m.l0 for m in members),
    )
