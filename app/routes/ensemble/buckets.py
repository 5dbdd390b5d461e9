"""Buckets compared: metrics and trigger classes of stable beside unstable features, and a metric against stability."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends
from pydantic import Field

from seedscope.app import render
from seedscope.app.figures.drawing import CellLinks, Figure
from seedscope.app.figures.scatter import Cloud, Dots, ScatterCells, metric_scatter
from seedscope.app.findings.bucket_comparison import METRICS, BucketComparison, MetricName
from seedscope.app.formats import percent
from seedscope.app.routes.address import (
    RULE_SAYS,
    DensityRange,
    EnsembleJudgement,
    EnsembleName,
    JudgedEnsemble,
    StudyName,
    Trigger,
    judged,
)
from seedscope.app.store.errors import BadValue
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
TERMS = {
    "density": "density", "entropy": "entropy", "top_share": "top_share", "worth_ev": "worth_ev", "worth_loss": "worth_loss",
    "norm": "decoder_norm", "max": "max_activation",
}  # fmt: skip
# Quantities that pages show in other units than the JSON holds: metric -> (factor, unit).
SHOWN_UNITS = {
    "density": (100, "% of tokens"), "top_share": (100, "% of firings"), "worth_ev": (1000, "‰ of variance"),
    "worth_loss": (1000, "mnat per token"),
}  # fmt: skip


class BucketsQuery(EnsembleJudgement, DensityRange):
    """The judgement, the scatter's metric, and the filter that greys its other points."""

    metric: Annotated[MetricName | None, Field(description="the scatter's; density where it is known")] = None
    bucket: Literal["stable", "middle", "unstable"] | None = None
    trigger: Trigger | None = None


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
class BucketsPage:
    """`/s/{study}/{ensemble}/buckets`: metrics and trigger classes by bucket, and a metric against stability."""

    study: Study
    ensemble: Ensemble
    theta: float
    epsilon: float
    rule: str
    rules: list[str]
    dead: str | None
    null_rates: dict[str, float]
    null_p999: dict[str, float]
    comparison: BucketComparison
    scatter: ScatterSummary
    missing: list[Missing]
    figure_scatter: Figure
    nav_judgement: dict[str, Any]
    nav_rules: dict[str, str]
    nav_judged: str
    nav_push: str
    nav_title: str
    nav_metrics: dict[str, str]
    nav_units: dict[str, tuple[float, str]]
    nav_terms: dict[str, str]  # {metric: its entry of the glossary}
    nav_filter: dict[str, Any]


@render.page(router, "/s/{study}/{ensemble}/buckets", "ensemble/buckets.html", "buckets")
def buckets(
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[BucketsQuery], Depends(judged(BucketsQuery))],
) -> BucketsPage:
    """What sets stable features apart: medians and effect sizes by bucket, trigger classes, a metric against stability."""
    store, row, judgement = opened
    store.require_comparisons(ensemble)
    metrics = store.comparisons.metrics(ensemble)
    drawn, summary = _scatter(store, row, judgement, metrics)
    comparison = store.comparisons.compare(judgement.query(ensemble))
    return BucketsPage(
        study=store.study,
        ensemble=row,
        theta=judgement.theta,
        epsilon=judgement.epsilon,
        rule=judgement.rule,
        rules=store.rules(ensemble),
        dead=judgement.dead,
        null_rates=store.null_rates(ensemble, judgement.theta, judgement.rule),
        null_p999=store.null_p999(ensemble, judgement.rule),
        comparison=comparison,
        scatter=summary,
        missing=list(store.missing(ensemble).values()),
        figure_scatter=drawn,
        nav_judgement=judgement.judgement(),
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_judged=judgement.judged(activity=store.has(ensemble, "activity")),
        nav_push=render.url(f"/s/{study}/{ensemble}/buckets", **judgement.parameters()),
        nav_title=_comparison_title(comparison),
        nav_metrics={name: _named(name) for name in metrics},
        nav_units={line.metric: SHOWN_UNITS.get(line.metric, (1, line.unit)) for line in comparison.metrics},
        nav_terms=TERMS,
        nav_filter={
            "bucket": judgement.bucket,
            "trigger": judgement.trigger,
            "density_min": judgement.density_min,
            "density_max": judgement.density_max,
        },
    )


def _scatter(
    store: StudyStore, row: Ensemble, judgement: BucketsQuery, metrics: list[str]
) -> tuple[Figure, ScatterSummary]:
    metric = judgement.metric or metrics[0]
    lacking, analysis = store.missing(row.ensemble), METRICS[metric].analysis
    if metric not in metrics:
        reason = lacking.get(analysis or "", lacking.get("contexts", "not computed"))
        raise BadValue("metric", repr(metric), f"{', '.join(metrics)}, no {metric}: {reason}")
    for name in ("trigger", "density_min", "density_max"):
        if getattr(judgement, name) is not None and "activity" in lacking:
            raise BadValue(name, repr(getattr(judgement, name)), f"no filter by {name}: {lacking['activity']}")
    if judgement.trigger is not None and "contexts" in lacking:
        raise BadValue("trigger", repr(judgement.trigger), f"no filter by trigger: {lacking['contexts']}")
    query = judgement.query(row.ensemble)
    marks = {name: getattr(judgement, name) for name in ("bucket", "trigger", "density_min", "density_max")}
    scatter = store.comparisons.scatter(query, metric, replace(query, **marks))
    n, base, at = row.n_comparisons, f"/s/{store.study.study}/{row.ensemble}", judgement.judgement()
    cells = scatter.cells
    drawn: Dots | ScatterCells
    if scatter.points is not None:
        drawn = Dots(*scatter.points)
    elif cells is not None:
        drawn = ScatterCells(
            cells.edges, cells.counts, cells.chosen, _cell_links(f"{base}/features", at | marks, metric, cells.edges, n)
        )
    cloud = Cloud(scatter.n, scatter.n_chosen, scatter.is_log, scatter.floor, scatter.n_floored, drawn)
    figure = metric_scatter(cloud, _named(metric), METRICS[metric].unit, n, base, render.url("", **at))
    return figure, ScatterSummary(
        metric, scatter.n, scatter.n_chosen, scatter.is_log, scatter.n_floored, scatter.cells is not None, figure.table
    )


def _cell_links(table: str, parameters: dict[str, Any], metric: str, edges: np.ndarray, n: int) -> CellLinks:
    """The table of a cell's features: under the parameters, with its density, and with its stability."""
    if metric == "density":  # the table filters by it; of other metrics a cell opens its column
        parameters = {name: value for name, value in parameters.items() if name not in ("density_min", "density_max")}
        limits = [{"density_min": float(low), "density_max": min(float(high), 1.0)} for low, high in pairwise(edges)]
        rows = [f"{render.url('', **each)[1:]}&" for each in limits]
    else:
        rows = [""] * (len(edges) - 1)
    columns = [render.url("", stability_min=x / n, stability_max=x / n)[1:] for x in range(n + 1)]
    address = render.url(table, **parameters)
    return CellLinks(f"{address}{'&' if '?' in address else '?'}", rows, columns)


def _named(metric: str) -> str:
    """A metric in words that tell the two worths apart."""
    return METRICS[metric].words


def _comparison_title(comparison: BucketComparison) -> str:
    """What tells stable from unstable features best."""
    aucs = [(line.auc, line.metric) for line in comparison.metrics if line.auc is not None]
    if not aucs:
        return "What sets stable features apart? One of the two buckets is empty"
    auc, metric = max(aucs, key=lambda each: abs(each[0] - 0.5))
    if abs(auc - 0.5) < 0.05:
        return "No metric sets stable features apart from unstable ones"
    side = "higher" if auc > 0.5 else "lower"
    return f"A stable feature has the {side} {_named(metric)} in {percent(max(auc, 1 - auc), 0)} of pairs"
