"""A predictor of p, the probability of a match per comparison, from inputs of one SAE's features; trained on an ensemble.

Every feature stands for its comparisons: those with a match are positive outcomes, those without negative ones. Features of one
cluster of matches are copies of one another, so a cluster is never on both sides: not of the folds that choose the kind of
classifier, nor of those that calibrate it (isotonic regression on held-out clusters), nor of those that test it. Classifiers and
calibration are scikit-learn's; the use of outcomes per comparison and the interval of one feature are this project's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.tables.predictions import INPUTS, PREDICTOR_KINDS

FOLDS = 5  # that test; the calibration within them and the choice of the kind have INNER_FOLDS
INNER_FOLDS = 3
FEWEST_FEATURES = 400  # below it nothing is predicted: nine inputs are fitted and tested on parts of them
FEWEST_CLUSTERS = 4 * FOLDS  # with a match, and as many without
NEIGHBOURS = 200  # held-out features with the nearest predictions that one feature's interval is of
QUANTILES = (0.025, 0.975)
AS_GOOD = 0.02  # of the smallest log loss: a kind that loses no more than this share more is taken where it is simpler
PRIOR = (
    0.5  # matches and non-matches that a step of the calibration is drawn towards by, so that none says 0 or 1 for sure
)


class LabelledFeatures(NamedTuple):
    """Living features of one or more ensembles whose matches are known."""

    values: np.ndarray  # (n, inputs) float64, finite
    matched: (
        np.ndarray
    )  # (n, members) int8: 1 where the member has a match, 0 where not, -1 for its own and absent ones
    member: np.ndarray  # (n,) index of its own member
    cluster: np.ndarray  # (n,) id of its cluster of matches

    @property
    def p(self) -> np.ndarray:
        """(n,) X / N."""
        known = self.matched >= 0
        return (self.matched == 1).sum(1) / np.maximum(known.sum(1), 1)

    def at(self, which: np.ndarray) -> "LabelledFeatures":
        """Some of them."""
        return LabelledFeatures(*(array[which] for array in self))


class TooFewError(ValueError):
    """Raised where nothing can be predicted, and that is no fault of who asks."""


def require_enough(features: LabelledFeatures, fewest: int = FEWEST_FEATURES) -> None:
    """Raise TooFewError, in words, where a predictor could not be trained and tested."""
    if len(features.values) < fewest:
        raise TooFewError(
            f"found {len(features.values):,} living features whose inputs are known, expected at least {fewest:,}"
        )
    p = features.p
    for says, some in (("with a match", p > 0), ("without one in some comparison", p < 1)):
        n = len(np.unique(features.cluster[some]))
        if n < FEWEST_CLUSTERS:
            raise TooFewError(f"found {n} clusters of features {says}, expected at least {FEWEST_CLUSTERS}")


@dataclass(frozen=True)
class StabilityModel:
    """A classifier with its calibration and what the intervals of single features are read from."""

    kind: str  # one of PREDICTOR_KINDS
    classifier: Any
    calibration: Any
    inputs: tuple[str, ...]  # columns of `values`, names out of INPUTS
    held_out: "HeldOutPredictions"  # predictions of the training features by models that saw none of their clusters
    lowest: np.ndarray  # (inputs,) of the training features
    highest: np.ndarray

    def predict(self, values: np.ndarray) -> "Predicted":
        """What it says of features (n, inputs); all inputs must be finite."""
        p = _calibrated(self.calibration, _scores(self.classifier, values))
        inside: np.ndarray = np.all((values >= self.lowest) & (values <= self.highest), axis=1)
        return Predicted(p, *self.held_out.interval(p), inside)


class Predicted(NamedTuple):
    """Predictions of features; arrays (n,)."""

    p: np.ndarray
    low: np.ndarray
    high: np.ndarray
    inside: np.ndarray  # bool


class HeldOutPredictions(NamedTuple):
    """Predicted and true p of features that the predicting model has not seen, in the order of the predicted."""

    predicted: np.ndarray
    true: np.ndarray

    @classmethod
    def of(cls, predicted: np.ndarray, true: np.ndarray, seed: int = 0) -> "HeldOutPredictions":
        """From arrays in any order; features with the same prediction are put in a random order."""
        mixed = np.random.default_rng(seed).permutation(len(predicted))
        order = mixed[np.argsort(predicted[mixed], kind="stable")]
        return cls(predicted[order], true[order])

    def interval(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where 95 % of the NEIGHBOURS features with the nearest predictions have their true p."""
        width = min(NEIGHBOURS, len(self.predicted))
        left, right = (np.searchsorted(self.predicted, p, side=side) for side in ("left", "right"))
        first = np.clip((left + right) // 2 - width // 2, 0, len(self.predicted) - width)
        windows, at = np.unique(first, return_inverse=True)
        true = np.lib.stride_tricks.sliding_window_view(self.true, width)[windows]
        low, high = np.quantile(true, QUANTILES, axis=1, method="inverted_cdf")
        return low[at], high[at]


class CrossPredicted(NamedTuple):
    """Predictions of features by models that saw none of their clusters."""

    p: np.ndarray  # (n,)
    fold: np.ndarray  # (n,) that it was held out in
    kinds: tuple[str, ...]  # chosen in each fold


def fit_predictor(features: LabelledFeatures, inputs: Sequence[str], tested: CrossPredicted) -> StabilityModel:
    """Train on all features: the simplest kind whose log loss on held-out clusters is within AS_GOOD of the best.

    `tested` are the predictions of these features by models of the other clusters, which the intervals are read from.
    """
    fitted, lowest, highest = _fit(features, None), features.values.min(0), features.values.max(0)
    held_out = HeldOutPredictions.of(tested.p, features.p)
    return StabilityModel(*fitted, tuple(inputs), held_out, lowest, highest)


def cross_predict(features: LabelledFeatures, kind: str | None = None) -> CrossPredicted:
    """Predict every feature by a model of the other folds' clusters, which chooses its kind (unless given) and calibrates there."""
    p, fold, kinds = np.zeros(len(features.values)), np.zeros(len(features.values), int), []
    for number, (train, test) in enumerate(folds(features.cluster, FOLDS)):
        p[test], chosen = predict_from(features.at(train), features.values[test], kind)
        fold[test] = number
        kinds.append(chosen)
    return CrossPredicted(p, fold, tuple(kinds))


def predict_from(train: LabelledFeatures, values: np.ndarray, kind: str | None = None) -> tuple[np.ndarray, str]:
    """(predicted p of features (n, inputs), the kind that was chosen) by a model that is trained on `train` alone."""
    fitted = _fit(train, kind)
    return _calibrated(fitted.calibration, _scores(fitted.classifier, values)), fitted.kind


def folds(cluster: np.ndarray, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """n pairs of (training, test) rows: every cluster is tested once and never on both sides."""
    from sklearn.model_selection import GroupKFold  # a second to import

    return list(GroupKFold(n).split(cluster, groups=cluster))


class _Fitted(NamedTuple):
    kind: str
    classifier: Any
    calibration: Any


def _fit(features: LabelledFeatures, kind: str | None) -> _Fitted:
    """The simplest kind that predicts held-out clusters about as well as the best, calibrated there, trained on all."""
    inner = folds(features.cluster, INNER_FOLDS)
    scores: dict[str, np.ndarray] = {}
    for each in PREDICTOR_KINDS if kind is None else (kind,):
        scores[each] = np.zeros(len(features.values))
        for train, test in inner:
            scores[each][test] = _scores(_classifier(each, features.at(train)), features.values[test])
    losses = {name: _log_loss(score, features.p) for name, score in scores.items()}
    best = next(name for name, loss in losses.items() if loss <= (1 + AS_GOOD) * min(losses.values()))
    return _Fitted(best, _classifier(best, features), _calibration(scores[best], features))


def _log_loss(score: np.ndarray, p: np.ndarray) -> float:
    """Mean log loss per comparison."""
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    return float(-(p * np.log(clipped) + (1 - p) * np.log(1 - clipped)).mean())


def _classifier(kind: str, features: LabelledFeatures) -> Any:
    """A classifier of scikit-learn, trained on outcomes that are weighted by their share of a feature's comparisons."""
    from sklearn.ensemble import GradientBoostingClassifier  # a second to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer, SplineTransformer, StandardScaler

    p = features.p
    positive, negative = np.flatnonzero(p > 0), np.flatnonzero(p < 1)
    values = features.values[np.concatenate([positive, negative])]
    outcome = np.repeat((1, 0), (len(positive), len(negative)))
    weight = np.concatenate([p[positive], 1 - p[negative]])
    if kind == "boosting":
        boosting = GradientBoostingClassifier(
            n_estimators=40, learning_rate=0.15, max_leaf_nodes=8, max_depth=None, min_samples_leaf=40, subsample=0.5,
            max_features=min(3, values.shape[1]), random_state=0,
        )  # fmt: skip
        return boosting.fit(values, outcome, sample_weight=weight)
    spread: list[Any] = [StandardScaler()]
    if kind == "splines":
        # Ranks first: many features share an entropy of 0 or a share of 1, where knots at quantiles would fall together.
        ranks = QuantileTransformer(n_quantiles=min(200, len(values)), subsample=None)
        spread = [ranks, SplineTransformer(n_knots=5, degree=3), StandardScaler()]
    logistic = LogisticRegression(C=0.1, max_iter=1000)
    return make_pipeline(*spread, logistic).fit(values, outcome, logisticregression__sample_weight=weight)


def _scores(classifier: Any, values: np.ndarray) -> np.ndarray:
    """(n,) what a classifier says before calibration."""
    scores: np.ndarray = classifier.predict_proba(values)[:, 1]
    return scores


def _calibration(score: np.ndarray, features: LabelledFeatures) -> Any:
    """Isotonic regression of p on the scores of held-out clusters; its ends are drawn in by PRIOR outcomes of each kind."""
    from sklearn.isotonic import IsotonicRegression

    ends = np.array([score.min(), score.min(), score.max(), score.max()])
    x, y = np.concatenate([score, ends]), np.concatenate([features.p, (0, 1, 0, 1)])
    weight = np.concatenate([np.ones(len(score)), np.full(4, PRIOR)])
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y, sample_weight=weight)


def _calibrated(calibration: Any, score: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.clip(calibration.predict(score), 0, 1)
    return p


def input_columns(names: Sequence[str]) -> list[int]:
    """Columns of these inputs, out of all INPUTS."""
    return [INPUTS.index(name) for name in names]
