"""How well stability is told from one SAE: AUROC, calibration and reliability of held-out clusters, beside controls and nulls.

Intervals come from a bootstrap over seeds [definition of this project]: members are drawn with replacement, as anchors and as
comparisons at once, and a member is not compared with its own copies. The predictions stay as they are: the interval says how much
the seeds at hand decide, not how much another predictor would differ.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from seedscope.engine.contract.stability import EPSILON, bucket_bounds
from seedscope.engine.contract.tables.predictions import DECODER_INPUTS
from seedscope.engine.geometry.predictor import CrossPredicted, HeldOutPredictions, LabelledFeatures, cross_predict

N_DRAWS = 200
N_BINS = 10  # of equal size
STRATA = 10  # of density, within which labels are shuffled


class ScoreWithInterval(NamedTuple):
    """A figure with its 95 % interval over seeds."""

    value: float
    low: float
    high: float


class PredictionQuality(NamedTuple):
    """How predictions of held-out features compare with their matches."""

    auroc: ScoreWithInterval  # comparisons with a match against those without
    auroc_stable: float | None  # stable features against unstable ones; None where either are missing
    error: ScoreWithInterval  # calibration error
    predicted: np.ndarray  # (bins,) mean prediction
    observed: np.ndarray  # (bins, 3) share of comparisons that match, with its interval
    counts: np.ndarray  # (bins,) features
    n_rows: int


def quality(
    predicted: np.ndarray, features: LabelledFeatures, *, epsilon: float = EPSILON, seed: int = 0
) -> PredictionQuality:
    """Compare predictions (n,) with the matches of the features."""
    matches, misses = _outcome_weights(features, seed)
    aurocs = weighted_auroc(predicted, matches, misses)
    bins = _equal_bins(predicted)
    totals = [np.stack([each[bins == b].sum(0) for b in range(bins.max() + 1)]) for each in (matches, misses)]
    weight = totals[0] + totals[1]
    sums = np.stack([((matches + misses) * predicted[:, None])[bins == b].sum(0) for b in range(bins.max() + 1)])
    with np.errstate(invalid="ignore", divide="ignore"):
        observed, mean = totals[0] / weight, sums / weight
        errors = np.nansum(weight * np.abs(mean - observed), 0) / weight.sum(0)
    intervals = [with_interval(row) for row in observed]
    return PredictionQuality(
        with_interval(aurocs), _auroc_of_buckets(predicted, features, epsilon), with_interval(errors), mean[:, 0],
        np.array(intervals), np.bincount(bins), len(predicted),
    )  # fmt: skip


def _outcome_weights(features: LabelledFeatures, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 1 + N_DRAWS) weights of each feature's matches and misses: of the members as they are, then of every draw.

    A feature's comparisons weigh together what its member weighs: features count alike, as in p.
    """
    n_members = features.matched.shape[1]
    drawn = np.random.default_rng(seed).multinomial(n_members, np.full(n_members, 1 / n_members), N_DRAWS)
    times = np.concatenate([np.ones((1, n_members)), drawn]).T  # (members, draws)
    matches, known = (features.matched == 1) @ times, (features.matched >= 0) @ times
    own = times[features.member]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(known > 0, matches / known, 0)
    own = np.where(known > 0, own, 0)
    return own * share, own * (1 - share)


def weighted_auroc(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """(draws,) how often a positive outcome has the larger score; ties count half. Weights are (n, draws).

    As sklearn.metrics.roc_auc_score with sample weights, for all draws at once; NaN where a draw has outcomes of one kind only.
    """
    order = np.argsort(score, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    above, below = (np.add.reduceat(each[order], first, axis=0) for each in (positive, negative))
    before = below.cumsum(0) - below / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area: np.ndarray = (above * before).sum(0) / (above.sum(0) * below.sum(0))
    return area


def single_aurocs(features: LabelledFeatures) -> list[float]:
    """AUROC of matches against misses by each input alone, its values taken as they are."""
    p = features.p[:, None]
    return [float(weighted_auroc(column, p, 1 - p)[0]) for column in features.values.T]


def with_interval(values: np.ndarray) -> ScoreWithInterval:
    """A value, which comes first, with the spread of the draws that follow, centred on it: repeated seeds shift draws."""
    value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not len(draws):
        return ScoreWithInterval(value, value, value)
    low, high = value + np.quantile(draws, (0.025, 0.975)) - draws.mean()
    return ScoreWithInterval(value, float(min(max(low, 0), value)), float(max(min(high, 1), value)))


def _equal_bins(predicted: np.ndarray) -> np.ndarray:
    """(n,) bin of each prediction: about N_BINS of equal size, equal predictions in one bin."""
    edges = np.unique(np.quantile(predicted, np.arange(1, N_BINS) / N_BINS))
    return np.unique(np.searchsorted(edges, predicted, side="left"), return_inverse=True)[1]


def _auroc_of_buckets(predicted: np.ndarray, features: LabelledFeatures, epsilon: float) -> float | None:
    from sklearn.metrics import roc_auc_score  # a second to import

    counts, known = (features.matched == 1).sum(1), (features.matched >= 0).sum(1)
    bounds = {n: bucket_bounds(int(n), epsilon) for n in np.unique(known)}
    stable = counts >= np.array([bounds[n].stable for n in known])
    unstable = ~stable & (counts <= np.array([bounds[n].unstable for n in known]))
    if not (stable.any() and unstable.any()):
        return None
    kept = stable | unstable
    return float(roc_auc_score(stable[kept], predicted[kept]))


def coverage(tested: CrossPredicted, features: LabelledFeatures) -> tuple[float, float]:
    """(share of features whose p lies in the interval that the other folds give it, mean width of these intervals)."""
    inside, width, true = np.zeros(len(true_p := features.p), bool), np.zeros(len(true_p)), true_p
    for number in np.unique(tested.fold):
        here = tested.fold == number
        low, high = HeldOutPredictions.of(tested.p[~here], true[~here]).interval(tested.p[here])
        inside[here] = (true[here] >= low) & (true[here] <= high)
        width[here] = high - low
    return float(inside.mean()), float(width.mean())


class ChanceLabels(NamedTuple):
    """Matches of some features with rotated dictionaries."""

    at: np.ndarray  # (m,) rows of the features that were compared
    cosine: np.ndarray  # (m, members) best cosines; -2 for their own member


def rotated_labels(features: LabelledFeatures, chance: ChanceLabels) -> LabelledFeatures:
    """The same features, matched where the cosine with a rotated dictionary is large: as often as they match in truth."""
    some = features.at(chance.at)
    known = some.matched >= 0
    level = np.quantile(chance.cosine[known], 1 - (some.matched[known] == 1).mean())
    return some._replace(matched=np.where(known, chance.cosine > level, -1).astype(np.int8))


def shuffled_labels(features: LabelledFeatures, density: np.ndarray, seed: int = 0) -> LabelledFeatures:
    """The same features with the matches of others of the same member and about the same density, all of a feature's together."""
    rng = np.random.default_rng(seed)
    stratum = np.searchsorted(np.quantile(density, np.arange(1, STRATA) / STRATA), density)
    matched = features.matched.copy()
    for member in np.unique(features.member):
        for each in range(STRATA):
            at = np.flatnonzero((features.member == member) & (stratum == each))
            matched[at] = features.matched[rng.permutation(at)]
    return features._replace(matched=matched)


def settings_of(
    features: LabelledFeatures, inputs: Sequence[str], kind: str, chance: ChanceLabels | None
) -> dict[str, Callable[[], tuple[np.ndarray, LabelledFeatures]]]:
    """{setting: what predicts the features in it and returns predictions with the features}, but for `clusters`, the main one."""

    def predicted(some: LabelledFeatures) -> tuple[np.ndarray, LabelledFeatures]:
        return cross_predict(some, kind).p, some

    def seen(names: Sequence[str]) -> LabelledFeatures:
        return features._replace(values=features.values[:, [inputs.index(name) for name in names]])

    def apart() -> tuple[np.ndarray, LabelledFeatures]:
        alone = features._replace(cluster=np.random.default_rng(0).permutation(len(features.values)))
        return predicted(alone)

    settings = {"features": apart}
    by_decoder = [name for name in inputs if name in DECODER_INPUTS]
    if by_decoder and len(by_decoder) < len(inputs):
        settings["decoder"] = lambda: predicted(seen(by_decoder))
    if "density" in inputs:
        density = features.values[:, inputs.index("density")]
        settings["density"] = lambda: predicted(seen(["density"]))
        settings["shuffled"] = lambda: predicted(shuffled_labels(features, density))
    if chance is not None:
        settings["rotated"] = lambda: predicted(rotated_labels(features, chance))
    return settings
