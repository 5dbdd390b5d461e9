"""Tables of the geometry of buckets: how many directions their rows span, and how alike the spans of members are.

A member's unstable span of rank r is spanned by the top r right singular vectors of its unstable features' unit decoder rows.
The captured energy of a row is its squared cosine with a span, 0 to 1. Standard library only.
"""

from dataclasses import dataclass

SPAN_CURVES = ("within", "cross", "random_set", "stable", "activations", "random_subspace", "overlap")
PREDICTION_SETTINGS = ("plain", "fewer", "disjoint", "isotropic", "isotropic_disjoint", "shuffled", "always_stable")


@dataclass(frozen=True)
class SpanCurve:
    """Captured energy of unstable rows, or overlap of unstable spans, at one rank: a mean over members or ordered pairs."""

    ensemble: str
    curve: str  # one of SPAN_CURVES
    rank: int
    mean: float | None  # 0 to 1; None where no member's curve reaches the rank
    spread: float | None  # standard deviation over members or ordered pairs
    split_spread: float | None  # standard deviation of the mean over random splits; None where nothing was split
    n_pairs: int  # members or ordered pairs that reach the rank
    n_fitted: int  # the fewest rows that a span was fitted on


@dataclass(frozen=True)
class SpanPair:
    """Energy that one member's unstable span captures of another's unstable features.

    Lists run over the ranks of SpanCurve and stop where a curve does.
    """

    ensemble: str
    seed: int  # member whose span it is
    other: int  # member whose features are measured; the same seed: fitted on one half of them, measured on the other
    energies: list[float]  # mean squared cosine, 0 to 1
    overlaps: list[float]  # of the two spans, fitted on all rows, 0 to 1; 1: the same span
    angles: list[float]  # median of the principal angles, radians, 0 to pi / 2


@dataclass(frozen=True)
class SpanMember:
    """Effective ranks of one member's stable and unstable rows: of all of them, and at equal numbers of rows."""

    ensemble: str
    seed: int
    n_stable: int
    n_unstable: int
    stable_rank: float | None  # effective rank, 1 to d_in; None where there are no such rows
    unstable_rank: float | None
    # The smaller of the two counts. What follows is of that many rows: mean and standard deviation over random choices.
    n_equal: int
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
    """Residual of a bucket's unit rows when each is approximated by k features of another member (matching pursuit)."""

    ensemble: str
    bucket: str
    k: int
    mean: float  # norm of the residual, 0 to 1
    spread: float  # standard deviation over ordered pairs of members
    haar: float  # with a rotated dictionary in the other member's place
    second_moment: float  # with a random dictionary of the same second moment
    n_pairs: int
    n_rows: int  # that were approximated, all members together


@dataclass(frozen=True)
class SpanPrediction:
    """How well a classifier trained on one member predicts from decoder rows of another which features are stable."""

    ensemble: str
    setting: str  # one of PREDICTION_SETTINGS
    f1: float  # of the class stable, 0 to 1; mean over ordered pairs of members
    f1_spread: float | None  # standard deviation over the pairs
    auroc: float | None  # 0 to 1, likewise
    auroc_spread: float | None
    n_pairs: int
    n_train: float | None  # rows, mean over pairs
    n_test: float | None


@dataclass(frozen=True)
class FeatureSpan:
    """Energy of one living feature in the unstable spans, and its place on the map of directions."""

    ensemble: str
    seed: int
    feature: int
    own: list[float]  # energy in its own member's span, fitted without it, at the ranks of SpanCurve; 0 to 1
    others: list[float]  # mean energy in the other members' spans; both lists are empty for members that are left out
    x: float | None  # coordinates on the map, without unit; None for features that are not drawn
    y: float | None


def first_energies(span: FeatureSpan, ranks: list[int], span_rank: int | None) -> tuple[int, float, float] | None:
    """(rank, energy in its own member's span, mean energy in the others') at `span_rank`, the rank that pages show first.

    Where the feature's lists stop before that rank, at the last rank that they reach. None for a feature without energies and
    in an ensemble without a `span_rank`.
    """
    reached = min(len(span.own), len(span.others))
    if not reached or span_rank is None:
        return None
    at = min(ranks.index(span_rank), reached - 1)
    return ranks[at], span.own[at], span.others[at]
