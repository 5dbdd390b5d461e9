"""Tables of what counterparts do: whether they fire alike, and whether one can stand in for the other. Standard library only.

Co-firing is measured on all evaluation tokens. The correlation is Pearson's of the two activations, zeros included, -1 to 1; the
Jaccard index is tokens on which both fire over tokens on which at least one does, 0 to 1. Both are 0 where one of the two never
fires and where they never fire together, and the correlation where an activation is the same on every token.

Substitution puts the counterpart, with its own activations and decoder row, in the feature's place in the feature's own SAE.
Score = (EV with the counterpart - EV without the feature) / (EV with the feature itself - EV without it): 1 where nothing is
lost, 0 where the counterpart is no better than nothing, below 0 where it does harm; it has no lower bound. The scaled score
multiplies the counterpart by the one factor, not below 0, that serves best; it is never below 0, nor below the raw score. Both are
undefined for features that masking takes no explained variance from, so for those that never fire, and where it is not known what
members should give back. A counterpart may also mend what the SAE misses with the feature in place, and where the feature is worth
little that alone can reach 1: so `beside` is what it adds, with its best factor, while the feature stays. Definitions of this
project.
"""

from dataclasses import dataclass

SUBSTITUTES = 0.8  # score from which on a counterpart substitutes
N_NEAREST = 8  # decoder rows of a comparison that the rule `active` chooses among
N_SMALL_SET = 8  # most features of another member that a small set has
# Those that a match rule picks, the second-nearest decoder row, and two controls. The partners of the rules `mutual` and `both` are
# those of `argmax` and `hungarian`, or none. `transport` is no match rule of a study: its partners are looked at here alone.
COUNTERPART_KINDS = (
    "argmax", "runner_up", "live", "hungarian", "transport", "active", "random_density", "hard_negative",
)  # fmt: skip
CONTROL_KINDS = ("random_density", "hard_negative")
FUNCTION_BUCKETS = (
    "stable",
    "middle",
    "unstable",
    "living",
)  # by argmax at the study's theta and epsilon; living: all three


@dataclass(frozen=True)
class Substitute:
    """A feature's counterparts of one kind: whether they fire alike and substitute; lists have one entry per comparison.

    Kinds beside the match rules: `runner_up` is the second-nearest decoder row; `transport` the row that gets most of the feature's
    mass under entropic optimal transport between all rows of the two members (see TransportPlan); `random_density` a living feature
    drawn at random among those of about the same density that are not among the N_NEAREST; `hard_negative` the nearest living
    feature below the study's theta among the N_NEAREST.
    """

    ensemble: str
    kind: str  # one of COUNTERPART_KINDS; rows of `hungarian` and `transport` are absent where these were not computed
    seed: int
    feature: int
    partners: list[int]  # -1: none; its other entries are then those of a feature that never fires: 0, and cosine -1
    cosines: list[float]  # of the two decoder rows
    correlations: list[float]  # -1 to 1
    jaccards: list[float]  # 0 to 1
    substitutions: list[float]  # raw score; this and the next are empty where it is undefined
    scaled_substitutions: list[float]  # with the factor that serves best


@dataclass(frozen=True)
class SmallSet:
    """A living feature, of a fixed random sample, put together of a few features of one other member.

    The features are those that orthogonal matching pursuit writes its decoder row with. They take its place together, each with a
    factor of its own, which may be negative, fitted on the evaluation tokens by least squares; scores are defined as in Substitute.
    """

    ensemble: str
    seed: int
    feature: int
    bucket: str  # of the feature: stable, middle or unstable
    other: int  # the member with the next seed, after the last one the first
    partners: list[int]  # at most N_SMALL_SET, in the order of joining
    scales: list[float]
    residual: float  # norm of what the pursuit leaves of the unit decoder row, 0 to 1
    score: float
    control_score: (
        float  # with the features that write another feature of the sample's same bucket, factors fitted anew
    )


@dataclass(frozen=True)
class TransportPlan:
    """The plan between two members that partners of the kind `transport` come from, one row per pair of members.

    Every row with a direction sends, or receives, an equal share of the mass; moving it costs 1 - cosine, less `epsilon` times the
    plan's entropy (Cuturi 2013). A row's partner is where most of its mass goes, whatever their cosine.
    """

    ensemble: str
    seed: int
    other: int  # a later member
    epsilon: float  # above 0, in units of the cosine
    n_passes: int  # over all pairs of rows
    marginal_gap: (
        float  # L1 distance of the plan's marginals from uniform ones, 0 to 2; half of it arrives at wrong rows
    )
    share: float  # of its mass that a row sends to its partner, mean over the rows of both members, 0 to 1


@dataclass(frozen=True)
class FunctionSummary:
    """What the counterparts of one kind do, over the living features of one bucket; 95 % intervals from a bootstrap over seeds.

    The kinds `small_set` and `small_set_control` are of the sample in SmallSet: one pair per feature, `scaled_share` alone. None:
    not defined, or an interval of fewer than three members. The control on the model with random weights is an ensemble of its own
    (Ensemble.control_of), with its own rows here.
    """

    ensemble: str
    bucket: str  # one of FUNCTION_BUCKETS
    kind: str  # one of COUNTERPART_KINDS, small_set, small_set_control
    n_features: int
    n_pairs: int  # (feature, comparison) that have such a counterpart
    n_scored: int  # of those, pairs whose substitution is defined
    cosine: float | None  # mean over pairs, as are the next two
    correlation: float | None
    correlation_low: float | None
    correlation_high: float | None
    jaccard: float | None
    jaccard_low: float | None
    jaccard_high: float | None
    raw_share: float | None  # share of the scored pairs whose raw score reaches SUBSTITUTES
    raw_share_low: float | None
    raw_share_high: float | None
    scaled_share: float | None  # share whose scaled score does
    scaled_share_low: float | None
    scaled_share_high: float | None
    beside_share: float | None  # share for which the counterpart adds as much while the feature stays in its place
    # Share of the features with a defined score whose counterparts substitute (raw) in at least 1 - epsilon of the comparisons.
    always_share: float | None


SUMMARY_KINDS = (*COUNTERPART_KINDS, "small_set", "small_set_control")
SORT_KEYS: dict[type, tuple[str, ...]] = {
    Substitute: ("ensemble", "kind", "seed", "feature"),
    SmallSet: ("ensemble", "seed", "feature"),
    TransportPlan: ("ensemble", "seed", "other"),
    FunctionSummary: ("ensemble", "bucket", "kind"),
}
