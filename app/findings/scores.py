"""Scores of an ensemble's explanations: by bucket, and against stability with a band over seeds."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seedscope.app.findings.bucket_comparison import JUDGED, Quartiles
from seedscope.app.findings.member_bootstrap import draw_members, intervals


class ScoreTally(NamedTuple):
    """An explainer's results on the judged features of an ensemble, counted; the first seven have an entry per bucket of JUDGED."""

    n_features: np.ndarray
    n_asked: np.ndarray  # that there is a row of
    n_explained: np.ndarray  # that have a text
    n_failed: np.ndarray  # explaining or scoring failed
    n_scored: np.ndarray
    n_above: np.ndarray  # scored above what 95 % of shuffled labels stay below
    scores: list[Quartiles]
    shuffled_p95: list[float | None]  # median over the scored
    n: np.ndarray  # (members, N + 1) scored features by X
    total: np.ndarray  # (members, N + 1) the sum of their scores


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


def by_bucket(tally: ScoreTally) -> list[BucketScores]:
    """One line per bucket of features that live."""
    lines = []
    for i, name in enumerate(JUDGED):
        n_scored, n_above = int(tally.n_scored[i]), int(tally.n_above[i])
        lines.append(
            BucketScores(
                name, int(tally.n_features[i]), int(tally.n_asked[i]), int(tally.n_explained[i]), n_scored,
                int(tally.n_failed[i]), tally.scores[i], tally.shuffled_p95[i], n_above, n_above / n_scored if n_scored else None,
            )
        )  # fmt: skip
    return lines


def by_stability(tally: ScoreTally) -> list[ScorePoint]:
    """Mean scores by the number of comparisons that features match in."""
    n, total = tally.n, tally.total
    n_members, n_comparisons = len(n), n.shape[1] - 1
    drawn = draw_members(n_members)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, draws, own = total.sum(0) / n.sum(0), (drawn @ total) / (drawn @ n), total / n
    ends = intervals(draws, n_members)
    by_x = own.T.tolist()
    return [
        ScorePoint(
            x, x / n_comparisons, int(n[:, x].sum()), _known(means[x]), *(ends[x] if n[:, x].any() else (None, None)),
            [_known(mean) for mean in by_x[x]],
        )
        for x in range(n_comparisons + 1)
    ]  # fmt: skip


def _known(value: float) -> float | None:
    return None if value != value else float(value)
