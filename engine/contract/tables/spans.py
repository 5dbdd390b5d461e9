"""The contract's tables of what bucket's spans look like; a part of `engine.contract.schema`. Standard library only."""

from dataclasses import dataclass

SPAN_CURVES = ("within", "cross", "random_set", "stable", "activations", "random_subspace", "overlap")
PREDICTION_SETTINGS = ("plain", "fewer", "disjoint", "isotropic", "isotropic_disjoint", "shuffled", "always_stable")


@dataclass(frozen=True)
class SpanCurve:
    """Captured energy of unstable features' spans against rank, or how spans overlap: means over members or ordered pairs."""

    ensemble: str
    curve: str  # one of SPAN_CURVES
    rank: int
    mean: float | None  # None where no member's curve reaches the rank
    spread: float | None  # standard deviation over members or ordered pairs
    split_spread: float | None  # of the mean, over random splits; None where nothing was split
    n_pairs: int  # members or ordered pairs that reach the rank
    n_fitted: int  # the fewest rows that a span was fitted on


@dataclass(frozen=True)
class SpanPair:
    """What one member's unstable span captures of another's unstable features.

    Lists run over the ranks of SpanCurve and stop where a curve does.
    """

    ensemble: str
    seed: int  # whose span
    other: int  # whose features; the same seed: fitted on one half of them, measured on the other
    energies: list[float]  # mean squared cosine, 0 to 1
    overlaps: list[float]  # of the two spans, all rows fitted; 1: the same span
    angles: list[float]  # radians, median of the principal angles


@dataclass(frozen=True)
class SpanMember:
    """How many directions the stable and unstable rows of one member spread over, as they are and at equal counts."""

    ensemble: str
    seed: int
    n_stable: int
    n_unstable: int
    stable_rank: float | None  # effective rank of all of them; None where there are none
    unstable_rank: float | None
    n_equal: (
        int  # the smaller count; what follows is of that many rows, mean and standard deviation over random choices
    )
    stable_equal: float | None
    stable_equal_sd: float | None
    unstable_equal: float | None
    unstable_equal_sd: float | None
    random_equal: float | None  # of random unit rows
    random_equal_sd: float | None
    stable_values: list[float]  # singular values of one such choice, descending
    unstable_values: list[float]
    random_values: list[float]


@dataclass(frozen=True)
class SpanResidual:
    """What is left of a bucket's rows when they are written with k features of another member."""

    ensemble: str
    bucket: str
    k: int
    mean: float  # length of the residual, 1: nothing is written
    spread: float  # standard deviation over ordered pairs of members
    haar: float  # with a rotated dictionary in the other member's place
    second_moment: float  # with a random dictionary of the same second moment
    n_pairs: int
    n_rows: int  # that were written, all members together


@dataclass(frozen=True)
class SpanPrediction:
    """Stable or unstable, told from the decoder row by a classifier trained on another member."""

    ensemble: str
    setting: str  # one of PREDICTION_SETTINGS
    f1: float  # mean over ordered pairs
    f1_spread: float | None
    auroc: float | None
    auroc_spread: float | None
    n_pairs: int
    n_train: float | None  # rows, mean
    n_test: float | None


@dataclass(frozen=True)
class FeatureSpan:
    """How much of a living feature lies in the unstable spans, and where it stands on the map."""

    ensemble: str
    seed: int
    feature: int
    own: list[float]  # energy in its own member's span, fitted without it, at the ranks of curves
    others: list[float]  # mean over the other members' spans; both empty for members that are left out
    x: float | None  # on the map of directions; None for features that are not drawn
    y: float | None


def first_energies(span: FeatureSpan, ranks: list[int], span_rank: int | None) -> tuple[int, float, float] | None:
    """(rank, energy in its own member's span, mean in the others') at the rank that pages show first, or where curves stop.

    None for a feature whose member is left out, or all of whose ensemble's are.
    """
    reached = min(len(span.own), len(span.others))
    if not reached or span_rank is None:
        return None
    at = min(ranks.index(span_rank), reached - 1)
    return ranks[at], span.own[at], span.others[at]
