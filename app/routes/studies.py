"""Home, study, ensemble overview and the definitions page."""

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Request

from app import figures, render
from app.formats import percent
from app.routes.query import Epsilon, Theta
from app.store import FeatureQuery, Studies, StudyStore
from engine import schema
from engine.stability import (
    BUCKETS,
    EPSILON,
    THETA,
    bucket_bounds,
    bucket_shares,
    convergence,
    is_match,
    score,
)

router = APIRouter()
SWEEP = [round(0.3 + 0.05 * i, 2) for i in range(14)]
StudyName = Annotated[str, Path(description="study name")]
EnsembleName = Annotated[str, Path(description="ensemble name")]


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
class MemberLine:
    """A member on the overview; shares are of its living features."""

    seed: int
    sae_digest: str
    ev: float
    l0: float
    n_dead: int
    stable: float
    middle: float
    unstable: float


@dataclass(frozen=True)
class EnsemblePage:
    """`/s/{study}/{ensemble}`: stability distribution, buckets, density and ablation by bucket."""

    study: schema.Study
    ensemble: schema.Ensemble
    theta: float
    epsilon: float
    buckets: dict[str, int]
    bucket_medians: dict[str, tuple[int, float, float]]
    members: list[MemberLine]
    null_rates: dict[str, float]
    null_p999: dict[str, float]
    p_stable_at_all: float
    masked_ev: dict[str, float]
    masked_n: float
    sentence: str
    stable_from: int
    unstable_to: int
    figure_list: list[figures.Figure]
    nav_push: str


@dataclass(frozen=True)
class MethodsPage:
    """`/methods`: what every number means."""

    theta: float
    epsilon: float


def _studies(request: Request) -> Studies:
    return request.app.state.studies


@render.page(router, "/", "home.html", "home")
def home(request: Request) -> HomePage:
    """All published studies."""
    return HomePage([StudyCard(store.study, list(store.ensembles.values())) for store in _studies(request).all()])


@render.page(router, "/methods", "methods.html", "methods")
def methods() -> MethodsPage:
    """Definitions of every number on the pages."""
    return MethodsPage(THETA, EPSILON)


@render.page(router, "/s/{study}", "study.html", "study")
def study(request: Request, study: StudyName) -> StudyPage:
    """One study: its ensembles and its provenance."""
    store = _studies(request).get(study)
    return StudyPage(store.study, [_summary(store, e) for e in store.ensembles.values()])


@render.page(router, "/s/{study}/{ensemble}", "ensemble.html", "ensemble")
def ensemble(
    request: Request, study: StudyName, ensemble: EnsembleName, theta: Theta = THETA, epsilon: Epsilon = EPSILON
) -> EnsemblePage:
    """One ensemble: which share of its features is stable, and what the buckets are worth."""
    store = _studies(request).get(study)
    row = store.ensemble(ensemble)
    query = FeatureQuery(ensemble, theta, epsilon)
    counts = store.matched_counts(query)
    buckets = {bucket: sum(n for _, b, _, n in counts if b == bucket) for bucket in BUCKETS}
    medians = store.bucket_medians(query)
    ablations = store.ablations(ensemble)
    bounds = bucket_bounds(row.n_comparisons, epsilon)
    at = {} if (theta, epsilon) == (row.theta, row.epsilon) else {"theta": theta, "epsilon": epsilon}
    table = f"/s/{study}/{ensemble}/features"
    links = {bucket: render.url(table, bucket=bucket, **at) for bucket in BUCKETS}
    masked = {mask: [a for a in ablations if a.mask == mask] for mask in {a.mask for a in ablations}}
    masked_ev = {mask: fmean(a.ev for a in held) for mask, held in sorted(masked.items())}
    per_decade = 4
    drawn = [
        figures.stability_distribution(counts, store.null_counts(ensemble, theta), row.n_comparisons, links),
        figures.density_by_bucket(store.density_histogram(query, per_decade=per_decade), medians, per_decade),
    ]
    cosines = store.cosine_matrix(ensemble)
    if len(cosines):
        drawn.append(_sweep(store, ensemble, cosines, theta, epsilon))
        settled = convergence(is_match(cosines, theta), epsilon=epsilon)
        drawn.append(figures.convergence(*(values.tolist() for values in settled), n_features=len(cosines)))
    if "N stable" in masked:
        drawn.insert(2, figures.ablation(ablations, _ablation_title(masked_ev)))
    return EnsemblePage(
        study=store.study,
        ensemble=row,
        theta=theta,
        epsilon=epsilon,
        buckets=buckets,
        bucket_medians=medians,
        members=[_member_line(m, counts) for m in store.members(ensemble)],
        null_rates=store.null_rates(ensemble, theta),
        null_p999=store.null_p999(ensemble),
        p_stable_at_all=score(row.n_comparisons, row.n_comparisons, epsilon=epsilon).p_stable,
        masked_ev=masked_ev,
        masked_n=fmean(a.n_masked for a in masked["N stable"]) if "N stable" in masked else 0,
        sentence=_sentence(buckets, row, masked_ev, at),
        stable_from=bounds.stable,
        unstable_to=bounds.unstable,
        figure_list=drawn,
        nav_push=render.url(f"/s/{study}/{ensemble}", **at),
    )


def _sweep(store: StudyStore, ensemble: str, cosines: np.ndarray, theta: float, epsilon: float) -> figures.Figure:
    chance = [store.null_rates(ensemble, t)["second_moment"] for t in SWEEP]
    return figures.theta_sweep(SWEEP, bucket_shares(cosines, SWEEP, epsilon), chance, theta, len(cosines))


def _summary(store: StudyStore, row: schema.Ensemble) -> EnsembleSummary:
    counts = store.matched_counts(FeatureQuery(row.ensemble, row.theta, row.epsilon))
    shares = _shares(counts)
    members = store.members(row.ensemble)
    return EnsembleSummary(
        ensemble=row,
        n_features=row.n_members * row.d_sae,
        n_dead=sum(m.n_dead for m in members),
        **shares,
        ev=fmean(m.ev for m in members),
        l0=fmean(m.l0 for m in members),
    )


def _shares(counts: list[tuple[int, str, int, int]]) -> dict[str, float]:
    living = sum(n for _, bucket, _, n in counts if bucket != "dead") or 1
    return {b: sum(n for _, bucket, _, n in counts if bucket == b) / living for b in ("stable", "middle", "unstable")}


def _member_line(member: schema.Member, counts: list[tuple[int, str, int, int]]) -> MemberLine:
    shares = _shares([c for c in counts if c[0] == member.seed])
    return MemberLine(member.seed, member.sae_digest, member.ev, member.l0, member.n_dead, **shares)


def _ablation_title(ev: dict[str, float]) -> str:
    cost = {mask: ev["none"] - ev[mask] for mask in ("N stable", "4N unstable")}
    dearer, cheaper = max(cost, key=cost.get), min(cost, key=cost.get)
    if cost[cheaper] <= 0:
        return f"Masking {dearer} features costs {cost[dearer]:.3f} EV, masking {cheaper} costs nothing"
    return f"Masking {dearer} features costs {cost[dearer] / cost[cheaper]:.1f} times as much EV as masking {cheaper}"


def _sentence(buckets: dict[str, int], row: schema.Ensemble, ev: dict[str, float], at: dict[str, float]) -> str:
    """The overview in one sentence, made from its numbers."""
    living = sum(n for bucket, n in buckets.items() if bucket != "dead") or 1
    need = bucket_bounds(row.n_comparisons, at.get("epsilon", row.epsilon)).stable
    seeds = "every other seed" if need == row.n_comparisons else f"at least {need} of {row.n_comparisons} other seeds"
    stable, unstable = (percent(buckets[bucket] / living, 0) for bucket in ("stable", "unstable"))
    text = f"{stable} of living features come back in {seeds}, {unstable} in "
    text += "none" if at.get("epsilon", row.epsilon) * row.n_comparisons < 1 else "almost none"
    if "N stable" not in ev:
        return text + "."
    when = f" (buckets at θ = {row.theta:g})" if at else ""
    return text + (
        f"; masking N stable ones lowers explained variance from {ev['none']:.2f} to {ev['N stable']:.2f}, "
        f"masking four times as many unstable ones to {ev['4N unstable']:.2f}{when}."
    )
