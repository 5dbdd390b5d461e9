"""Scores of an ensemble's explanations: by bucket, and against stability with a band over seeds."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seedscope.app.findings.bucket_comparison import JUDGED, Quartiles, quartiles
from seedscope.app.findings.member_bootstrap import draw_members, interval
from seedscope.engine.contract.stability import BUCKETS


class Scores(NamedTuple):
    """An explainer's results on the judged features of an ensemble: equally long columns."""

    seed: np.ndarray
    bucket: np.ndarray  # index into BUCKETS
    n_matched: np.ndarray
    explained: np.ndarray  # whether there is a text
    attempted: np.ndarray  # whether there is a row at all
    value: np.ndarray  # NaN where it was not scored or scoring failed
    shuffled_p95: np.ndarray
    failed: np.ndarray  # explaining or scoring failed


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


def by_bucket(scores: Scores) -> list[BucketScores]:
    """One line per bucket of features that live."""
    lines = []
    for name in JUDGED:
        in_bucket = scores.bucket == BUCKETS.index(name)
        scored = in_bucket & ~np.isnan(scores.value)
        level = scores.shuffled_p95[scored]
        above = int((scores.value[scored] > level).sum())
        lines.append(
            BucketScores(
                name, int(in_bucket.sum()), int((in_bucket & scores.attempted).sum()), int((in_bucket & scores.explained).sum()),
                int(scored.sum()), int((in_bucket & scores.failed).sum()), quartiles(scores.value[scored]),
                float(np.nanmedian(level)) if (~np.isnan(level)).any() else None,
                above, above / int(scored.sum()) if scored.any() else None,
            )
        )  # fmt: skip
    return lines


def by_stability(scores: Scores, seeds: list[int], n_comparisons: int) -> list[ScorePoint]:
    """Mean scores by the number of comparisons that features match in."""
    scored = ~np.isnan(scores.value)
    member = np.searchsorted(seeds, scores.seed[scored])
    cell = member * (n_comparisons + 1) + scores.n_matched[scored]
    shape = (len(seeds), n_comparisons + 1)
    n = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cell, scores.value[scored], minlength=shape[0] * shape[1]).reshape(shape)
    drawn = draw_members(len(seeds))
    with np.errstate(invalid="ignore", divide="ignore"):
        means, draws, own = total.sum(0) / n.sum(0), (drawn @ total) / (drawn @ n), total / n
    points = []
    for x in range(n_comparisons + 1):
        low, high = interval(draws[:, x], len(seeds)) if n[:, x].any() else (None, None)
        points.append(
            ScorePoint(
                x, x / n_comparisons, int(n[:, x].sum()), _known(means[x]), low, high, [_known(m) for m in own[:, x]]
            )
        )
    return points


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
