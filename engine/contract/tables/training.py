"""Tables of how training went and of agreement between members meanwhile. Standard library only."""

from dataclasses import dataclass

POPULATIONS = ("all", "live")


@dataclass(frozen=True)
class TracePoint:
    """One member at one moment of its training, as training itself saw it."""

    ensemble: str
    seed: int
    step: int
    tokens: int  # that the member had seen
    loss: float | None  # what it minimises, of one batch; None behind the last step
    ev: float
    l0: float
    dead: float  # share of features silent for long


@dataclass(frozen=True)
class Checkpoint:
    """A moment whose members were kept whole, so that they can be matched and measured; step 0 is the start."""

    ensemble: str
    step: int
    tokens: int
    n_tokens: int | None  # evaluation tokens that activity and worth were measured on there; None: decoders alone
    n_comparisons: int  # of each member there: all others, or, of many members, those next to it in seed order
    evs: list[float]  # per member, on those tokens


@dataclass(frozen=True)
class AgreementPoint:
    """How alike members were at a checkpoint: means over pairs, and the smallest and largest of them.

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
    """What cosines of an ensemble's dictionaries are worth at a checkpoint: how much all rows have in common, and what is left.

    Measured in the space that members were trained in; means over members, or pairs of them.
    """

    ensemble: str
    step: int
    mean_cosine: float  # of two rows of one dictionary
    mean_share: float  # squared length of the mean of its unit rows: 0 where they point everywhere, 1 where all are one
    centred_distance: float | None  # distance after the mean direction was taken out of every row
    centred_best_cosine: float
    random_distance: float | None  # of random unit dictionaries of the same size
    random_best_cosine: float


@dataclass(frozen=True)
class FeatureAlong:
    """One feature along training; every list has one entry per checkpoint of its ensemble, in the order of steps."""

    ensemble: str
    seed: int
    feature: int
    matched: list[int]  # comparisons whose best cosine reached theta, as they stood at the same step
    best_cosines: list[float]  # mean over comparisons
    worth_ev: list[float]  # EV lost when it alone is masked; empty without activity
    n_active: list[int]  # evaluation tokens; empty without activity


SORT_KEYS: dict[type, tuple[str, ...]] = {
    TracePoint: ("ensemble", "seed", "step"),
    Checkpoint: ("ensemble", "step"),
    AgreementPoint: ("ensemble", "population", "step"),
    CosineGeometry: ("ensemble", "step"),
    FeatureAlong: ("ensemble", "seed", "feature"),
}
