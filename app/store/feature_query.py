"""Which features a list holds, how they are judged, and in which order: what the feature table and its downloads are asked."""

from dataclasses import dataclass
from typing import Literal, get_args

from seedscope.engine.contract.stability import EPSILON, THETA

Sort = Literal[
    "stability", "density", "worth", "loss", "max", "entropy", "score", "cofiring", "predicted", "feature", "relevance"
]
SORTS: tuple[str, ...] = get_args(Sort)


@dataclass(frozen=True)
class FeatureQuery:
    """Which features of an ensemble, judged by which theta and epsilon, in which order."""

    ensemble: str
    theta: float = THETA
    epsilon: float = EPSILON
    rule: str = "argmax"
    seed: int | None = None
    bucket: str | None = None
    dead: str | None = None  # exclude, only, count: judged like all others instead of being a bucket of their own
    stability_min: float | None = None
    stability_max: float | None = None
    density_min: float | None = None
    density_max: float | None = None
    id: int | None = None
    listed: tuple[str, ...] | None = None  # of these alone: SEED/FEATURE, or FEATURE of every seed
    trigger: str | None = None  # one of TRIGGERS, of features that fire
    q: str | None = None  # text that a top token contains, "a token" in quotes, or words of an explanation
    hit: str | None = None  # of HITS: what alone is searched
    score_min: float | None = None  # of the explanation that lists show
    cofire_min: float | None = None  # of the mean correlation with the nearest features of other seeds
    predicted_min: float | None = None  # of the p that a predictor tells of one SAE
    predicted_max: float | None = None
    sort: str | None = None  # None: by `default_sort`
    descending: bool = True

    @property
    def sorted_by(self) -> str:
        """What the rows are sorted by; relevance without a search is no order."""
        return self.sort if self.sort and self.sort != "relevance" else default_sort(self.q)


def default_sort(q: str | None) -> str:
    """What rows are sorted by where nothing is said."""
    return "relevance" if q else "stability"
