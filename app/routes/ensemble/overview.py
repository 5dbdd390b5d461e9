"""The overview of one ensemble: shares of stable and unstable features, how sure they are, and the figures behind them."""

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures import stability
from seedscope.app.figures.buckets import ablation, density_by_bucket
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.masking import CURVES
from seedscope.app.figures.prediction import predicted_distribution, reliability
from seedscope.app.figures.stability import stability_cdf, stability_distribution, theta_sweep
from seedscope.app.findings.ceiling import Ceiling
from seedscope.app.findings.prediction_verdict import prediction_sentence
from seedscope.app.findings.shared_span_claim import control_sentence, question_sentence, spans_sentence
from seedscope.app.formats import percent
from seedscope.app.routes.address import (
    RULE_SAYS,
    EnsembleJudgement,
    EnsembleName,
    JudgedEnsemble,
    StudyName,
    judged,
    judged_shares,
    open_ensemble,
)
from seedscope.app.store.ceiling import ceiling as find_ceiling
from seedscope.app.store.missing import Missing
from seedscope.app.store.predictions import (
    StoredPredictor,
    prediction_counts,
    prediction_sources,
    prediction_table,
    read_predictor,
)
from seedscope.app.store.shared_spans import read_span_summary, searched_control, searched_sides
from seedscope.app.store.study import Sample, StudyStore
from seedscope.engine.contract.schema import N_THETAS
from seedscope.engine.contract.stability import (
    ALONE_SENTENCE,
    BUCKETS,
    bucket_bounds,
    bucket_shares,
    convergence,
    dkw_half_width,
    is_match,
    score,
    seed_bootstrap_band,
)
from seedscope.engine.contract.tables.features import Ablation
from seedscope.engine.contract.tables.shared_spans import SharedSpanSummary
from seedscope.engine.contract.tables.study import Ensemble, Member, Study

router = APIRouter()
SWEEP = [i for i in range(30, 100, 5)]  # grid indices: theta .30 .. .95
PER_DECADE = 4


@dataclass(frozen=True)
class MemberLine:
    """A member on the overview; shares are of the features that are judged."""

    seed: int
    sae_digest: str
    ev: float | None
    l0: float | None
    n_dead: int | None
    n_undirected: int
    stable: float | None  # None, as the next two, for one SAE alone
    middle: float | None
    unstable: float | None


@dataclass(frozen=True)
class EnsemblePage:
    """`/s/{study}/{ensemble}`: stability distribution, buckets, density and ablation by bucket.

    What was not computed is None, and stands in `missing` with the command that adds it.
    """

    study: Study
    ensemble: Ensemble
    theta: float
    epsilon: float
    rule: str
    rules: list[str]
    dead: str | None
    buckets: dict[str, int | None]  # None, but for the dead, of one SAE alone
    bucket_densities: dict[str, tuple[int, float | None]]
    members: list[MemberLine]
    pw_mcc: float | None
    null_rates: dict[str, float]
    null_p999: dict[str, float]
    p_stable_at_all: float | None
    masked_ev: dict[str, float] | None
    masked_n: float | None
    ceiling: Ceiling | None  # of an ensemble with an anchor
    sentence: str
    stable_from: int | None
    unstable_to: int | None
    shared_spans: SharedSpanSummary | None  # None where it was not searched for
    shared_spans_say: str | None  # which share of unstable features' energy lies in small shared spans
    shared_spans_control: str | None  # what the same search finds on the control; None without one, and of a control
    predictor: StoredPredictor | None  # that predicts the one SAE, or that was trained on these
    predicted_says: str | None  # how well, in one sentence
    missing: list[Missing]
    figure_list: list[Figure]
    figure_predicted: Figure | None  # of one SAE whose stability is predicted, as the next
    figure_reliability: Figure | None
    nav_sources: list[str]  # STUDY/ENSEMBLE that its stability can be predicted from; of one SAE alone
    nav_judgement: dict[str, Any]
    nav_rules: dict[str, str]
    nav_judged: str
    nav_push: str


@render.page(router, "/s/{study}/{ensemble}", "ensemble/overview.html", "ensemble")
def ensemble(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[EnsembleJudgement], Depends(judged(EnsembleJudgement))],
) -> EnsemblePage:
    """One ensemble: which share of its features is stable, and what the buckets are worth."""
    store, row, judgement = opened
    theta, epsilon = judgement.theta, judgement.epsilon
    table = store.features(judgement.query(ensemble))
    counts = table.matched_counts()
    buckets = {bucket: sum(n for _, b, _, n in counts if b == bucket) for bucket in BUCKETS}
    # The points of curves stand on the page of what buckets are worth; a mask here has one size per member.
    ablations = [row for row in store.ablations(ensemble) if row.mask not in CURVES]
    bounds = bucket_bounds(row.n_comparisons, epsilon)
    at = judgement.judgement()
    masked = {mask: [a for a in ablations if a.mask == mask] for mask in {a.mask for a in ablations}}
    masked_ev = {mask: fmean(a.ev for a in held) for mask, held in sorted(masked.items())}
    medians = table.bucket_densities()
    compared = row.n_comparisons > 0
    judged = judgement.judged(activity=store.has(ensemble, "activity"))
    predictor = read_predictor(store, ensemble)
    is_predicted = predictor is not None and predictor.predictor.n_predicted is not None
    trained_on = predictor.predictor.trained_on if predictor else ""
    shared_spans = read_span_summary(store, ensemble)
    control = searched_control(row, searched_sides(store, row)) if shared_spans else None
    hungarian = store.pairs(ensemble, "hungarian").summaries(theta) if "hungarian" in store.rules(ensemble) else []
    return EnsemblePage(
        study=store.study,
        ensemble=row,
        theta=theta,
        epsilon=epsilon,
        rule=judgement.rule,
        rules=store.rules(ensemble),
        dead=judgement.dead,
        buckets={bucket: n if compared or bucket == "dead" else None for bucket, n in buckets.items()},
        bucket_densities=medians,
        members=_member_lines(store.members(ensemble), counts),
        pw_mcc=fmean(pair.mean_cosine for pair in hungarian) if hungarian else None,
        null_rates=store.null_rates(ensemble, theta, judgement.rule),
        null_p999=store.null_p999(ensemble, judgement.rule),
        p_stable_at_all=score(row.n_comparisons, row.n_comparisons, epsilon=epsilon).p_stable if compared else None,
        masked_ev=masked_ev if store.has(ensemble, "ablate") else None,
        masked_n=_masked_n(masked) if store.has(ensemble, "ablate") else None,
        ceiling=find_ceiling(store, judgement.query(ensemble)),
        sentence=_sentence(
            buckets, row, masked_ev, _masked_n(masked), at, epsilon, activity=store.has(ensemble, "activity")
        ),
        stable_from=bounds.stable if compared else None,
        unstable_to=bounds.unstable if compared else None,
        shared_spans=shared_spans,
        shared_spans_say=(question_sentence(shared_spans) or spans_sentence(shared_spans, []))
        if shared_spans
        else None,
        shared_spans_control=control_sentence(control) if control else None,
        predictor=predictor,
        predicted_says=prediction_sentence(predictor.scores) if predictor else None,
        missing=list(store.missing(ensemble).values()),
        figure_predicted=predicted_distribution(prediction_counts(store, ensemble), trained_on)
        if is_predicted
        else None,
        figure_reliability=reliability(predictor.bins, trained_on) if predictor and is_predicted else None,
        figure_list=_figures(store, row, judgement, counts, ablations, masked_ev, table.density_histogram(), medians),
        nav_sources=[] if compared else prediction_sources(request.app.state.studies.all(), row),
        nav_judgement=at,
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_judged=judged,
        nav_push=render.url(f"/s/{study}/{ensemble}", **at),
    )


@router.get("/s/{study}/{ensemble}/predicted.csv", name="predicted.csv")
@router.get("/s/{study}/{ensemble}/predicted.parquet", name="predicted.parquet")
def download_predictions(request: Request, study: StudyName, ensemble: EnsembleName) -> Response:
    """The predicted p of every living feature of one SAE, with its interval, as CSV or Parquet."""
    store, _ = open_ensemble(request, study, ensemble)
    return render.download(request, prediction_table(store, ensemble), f"{study}-{ensemble}-predicted")


def _figures(
    store: StudyStore,
    row: Ensemble,
    judgement: EnsembleJudgement,
    counts: list[tuple[int, str, int, int]],
    ablations: list[Ablation],
    masked_ev: dict[str, float],
    densities: list[tuple[str, int, int]],
    medians: dict[str, tuple[int, float | None]],
) -> list[Figure]:
    """Every figure that can be drawn; what needs whole cosine lists is drawn from the store's sample of features."""
    theta, epsilon, name = judgement.theta, judgement.epsilon, row.ensemble
    table = f"/s/{store.study.study}/{name}/features"
    links = {bucket: render.url(table, bucket=bucket, **judgement.judgement()) for bucket in BUCKETS}
    null = store.null_counts(name, theta, judgement.rule)
    activity = store.has(name, "activity")
    judged = judgement.judged(activity=activity)
    if not row.n_comparisons:
        return []
    drawn = [stability_distribution(counts, null, row.n_comparisons, links, judged)]
    if activity:
        drawn.append(density_by_bucket(densities, medians, PER_DECADE))
    if "N stable" in masked_ev:
        drawn.append(ablation(ablations, _ablation_title(masked_ev)))
    sample = store.sample(name, judgement.rule, judgement.dead == "count")
    if not len(sample.cosines):
        return drawn
    if row.n_comparisons == 1:  # p is 0 or 1, and there is no smaller number of seeds
        return [*drawn, _sweep(store, row, judgement, sample, judged)]
    band = seed_bootstrap_band(is_match(sample.cosines, theta), sample.anchor, row.n_members)
    drawn.append(stability_cdf(counts, null, band, row.n_comparisons, dkw_half_width(row.d_sae)))
    drawn.append(_sweep(store, row, judgement, sample, judged))
    by_x = np.zeros(row.n_comparisons + 1, int)
    for _, bucket, x, n in counts:
        by_x[x] += n if bucket != "dead" else 0
    settled = convergence(by_x, epsilon=epsilon)
    n, same_bucket, error = (values.tolist() for values in settled)
    drawn.append(stability.convergence(n, same_bucket, error, int(by_x.sum()), judged))
    return drawn


def _sweep(store: StudyStore, row: Ensemble, judgement: EnsembleJudgement, sample: Sample, judged: str) -> Figure:
    shares = bucket_shares(sample.counts[:, SWEEP], row.n_comparisons, judgement.epsilon)
    thetas = [i / (N_THETAS - 1) for i in SWEEP]
    rates = [store.null_rates(row.ensemble, theta, judgement.rule) for theta in thetas]
    chance = {kind: [rate[kind] for rate in rates] for kind in rates[0]}
    return theta_sweep(thetas, shares, chance, judgement.theta, len(sample.cosines), judged)


def _member_lines(members: list[Member], counts: list[tuple[int, str, int, int]]) -> list[MemberLine]:
    per_seed: dict[int, list[tuple[int, str, int, int]]] = {}
    for entry in counts:
        per_seed.setdefault(entry[0], []).append(entry)
    return [
        MemberLine(
            m.seed, m.sae_digest, m.ev, m.l0, m.n_dead, m.n_undirected, **judged_shares(per_seed.get(m.seed, []))
        )
        for m in members
    ]


def _masked_n(masked: dict[str, list[Ablation]]) -> float:
    """N of the headline, mean over members; 0 where the buckets hold too few."""
    return fmean(a.n_masked for a in masked["N stable"]) if "N stable" in masked else 0


def _ablation_title(ev: dict[str, float]) -> str:
    cost = {mask: ev["none"] - ev[mask] for mask in ("N stable", "4N unstable")}
    dearer, cheaper = max(cost, key=cost.__getitem__), min(cost, key=cost.__getitem__)
    if cost[cheaper] <= 0:
        return f"Removing {dearer} features costs {cost[dearer]:.3f} EV, removing {cheaper} costs nothing"
    return f"Removing {dearer} features costs {cost[dearer] / cost[cheaper]:.1f} times as much EV as removing {cheaper}"


def _sentence(
    buckets: dict[str, int],
    row: Ensemble,
    ev: dict[str, float],
    n_masked: float,
    at: dict[str, Any],
    epsilon: float,
    *,
    activity: bool,
) -> str:
    """The overview in one sentence, made from its numbers."""
    if not row.n_comparisons:
        return ALONE_SENTENCE
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
    when = f" (buckets at θ = {row.theta:g}, ε = {row.epsilon:g}, nearest)" if at else ""
    return text + (
        f"; removing {n_masked:.0f} stable features per SAE lowers explained variance "
        f"from {ev['none']:.2f} to {ev['N stable']:.2f}, "
        f"removing four times as many unstable ones to {ev['4N unstable']:.2f}{when}."
    )
