"""Tables of training curves, and of the agreement between members at checkpoints along training. Standard library only."""

from dataclasses import dataclass

POPULATIONS = ("all", "live")


@dataclass(frozen=True)
class TracePoint:
    """One member at one moment of its training, measured by the training loop itself."""

    ensemble: str
    seed: int
    step: int
    tokens: int  # that the member has seen
    loss: float | None  # training loss of one batch; None after the last step
    ev: float  # explained variance, at most 1
    l0: float  # mean number of active features per token
    dead: float  # share of features that have not fired for TrainConfig.silent_after tokens, 0 to 1


@dataclass(frozen=True)
class Checkpoint:
    """A step of training at which all members were saved, so that they can be matched and measured; step 0 is the start."""

    ensemble: str
    step: int
    tokens: int  # that each member has seen
    n_tokens: int | None  # evaluation tokens on which activity and worth are measured; None: only decoders are compared
    n_comparisons: int  # per member: all others, or, where there are many, those next to it in seed order
    evs: list[float]  # explained variance per member, on those tokens


@dataclass(frozen=True)
class AgreementPoint:
    """How alike the members' decoders are at a checkpoint: the mean over pairs of members, the lowest and the highest.

    Cosines are of decoder rows in the space that members were trained in. Distances are means of 1 - cosine over the
    one-to-one matching that maximises it; best cosines are means over features of the largest cosine in the other member.
    None where one-to-one matching was not done at that size.
    """

    ensemble: str
    step: int
    population: str  # one of POPULATIONS; `live`: features that are active on the evaluation tokens at that step
    n_features: float  # per member, mean
    n_pairs: int
    distance: float | None
    distance_low: float | None
    distance_high: float | None
    best_cosine: float
    best_cosine_low: float
    best_cosine_high: float


@dataclass(frozen=True)
class CosineGeometry:
    """How far the cosines of an ensemble's dictionaries at a checkpoint come from a mean direction that all rows share.

    Measured in the space that members were trained in; means over members, or over pairs of them. Cosines and distances
    (1 - cosine, means over one-to-one matchings) are defined as in AgreementPoint.
    """

    ensemble: str
    step: int
    mean_cosine: float  # of two different rows of one dictionary
    mean_share: float  # squared norm of the mean of its unit rows: 0 where they cancel out, 1 where all are equal
    centred_distance: float | None  # distance after the mean direction is removed from every row
    centred_best_cosine: float  # likewise
    random_distance: float | None  # of random unit dictionaries of the same size
    random_best_cosine: float  # likewise


@dataclass(frozen=True)
class FeatureAlong:
    """One feature along training; every list has one entry per checkpoint of its ensemble, in ascending order of steps."""

    ensemble: str
    seed: int
    feature: int
    matched: list[int]  # comparisons in which its best cosine at the same step reaches theta
    best_cosines: list[float]  # best cosine, mean over comparisons
    worth_ev: list[float]  # explained variance that is lost when it alone is masked; empty without activity
    n_active: list[int]  # evaluation tokens; empty without activity


SORT_KEYS: dict[type, tuple[str, ...]] = {
    TracePoint: ("ensemble", "seed", "step"),
    Checkpoint: ("ensemble", "step"),
    AgreementPoint: ("ensemble", "population", "step"),
    CosineGeometry: ("ensemble", "step"),
    FeatureAlong: ("ensemble", "seed", "feature"),
}
