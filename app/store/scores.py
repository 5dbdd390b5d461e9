"""Scores of an ensemble's explanations: by bucket, and against stability with a band over seeds."""

from dataclasses import dataclass

import numpy as np

from seedscope.app.store.compare import JUDGED, Quartiles, _draw_members, _interval, _quartiles
from seedscope.app.store.explanations import Scores
from seedscope.engine.contract.stability import BUCKETS


@dataclass(frozen=True)
class BucketScores:
    """Explanations of one bucket's features."""

    bucket: str
    n_features: int
    n_asked: int  # that the explainer was asked about
    n_explained: int  # that have a text
    n_scored: int
    n_failed: int  # explaining or scoring failed
    score: Quartiles
    shuffled_p95: float | None  # median over the scored
    n_above: int  # scored above what 95 % of shuffled labels stay below
    above: float | None  # their share of the scored


@dataclass(frozen=True)
class ScorePoint:
    """Mean score of the features that match in `n_matched` comparisons."""

    n_matched: int
    p: float
    n: int
    mean: float | None
    low: float | None  # 95 %, bootstrap over seeds; None with fewer than three members
    high: float | None
    members: list[float | None]  # every member for itself


def by_bucket(found: Scores) -> list[BucketScores]:
    """One line per bucket of features that live."""
    lines = []
    for name in JUDGED:
        held = found.bucket == BUCKETS.index(name)
        scored = held & ~np.isnan(found.value)
        level = found.shuffled_p95[scored]
        above = int((found.value[scored] > level).sum())
        lines.append(
            BucketScores(
                name, int(held.sum()), int((held & found.attempted).sum()), int((held & found.explained).sum()),
                int(scored.sum()), int((held & found.failed).sum()), _quartiles(found.value[scored]),
                float(np.nanmedian(level)) if (~np.isnan(level)).any() else None,
                above, above / int(scored.sum()) if scored.any() else None,
            )
        )  # fmt: skip
    return lines


def by_stability(found: Scores, seeds: list[int], n_comparisons: int) -> list[ScorePoint]:
    """Mean scores by the number of comparisons that features match in."""
    scored = ~np.isnan(found.value)
    member = np.searchsorted(seeds, found.seed[scored])
    cell = member * (n_comparisons + 1) + found.n_matched[scored]
    shape = (len(seeds), n_comparisons + 1)
    n = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cell, found.value[scored], minlength=shape[0] * shape[1]).reshape(shape)
    drawn = _draw_members(len(seeds))
    with np.errstate(invalid="ignore", divide="ignore"):
        means, draws, own = total.sum(0) / n.sum(0), (drawn @ total) / (drawn @ n), total / n
    points = []
    for x in range(n_comparisons + 1):
        low, high = _interval(draws[:, x], len(seeds)) if n[:, x].any() else (None, None)
        points.append(
            ScorePoint(
                x, x / n_comparisons, int(n[:, x].sum()), _known(means[x]), low, high, [_known(m) for m in own[:, x]]
            )
        )
    return points


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
