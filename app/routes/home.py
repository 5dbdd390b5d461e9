"""The home page, a study's page, and the definitions (`/methods`)."""

from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated

from fastapi import APIRouter, Query, Request

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.tradeoff import TradeOff, trade_off
from seedscope.app.findings.pool_verdict import EV_KEPT
from seedscope.app.findings.precedence import TELLS
from seedscope.app.findings.span_claim import NEARLY
from seedscope.app.routes.address import Plain, StudyName, judged_shares
from seedscope.app.store.errors import UNREADABLE
from seedscope.app.store.feature_query import FeatureQuery, Sort
from seedscope.app.store.missing import Missing
from seedscope.app.store.recognised import RecognisedMember, recognised
from seedscope.app.store.studies import BrokenStudy, Studies, analysis_of
from seedscope.app.store.study import StudyStore
from seedscope.app.store.table import FeatureRow
from seedscope.engine.contract.stability import BUCKETS, EPSILON, THETA
from seedscope.engine.contract.tables.study import Ensemble, Member, Study

router = APIRouter()
N_DETAILED = 6  # studies, and ensembles of each, whose shares the home page draws


@dataclass(frozen=True)
class ListedEnsemble:
    """An ensemble of a study card; shares are of the features judged, None for one SAE alone and where cards have no room."""

    ensemble: Ensemble
    shares: dict[str, float | None] | None


@dataclass(frozen=True)
class StudyCard:
    """A study as the home page lists it."""

    study: Study
    ensembles: list[Ensemble]
    listed: list[ListedEnsemble]
    address: str  # of its only ensemble where it has one


@dataclass(frozen=True)
class Example:
    """A feature that shows what stability is, and how many features of its ensemble fall into each bucket."""

    study: str
    ensemble: Ensemble
    feature: FeatureRow
    buckets: dict[str, int]
    address: str


@dataclass(frozen=True)
class WaitingStudy:
    """A study that was imported and has no results yet."""

    study: str
    command: str  # that computes and publishes them


@dataclass(frozen=True)
class HomePage:
    """`/`: the studies under the root."""

    studies: list[StudyCard]  # the last published first
    broken: list[BrokenStudy]  # damaged, gone, or of another version
    waiting: list[WaitingStudy]
    example: Example | None  # None without an ensemble whose members were compared


@dataclass(frozen=True)
class EnsembleSummary:
    """An ensemble and its members; shares are of living features where activity is known, else of those with a direction.

    What was not computed is None, and stands in `missing` with the command that adds it.
    """

    ensemble: Ensemble
    members: list[Member]
    n_features: int
    n_dead: int | None
    n_undirected: int
    stable: float | None  # None, as the next two, for one SAE alone
    middle: float | None
    unstable: float | None
    ev: float | None
    l0: float | None
    missing: list[Missing]
    recognised: list[RecognisedMember]  # of imported members, what their files say; empty where that was not kept


@dataclass(frozen=True)
class Addition:
    """What one command adds to a study."""

    command: str
    reason: str  # why it is not there
    results: list[str]
    ensembles: list[str]  # that lack any of them
    job: dict[str, str] | None  # what a request for the command says; None where only users know the rest


@dataclass(frozen=True)
class StudyPage:
    """`/s/{study}`: its ensembles and what they stand on."""

    study: Study
    ensembles: list[EnsembleSummary]
    additions: list[Addition]
    has_starts: bool  # whether ensembles differ in constraint, start or preprocessing
    has_sources: bool  # whether they differ in what differs between their members
    figure_tradeoff: Figure | None  # where at least two ensembles have EV


@dataclass(frozen=True)
class MethodsPage:
    """`/methods`: what every number means."""

    theta: float
    epsilon: float
    nearly: float  # share of its own span's energy that another seed's keeps where a span carries over
    tells: float  # AUC from which on a quantity is said to tell features apart
    ev_kept: float  # that a pool may lose against members trained on as long


def _studies(request: Request) -> Studies:
    return request.app.state.studies


@render.page(router, "/", "home.html", "home", kept=False)
def home(request: Request, address: Annotated[Plain, Query()]) -> HomePage:
    """All studies: those with results, and those that wait for theirs."""
    studies = _studies(request)
    stores = sorted(studies.all(), key=lambda store: (-store.path.stat().st_mtime, store.study.study))
    cards = [card for i, store in enumerate(stores) if (card := _whole_card(studies, store, detailed=i < N_DETAILED))]
    example = None
    for store in stores:
        with suppress(*UNREADABLE):
            if example := _example(store):
                break
    broken = studies.broken()  # what the cards found as well
    return HomePage(cards, broken, [WaitingStudy(name, analysis_of(name)) for name in studies.waiting()], example)


def _whole_card(studies: Studies, store: StudyStore, *, detailed: bool) -> StudyCard | None:
    """A study's card; None, and noted, where the study cannot be read."""
    try:
        return _card(store, detailed=detailed)
    except UNREADABLE as error:
        studies.note_damage(store.study.study, error.reason)
        return None


def _card(store: StudyStore, *, detailed: bool) -> StudyCard:
    rows = list(store.ensembles.values())
    listed = [
        ListedEnsemble(row, judged_shares(store.own_counts(row.ensemble)) if detailed and i < N_DETAILED else None)
        for i, row in enumerate(rows)
        if row.control_of is None
    ]
    address = f"/s/{store.study.study}" + (f"/{rows[0].ensemble}" if len(rows) == 1 else "")
    return StudyCard(store.study, rows, listed, address)


def _example(store: StudyStore) -> Example | None:
    """The feature that fires most of those that came back in most but not all seeds, else of those that came back in all."""
    for row in store.ensembles.values():
        if row.n_comparisons < 2 or row.control_of is not None:
            continue
        sort: Sort = "density" if store.has(row.ensemble, "activity") else "feature"
        own = FeatureQuery(row.ensemble, row.theta, row.epsilon, sort=sort)
        for query in (replace(own, stability_min=0.5, stability_max=1 - 1e-9), replace(own, bucket="stable"), own):
            if first := store.first_row(query):
                counts = store.own_counts(row.ensemble)
                buckets = {bucket: sum(n for _, b, _, n in counts if b == bucket) for bucket in BUCKETS}
                address = f"/s/{store.study.study}/{row.ensemble}/{first.seed}/{first.feature}"
                return Example(store.study.study, row, first, buckets, address)
    return None


@render.page(router, "/methods", "methods.html", "methods")
def methods(address: Annotated[Plain, Query()]) -> MethodsPage:
    """Definitions of every number on the pages."""
    return MethodsPage(THETA, EPSILON, NEARLY, TELLS, EV_KEPT)


@render.page(router, "/s/{study}", "study/overview.html", "study", kept=False)
def study(request: Request, study: StudyName, address: Annotated[Plain, Query()]) -> StudyPage:
    """One study: its ensembles, where each comes from, and what it all stands on."""
    store = _studies(request).get(study)
    summaries = [_summary(store, row) for row in store.ensembles.values()]
    compared = [
        TradeOff(
            each.ensemble.ensemble,
            each.stable,
            each.ev,
            f"/s/{study}/{each.ensemble.ensemble}",
            each.ensemble.control_of is not None,
            each.ensemble.variant,
            agrees=each.ensemble.shared_start != "no",
        )
        for each in summaries
        if each.ev is not None and each.stable is not None
    ]
    tradeoff = trade_off(compared) if len(compared) > 1 else None
    return StudyPage(
        store.study, summaries, _additions(summaries), store.is_start_grid, store.compares_sources, tradeoff
    )


def _additions(ensembles: list[EnsembleSummary]) -> list[Addition]:
    """Every command that would add something, once."""
    additions: dict[str, Addition] = {}
    for each in ensembles:
        for lack in each.missing:
            if lack.command:
                addition = additions.setdefault(lack.command, Addition(lack.command, lack.reason, [], [], lack.job))
                addition.results.extend({lack.result} - set(addition.results))
                addition.ensembles.extend({each.ensemble.ensemble} - set(addition.ensembles))
    return list(additions.values())


def _summary(store: StudyStore, row: Ensemble) -> EnsembleSummary:
    counts = store.own_counts(row.ensemble)
    members = store.members(row.ensemble)
    activity, ablate = (store.has(row.ensemble, analysis) for analysis in ("activity", "ablate"))
    return EnsembleSummary(
        ensemble=row,
        members=members,
        n_features=row.n_members * row.d_sae,
        n_dead=sum(m.n_dead or 0 for m in members) if activity else None,
        n_undirected=sum(m.n_undirected for m in members),
        **judged_shares(counts),
        ev=_mean([m.ev for m in members]) if ablate else None,
        l0=_mean([m.l0 for m in members]) if activity else None,
        missing=list(store.missing(row.ensemble).values()),
        recognised=recognised(store.path.parent, row.ensemble, members),
    )


def _mean(values: list[float | None]) -> float | None:
    """Mean of the known ones; None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
