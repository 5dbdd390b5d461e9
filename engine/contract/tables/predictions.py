"""Tables of stability that is predicted from one SAE: how well a predictor does, and what it says. Standard library only.

A predictor is a classifier trained on the features of an ensemble whose stability was measured. It sees of a feature what one SAE
and its text say, and predicts p, the probability of a match per comparison. What it says is *predicted*, never *stable*.
"""

from dataclasses import dataclass

# What it sees of a feature, in the order of its columns; see engine.geometry.one_sae.
INPUTS = (
    "density", "crowding", "worth", "mean_activation", "encoder_norm", "encoder_bias", "encoder_decoder", "top_token_share",
    "token_entropy",
)  # fmt: skip
DECODER_INPUTS = ("crowding", "encoder_norm", "encoder_bias", "encoder_decoder")  # those that need no text
PREDICTOR_KINDS = ("linear", "splines", "boosting")  # see engine.geometry.predictor
# How it was tested; see engine.geometry.predictor_scores. The first is the figure that counts, the last two are nulls.
PREDICTOR_SETTINGS = ("clusters", "features", "decoder", "density", "shuffled", "rotated")


@dataclass(frozen=True)
class Predictor:
    """What a predictor was trained from; where too little is known to train one, `refused` says why and the rest is empty."""

    ensemble: str  # that it was trained on, or that it predicts
    trained_on: str  # STUDY/ENSEMBLE that it was trained on
    theta: float  # of the matches that it predicts
    kind: str | None  # one of PREDICTOR_KINDS
    inputs: list[str]  # those of INPUTS that it sees
    left_out: list[str]  # the others, each with the reason
    n_features: int  # that it was trained on
    n_train_members: int
    n_train_comparisons: int  # of each of those features
    n_clusters: int  # of matches among those features; none is in training and test rows at once
    largest_cluster: float | None  # its share of those features, 0 to 1
    base_rate: float | None  # their mean p
    covered: float | None  # share of held-out features whose p lies in their 95 % interval, 0 to 1
    width: float | None  # mean width of these intervals
    n_predicted: (
        int | None
    )  # features of `ensemble` that have a Prediction; None for the ensemble that it was trained on
    n_outside: int | None  # of those, features with an input beyond those of the training features
    warnings: list[str]  # in which ways the SAE that it predicts is unlike those that it was trained on
    refused: str | None


@dataclass(frozen=True)
class PredictorScore:
    """How well p of held-out features was predicted in one setting; 95 % intervals by a bootstrap over seeds."""

    ensemble: str
    setting: str  # one of PREDICTOR_SETTINGS
    auroc: float  # of telling comparisons with a match from those without one, 0 to 1
    auroc_low: float
    auroc_high: float
    auroc_stable: float | None  # of telling stable features from unstable ones; None where either are missing
    calibration_error: float  # mean distance of predicted and observed p over ten bins of equal size, 0 to 1
    error_low: float
    error_high: float
    n_rows: int  # held-out features


@dataclass(frozen=True)
class ReliabilityBin:
    """Held-out features with about the same predicted p, and the share of their comparisons that match."""

    ensemble: str
    bin: int
    predicted: float  # mean
    observed: float
    observed_low: float  # 95 %, bootstrap over seeds
    observed_high: float
    n_rows: int


@dataclass(frozen=True)
class PredictorInput:
    """One input: what values the training features have, and how much it tells alone."""

    ensemble: str
    input: str  # one of INPUTS
    lowest: float
    highest: float
    auroc: float  # of comparisons with a match, by this input alone: from 0 (low values match) over 0.5 to 1


@dataclass(frozen=True)
class Prediction:
    """The predicted p of one feature."""

    ensemble: str
    seed: int
    feature: int
    p: float  # predicted probability of a match per comparison, 0 to 1
    p_low: float  # 95 % of held-out features with such a prediction have their p from here
    p_high: float  # to here
    inside: bool  # whether all inputs lie within those of the training features


@dataclass(frozen=True)
class CarriedPrediction:
    """A predictor trained on the study's other ensembles and tested on this one; it saw no feature that matches those tested."""

    ensemble: str  # that it was tested on
    trained_on: list[str]
    auroc: float
    auroc_low: float
    auroc_high: float
    own_auroc: float  # of a predictor trained on this ensemble's own other clusters
    calibration_error: float
    own_calibration_error: float
    base_rate: float  # mean p of the ensemble
    mean_predicted: float
    n_rows: int


SORT_KEYS: dict[type, tuple[str, ...]] = {
    Predictor: ("ensemble",),
    PredictorScore: ("ensemble", "setting"),
    ReliabilityBin: ("ensemble", "bin"),
    PredictorInput: ("ensemble", "input"),
    Prediction: ("ensemble", "seed", "feature"),
    CarriedPrediction: ("ensemble",),
}
