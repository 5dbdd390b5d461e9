"""One feature projected on the spans of a bucket of every other seed, now, by the live engine."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request

from seedscope.app import render
from seedscope.app.formats import density, optional_percent, percent
from seedscope.app.live.asking import Ask, Asking, asks_engine
from seedscope.app.routes.address import EnsembleName, JudgedFeature, StudyName, judged_feature
from seedscope.app.routes.span_members import TIME_LIMIT_S, Members, chosen_members, known, span_of
from seedscope.app.store.feature_sets import alike_in_density, feature_sets
from seedscope.engine.contract.masks import packed
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.contract.tables.features import Feature

router = APIRouter()
N_CONTROLS = 20


class FeatureSpanQuery(Members):
    """In the spans of which bucket of the other seeds."""

    bucket: Literal["stable", "middle", "unstable"] = "unstable"


@dataclass(frozen=True)
class SeedEnergy:
    """A feature's energy in one other seed's span; None from where the span has no such rank."""

    seed: int
    n_rank: int  # directions that the span has
    energy: list[float | None]


@dataclass(frozen=True)
class FeatureProjection:
    """`/s/{study}/{ensemble}/{seed}/{feature}/project`: its energy in every other seed's span, beside features alike in density."""

    study: str
    ensemble: str
    seed: int
    feature: int
    bucket: str  # whose spans
    d_in: int
    rank: int  # that the sentence is of
    ranks: list[int]
    sentence: str
    remarks: list[str]
    seeds: list[SeedEnergy]
    mean: list[float | None]  # over the seeds whose spans have the rank
    low: list[float | None]  # the lowest and the highest of them
    high: list[float | None]
    controls: list[int]  # features of the same seed, nearest in density first
    control_mean: list[float | None]
    control_low: list[float | None]  # central 90 % of the controls
    control_high: list[float | None]
    nav_query: FeatureSpanQuery
    nav_alike: bool  # controls are of nearly its density; else drawn at random


@render.page(
    router,
    "/s/{study}/{ensemble}/{seed}/{feature}/project",
    "feature/project_feature.html",
    "project_feature",
    kept=False,
)
@asks_engine
def project_feature(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedFeature[FeatureSpanQuery], Depends(judged_feature(FeatureSpanQuery))],
) -> Asking[FeatureProjection]:
    """A feature's energy in the span of a bucket of every other seed, against rank, beside features of about its density."""
    store, row, asked, member, feature = opened
    chosen = chosen_members(store, row, asked)
    sets = feature_sets(store, asked.query(ensemble), chosen)
    controls = alike_in_density(store, feature, N_CONTROLS)
    query = LiveQuery(
        "project_feature", study, ensemble, row.folder, tuple(m.seed for m in store.members(ensemble)), seed=member.seed,
        feature=feature.feature, members=tuple(chosen), rows=packed(sets.found), controls=tuple(controls),
    )  # fmt: skip
    arrays = (yield Ask(query, TIME_LIMIT_S)).arrays
    energy, beside = arrays["energy"], _mean(arrays["control"])
    ranks, rank = arrays["ranks"].tolist(), int(arrays["rank"][0])
    n_others = len([s for s in chosen if s != member.seed])
    curves = {
        "mean": _mean(energy),
        "low": _quantile(energy, 0),
        "high": _quantile(energy, 1),
        "control_mean": _mean(beside),
        "control_low": _quantile(beside, 0.05),
        "control_high": _quantile(beside, 0.95),
    }
    shown = {name: [known(value) for value in values] for name, values in curves.items()}
    at = {name: values[ranks.index(rank)] for name, values in shown.items()}
    remarks = [
        f"Spans are fitted on all {asked.bucket} features of a seed ({span_of(arrays['n_rank'].tolist())} directions)."
    ]
    if not asked.members and len(chosen) < row.n_members:
        remarks.append(
            f"Spans of the first {len(chosen)} of {row.n_members} seeds: all would take longer than a page can wait."
        )
    if n_others > len(energy):
        remarks.append(f"{n_others - len(energy)} other seeds have no {asked.bucket} feature.")
    return FeatureProjection(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=feature.feature,
        bucket=asked.bucket,
        d_in=row.d_out,
        rank=rank,
        ranks=ranks,
        sentence=_feature_sentence(at, rank, row.d_out, asked.bucket, len(energy), len(controls), feature),
        remarks=remarks,
        seeds=[
            SeedEnergy(s, n, list(map(known, values)))
            for s, n, values in zip(arrays["seed"].tolist(), arrays["n_rank"].tolist(), energy, strict=True)
        ],
        controls=controls,
        **shown,
        nav_query=asked,
        nav_alike=bool(feature.n_active),
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _quantile(values: np.ndarray, share: float) -> np.ndarray:
    """A quantile over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values).any(0)
    quantiles = np.full(values.shape[1], np.nan)
    if known.any():
        quantiles[known] = np.nanquantile(values[:, known], share, axis=0)
    return quantiles


def _feature_sentence(
    at: dict[str, float | None], rank: int, d: int, bucket: str, n_seeds: int, n_controls: int, feature: Feature
) -> str:
    of = f"the spans of {n_seeds} other seed{'s’' * (n_seeds > 1) or '’s'} {bucket} features"
    if at["mean"] is None:
        return f"At rank {rank:,} none of {of} has so many directions."
    beside = ""
    if at["control_mean"] is not None:
        which = "features drawn at random"
        if feature.n_active and feature.density is not None:
            which = f"living features of nearly its density ({density(feature.density)})"
        beside = (
            f"; {n_controls} {which} {percent(at['control_mean'], 0)} "
            f"(central 90 %: {optional_percent(at['control_low'], 0)} to {optional_percent(at['control_high'], 0)})"
        )
    return (
        f"At rank {rank:,} of {d:,} {of} capture {percent(at['mean'], 0)} of its energy ({optional_percent(at['low'], 0)} to "
        f"{optional_percent(at['high'], 0)} over seeds){beside}; a random subspace {percent(rank / d, 0)}."
    )
