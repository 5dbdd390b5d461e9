"""Stable beside unstable features: metrics by bucket with effect sizes, and trigger classes, with intervals over members."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from seedscope.app.findings.member_bootstrap import draw_members, finite, interval
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.stability import BUCKETS

JUDGED = BUCKETS[:3]  # a dead feature has nothing to compare


class Metric(NamedTuple):
    """A number that every feature has once its analysis was computed."""

    column: str
    words: str
    unit: str
    analysis: str | None  # of schema.ANALYSES; None: the decoder alone says it


MetricName = Literal["density", "entropy", "top_share", "worth_ev", "worth_loss", "norm", "max"]
METRICS: dict[str, Metric] = {  # by MetricName
    "density": Metric("density", "density", "share of tokens", "activity"),
    "entropy": Metric("token_entropy", "token-type entropy", "bits", "activity"),
    "top_share": Metric("top_token_share", "share of the top token type", "share of firings", "activity"),
    "worth_ev": Metric("worth_ev", "marginal EV", "explained variance", "ablate"),
    "worth_loss": Metric("worth_loss", "loss added", "nats per token", "loss"),
    "norm": Metric("decoder_norm", "decoder norm", "", None),
    "max": Metric("max_activation", "max activation", "", "activity"),
}
OF_TOKENS = frozenset({"entropy", "top_share"})  # metrics that recorded activations, which have no tokens, do not have


@dataclass(frozen=True)
class Quartiles:
    """A metric in one bucket; without features all but n are None."""

    n: int
    low: float | None
    median: float | None
    high: float | None


@dataclass(frozen=True)
class MetricLine:
    """A metric in the three buckets, and P(stable > unstable) + P(equal) / 2 with its 95 % interval."""

    metric: str
    words: str
    unit: str
    buckets: dict[str, Quartiles]
    auc: float | None  # None where a bucket is empty
    auc_low: float | None  # None with fewer than three members
    auc_high: float | None


@dataclass(frozen=True)
class TriggerLine:
    """A trigger class: features per bucket, their share of it, and share among unstable / share among stable ones."""

    trigger: str
    counts: dict[str, int]
    shares: dict[str, float]
    ratio: float | None  # None where no stable feature is of the class
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True)
class BucketComparison:
    """What sets the buckets of an ensemble apart; triggers are counted over all features that fire."""

    n_features: int
    n_compared: int  # that the metrics are computed from: all of them, or a fixed random choice
    metrics: list[MetricLine]
    triggers: list[TriggerLine] | None


def trigger_lines(counted: list[tuple[int, int, str | None, int]], seeds: list[int]) -> list[TriggerLine]:
    """Every trigger class, from (seed, index of the bucket, class or None, features) of the buckets of JUDGED."""
    counts = np.zeros((len(seeds), len(JUDGED), len(TRIGGERS)), np.int64)
    for seed, bucket, trigger, n in counted:
        if trigger is not None:
            counts[seeds.index(seed), bucket, TRIGGERS.index(trigger)] = n
    drawn = np.tensordot(draw_members(len(seeds)), counts, 1)
    total, ratio, ratios = counts.sum(0), _ratio(counts.sum(0)), _ratio(drawn)
    size = np.maximum(total.sum(1), 1)
    return [
        TriggerLine(
            trigger,
            {bucket: int(total[b, t]) for b, bucket in enumerate(JUDGED)},
            {bucket: float(total[b, t] / size[b]) for b, bucket in enumerate(JUDGED)},
            finite(ratio[t]),
            *interval(ratios[:, t], len(seeds)),
        )
        for t, trigger in enumerate(TRIGGERS)
    ]


def metric_line(name: str, values: np.ndarray, bucket: np.ndarray, member: np.ndarray, n_members: int) -> MetricLine:
    """A metric by bucket and its AUC, from one value, bucket (index into BUCKETS) and member index per feature; NaN: unknown."""
    known = ~np.isnan(values)
    of = {b: known & (bucket == i) for i, b in enumerate(JUDGED)}
    stable, unstable = of["stable"], of["unstable"]
    wins, pairs = _wins(values[stable], member[stable], values[unstable], member[unstable], n_members)
    auc, low, high = None, None, None
    if pairs.sum():
        drawn = draw_members(n_members)
        auc = float(wins.sum() / pairs.sum())
        total = ((drawn @ pairs) * drawn).sum(1)
        held = total > 0  # a draw may hold members without a stable feature
        low, high = interval(((drawn @ wins) * drawn).sum(1)[held] / total[held], n_members)
    return MetricLine(
        name, METRICS[name].words, METRICS[name].unit, {b: quartiles(values[i]) for b, i in of.items()}, auc, low, high
    )


def _wins(
    a: np.ndarray, member_a: np.ndarray, b: np.ndarray, member_b: np.ndarray, n_members: int
) -> tuple[np.ndarray, np.ndarray]:
    """(members of a, members of b): pairs in which a's value is larger, ties half; and all pairs.

    A bootstrap over members is then two small products per draw instead of another sort.
    """
    order = np.argsort(b, kind="stable")
    below = np.zeros((len(b) + 1, n_members), np.int32)  # b's features per member among the smallest
    below[np.arange(1, len(b) + 1), member_b[order]] = 1
    below.cumsum(0, out=below)
    beaten_twice = below[np.searchsorted(b[order], a, "left")]  # whole numbers: a tie counts one half
    beaten_twice += below[np.searchsorted(b[order], a, "right")]
    wins = np.zeros((n_members, n_members))
    by_member = np.argsort(member_a, kind="stable")
    present, starts = np.unique(member_a[by_member], return_index=True)
    if len(present):
        wins[present] = np.add.reduceat(beaten_twice[by_member], starts, dtype=np.int64) / 2
    return wins, np.outer(np.bincount(member_a, minlength=n_members), np.bincount(member_b, minlength=n_members))


def _ratio(counts: np.ndarray) -> np.ndarray:
    """Share of every class among unstable features over that among stable ones; counts (..., buckets, classes)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = counts / counts.sum(-1, keepdims=True)
        return shares[..., JUDGED.index("unstable"), :] / shares[..., JUDGED.index("stable"), :]


def quartiles(values: np.ndarray) -> Quartiles:
    """Count and quartiles of values without NaN."""
    if not len(values):
        return Quartiles(0, None, None, None)
    return Quartiles(len(values), *(float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))))
