"""The overview of one ensemble: which share of its features comes back, how sure that is, and what the buckets are worth."""

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import Field

from app import figures, render
from app.formats import percent
from app.routes.query import RULE_SAYS, EnsembleName, Judgement, Share, StudyName, Trigger, judged_shares, open_judged
from app.store import METRICS, BadValue, Comparison, Missing, Sample, StudyStore
from engine import schema
from engine.schema import N_THETAS
from engine.stability import (
    BUCKETS,
    bucket_bounds,
    bucket_shares,
    convergence,
    dkw_half_width,
    is_match,
    score,
    seed_bootstrap_band,
)

router = APIRouter()
SWEEP = [i for i in range(30, 100, 5)]  # grid indices: theta .30 .. .95
PER_DECADE = 4


class Overview(Judgement):
    """The overview's state: the judgement, the scatter's metric, and the filter that greys its other points."""

    metric: Annotated[Literal[tuple(METRICS)] | None, Field(description="the scatter's; density where it is known")] = (
        None
    )
    bucket: Literal["stable", "middle", "unstable"] | None = None
    trigger: Trigger | None = None
    density_min: Share | None = None
    density_max: Share | None = None


@dataclass(frozen=True)
class MemberLine:
    """A member on the overview; shares are of the features that are judged."""

    seed: int
    sae_digest: str
    ev: float | None
    l0: float | None
    n_dead: int | None
    n_undirected: int
    stable: float
    middle: float
    unstable: float


@dataclass(frozen=True)
class ScatterSummary:
    """A metric against stability, as numbers; `by_p` lists p, features and the median (or its bin)."""

    metric: str
    n: int
    n_chosen: int | None  # that the filter finds; None without one
    is_log: bool
    n_floored: int  # drawn at the lowest value shown
    is_binned: bool
    by_p: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class EnsemblePage:
    """`/s/{study}/{ensemble}`: stability distribution, buckets, density and ablation by bucket.

    What was not computed is None, and stands in `missing` with the command that adds it.
    """

    study: schema.Study
    ensemble: schema.Ensemble
    theta: float
    epsilon: float
    rule: str
    rules: list[str]
    dead: str | None
    buckets: dict[str, int]
    bucket_densities: dict[str, tuple[int, float | None]]
    members: list[MemberLine]
    pw_mcc: float | None
    null_rates: dict[str, float]
    null_p999: dict[str, float]
    p_stable_at_all: float
    masked_ev: dict[str, float] | None
    masked_n: float | None
    comparison: Comparison
    scatter: ScatterSummary
    sentence: str
    stable_from: int
    unstable_to: int
    missing: list[Missing]
    figure_list: list[figures.Figure]
    nav_judgement: dict[str, Any]
    nav_rules: dict[str, str]
    nav_judged: str
    nav_push: str
    nav_title: str
    nav_metrics: dict[str, str]
    nav_filter: dict[str, Any]


@render.page(router, "/s/{study}/{ensemble}", "ensemble.html", "ensemble")
def ensemble(
    request: Request, study: StudyName, ensemble: EnsembleName, judgement: Annotated[Overview, Query()]
) -> EnsemblePage:
    """One ensemble: which share of its features is stable, and what the buckets are worth."""
    store, row, judgement = open_judged(request, study, ensemble, judgement)
    theta, epsilon = judgement.theta, judgement.epsilon
    found = store.features(judgement.query(ensemble))
    counts = found.matched_counts()
    buckets = {bucket: sum(n for _, b, _, n in counts if b == bucket) for bucket in BUCKETS}
    ablations = store.ablations(ensemble)
    bounds = bucket_bounds(row.n_comparisons, epsilon)
    at = judgement.judgement()
    masked = {mask: [a for a in ablations if a.mask == mask] for mask in {a.mask for a in ablations}}
    masked_ev = {mask: fmean(a.ev for a in held) for mask, held in sorted(masked.items())}
    medians = found.bucket_densities()
    judged = judgement.judged(activity=store.has(ensemble, "activity"))
    metrics = store.comparisons.metrics(ensemble)
    scatter, summary = _scatter(store, row, judgement, metrics)
    comparison = store.comparisons.compare(judgement.query(ensemble))
    hungarian = store.pairs(ensemble, "hungarian").summaries(theta) if "hungarian" in store.rules(ensemble) else []
    return EnsemblePage(
        study=store.study,
        ensemble=row,
        theta=theta,
        epsilon=epsilon,
        rule=judgement.rule,
        rules=store.rules(ensemble),
        dead=judgement.dead,
        buckets=buckets,
        bucket_densities=medians,
        members=_member_lines(store.members(ensemble), counts),
        pw_mcc=fmean(pair.mean_cosine for pair, _, _ in hungarian) if hungarian else None,
        null_rates=store.null_rates(ensemble, theta),
        null_p999=store.null_p999(ensemble),
        p_stable_at_all=score(row.n_comparisons, row.n_comparisons, epsilon=epsilon).p_stable,
        masked_ev=masked_ev if store.has(ensemble, "ablate") else None,
        masked_n=_masked_n(masked) if store.has(ensemble, "ablate") else None,
        comparison=comparison,
        scatter=summary,
        sentence=_sentence(buckets, row, masked_ev, at, epsilon, activity=store.has(ensemble, "activity")),
        stable_from=bounds.stable,
        unstable_to=bounds.unstable,
        missing=list(store.missing(ensemble).values()),
        figure_list=[
            *_figures(store, row, judgement, counts, ablations, masked_ev, found.density_histogram(), medians),
            scatter,
        ],
        nav_judgement=at,
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_judged=judged,
        nav_push=render.url(f"/s/{study}/{ensemble}", **judgement.parameters()),
        nav_title=_comparison_title(comparison),
        nav_metrics={name: _named(name) for name in metrics},
        nav_filter={
            "bucket": judgement.bucket,
            "trigger": judgement.trigger,
            "density_min": judgement.density_min,
            "density_max": judgement.density_max,
        },
    )


def _figures(
    store: StudyStore,
    row: schema.Ensemble,
    judgement: Judgement,
    counts: list[tuple[int, str, int, int]],
    ablations: list[schema.Ablation],
    masked_ev: dict[str, float],
    densities: list[tuple[str, int, int]],
    medians: dict[str, tuple[int, float | None]],
) -> list[figures.Figure]:
    """Every figure that can be drawn; what needs whole cosine lists is drawn from the store's sample of features."""
    theta, epsilon, name = judgement.theta, judgement.epsilon, row.ensemble
    table = f"/s/{store.study.study}/{name}/features"
    links = {bucket: render.url(table, bucket=bucket, **judgement.judgement()) for bucket in BUCKETS}
    null = store.null_counts(name, theta)
    activity = store.has(name, "activity")
    judged = judgement.judged(activity=activity)
    drawn = [figures.stability_distribution(counts, null, row.n_comparisons, links, judged)]
    if activity:
        drawn.append(figures.density_by_bucket(densities, medians, PER_DECADE))
    if "N stable" in masked_ev:
        drawn.append(figures.ablation(ablations, _ablation_title(masked_ev)))
    sample = store.sample(name, judgement.rule, judgement.dead == "count")
    if not len(sample.cosines):
        return drawn
    if row.n_comparisons == 1:  # p is 0 or 1, and there is no smaller number of seeds
        return [*drawn, _sweep(store, row, judgement, sample, judged)]
    band = seed_bootstrap_band(is_match(sample.cosines, theta), sample.anchor, row.n_members)
    drawn.append(figures.stability_cdf(counts, null, band, row.n_comparisons, dkw_half_width(row.d_sae)))
    drawn.append(_sweep(store, row, judgement, sample, judged))
    by_x = np.zeros(row.n_comparisons + 1, int)
    for _, bucket, x, n in counts:
        by_x[x] += n if bucket != "dead" else 0
    settled = convergence(by_x, epsilon=epsilon)
    drawn.append(
        figures.convergence(*(values.tolist() for values in settled), n_features=int(by_x.sum()), judged=judged)
    )
    return drawn


def _scatter(
    store: StudyStore, row: schema.Ensemble, judgement: Overview, metrics: list[str]
) -> tuple[figures.Figure, ScatterSummary]:
    metric = judgement.metric or metrics[0]
    lacking, analysis = store.missing(row.ensemble), METRICS[metric].analysis
    if metric not in metrics:
        raise BadValue("metric", repr(metric), f"{', '.join(metrics)}, no {metric}: {lacking[analysis]}")
    for name in ("trigger", "density_min", "density_max"):
        if getattr(judgement, name) is not None and "activity" in lacking:
            raise BadValue(name, repr(getattr(judgement, name)), f"no filter by {name}: {lacking['activity']}")
    query = judgement.query(row.ensemble)
    marks = {name: getattr(judgement, name) for name in ("bucket", "trigger", "density_min", "density_max")}
    found = store.comparisons.scatter(query, metric, replace(query, **marks))
    n, base, at = row.n_comparisons, f"/s/{store.study.study}/{row.ensemble}", judgement.judgement()
    if found.points is not None:
        drawn = figures.Dots(*found.points)
    else:
        links = []
        for low, high in pairwise(found.cells.edges):
            # The table filters by density; of other metrics a cell opens its column.
            more = {"density_min": float(low), "density_max": min(float(high), 1.0)} if metric == "density" else {}
            line = [at | marks | more | {"stability_min": x / n, "stability_max": x / n} for x in range(n + 1)]
            links.append([render.url(f"{base}/features", **parameters) for parameters in line])
        drawn = figures.Cells(*found.cells, links)
    cloud = figures.Cloud(found.n, found.n_chosen, found.is_log, found.floor, found.n_floored, drawn)
    figure = figures.metric_scatter(cloud, _named(metric), METRICS[metric].unit, n, base, render.url("", **at))
    return figure, ScatterSummary(
        metric, found.n, found.n_chosen, found.is_log, found.n_floored, found.cells is not None, figure.table
    )


def _named(metric: str) -> str:
    """A metric in words that tell the two worths apart."""
    return METRICS[metric].words + {"worth_ev": " (EV)", "worth_loss": " (loss)"}.get(metric, "")


def _comparison_title(found: Comparison) -> str:
    """What tells stable from unstable features best."""
    told = [line for line in found.metrics if line.auc is not None]
    if not told:
        return "What sets stable features apart? One of the two buckets is empty"
    best = max(told, key=lambda line: abs(line.auc - 0.5))
    if abs(best.auc - 0.5) < 0.05:
        return "No metric sets stable features apart from unstable ones"
    side = "higher" if best.auc > 0.5 else "lower"
    return (
        f"A stable feature has the {side} {_named(best.metric)} in {percent(max(best.auc, 1 - best.auc), 0)} of pairs"
    )


def _sweep(
    store: StudyStore, row: schema.Ensemble, judgement: Judgement, sample: Sample, judged: str
) -> figures.Figure:
    shares = bucket_shares(sample.counts[:, SWEEP], row.n_comparisons, judgement.epsilon)
    thetas = [i / (N_THETAS - 1) for i in SWEEP]
    rates = [store.null_rates(row.ensemble, theta) for theta in thetas]
    chance = {kind: [rate[kind] for rate in rates] for kind in rates[0]}
    return figures.theta_sweep(thetas, shares, chance, judgement.theta, len(sample.cosines), judged)


def _member_lines(members: list[schema.Member], counts: list[tuple[int, str, int, int]]) -> list[MemberLine]:
    per_seed: dict[int, list[tuple[int, str, int, int]]] = {}
    for entry in counts:
        per_seed.setdefault(entry[0], []).append(entry)
    return [
        MemberLine(
            m.seed, m.sae_digest, m.ev, m.l0, m.n_dead, m.n_undirected, **judged_shares(per_seed.get(m.seed, []))
        )
        for m in members
    ]


def _masked_n(masked: dict[str, list[schema.Ablation]]) -> float:
    """N of the headline, mean over members; 0 where the buckets hold too few."""
    return fmean(a.n_masked for a in masked["N stable"]) if "N stable" in masked else 0


def _ablation_title(ev: dict[str, float]) -> str:
    cost = {mask: ev["none"] - ev[mask] for mask in ("N stable", "4N unstable")}
    dearer, cheaper = max(cost, key=cost.get), min(cost, key=cost.get)
    if cost[cheaper] <= 0:
        return f"Masking {dearer} features costs {cost[dearer]:.3f} EV, masking {cheaper} costs nothing"
    return f"Masking {dearer} features costs {cost[dearer] / cost[cheaper]:.1f} times as much EV as masking {cheaper}"


def _sentence(
    buckets: dict[str, int],
    row: schema.Ensemble,
    ev: dict[str, float],
    at: dict[str, Any],
    epsilon: float,
    *,
    activity: bool,
) -> str:
    """The overview in one sentence, made from its numbers."""
    judged = sum(n for bucket, n in buckets.items() if bucket != "dead") or 1
    need = bucket_bounds(row.n_comparisons, epsilon).stable
    n = row.n_comparisons
    seeds = "every other seed" if need == n else f"at least {need} of {n} other seeds"
    stable, unstable = (percent(buckets[bucket] / judged, 0) for bucket in ("stable", "unstable"))
    which = "all features" if at.get("dead") == "count" else "living features" if activity else "features"
    text = f"{stable} of {which} come back in {seeds}, {unstable} in {'none' if epsilon * n < 1 else 'almost none'}"
    if n == 1:
        text = f"{stable} of {which} come back in the other seed, {unstable} do not"
    if "N stable" not in ev:
        return text + "."
    when = f" (buckets at θ = {row.theta:g}, ε = {row.epsilon:g}, argmax)" if at else ""
    return text + (
        f"; masking N stable ones lowers explained variance from {ev['none']:.2f} to {ev['N stable']:.2f}, "
        f"masking four times as many unstable ones to {ev['4N unstable']:.2f}{when}."
    )
