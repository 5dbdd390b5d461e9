"""Tables of synthetic studies, whose true features are known. Standard library only.

True features are unit vectors of two groups: `free`, anywhere on the sphere, and `low`, inside one r-dimensional subspace, the
true span. "Turned at random" means multiplied by a random orthogonal matrix.
"""

from dataclasses import dataclass

# Whether low-rank features are recovered as a span and not one by one: `holds`, or the reason why not. chance: matches inside
# the span happen by chance; free lost: free features are not recovered; one by one: low-rank features are recovered
# individually; no span: unstable latents lie in the true span no more, or hardly more, than random directions.
VERDICTS = ("holds", "chance", "free lost", "one by one", "no span")


@dataclass(frozen=True)
class Synthetic:
    """Settings of a synthetic ensemble, and whether its low-rank features are recovered as a span and not one by one."""

    ensemble: str
    d_in: int
    n_free: int
    n_low: int
    r: int  # dimensions that the low-rank features share
    rate_free: float  # probability that a free feature is active in a sample
    rate_low: float  # the same of a low-rank feature
    noise: float  # standard deviation of the noise per dimension
    seed: int
    n_samples: int  # that each member is trained on
    n_evaluated: int  # samples that recovery is evaluated on
    n_map_members: int  # per cell of the map
    n_map_samples: int  # per member of a cell
    n_map_cells: int  # of the whole map, computed or not
    verdict: str  # of VERDICTS


@dataclass(frozen=True)
class TrueFeature:
    """A true feature, and the decoder row closest to it in every member."""

    ensemble: str
    id: int
    group: str  # free, low
    rate: float  # probability that it is active in a sample
    n_active: int  # evaluation samples in which it is active
    latents: list[int]  # per member, by seed: the feature with the largest cosine
    cosines: list[float]  # these cosines


@dataclass(frozen=True)
class TrueLatent:
    """A decoder row, compared with the true features."""

    ensemble: str
    seed: int
    feature: int
    group: str | None  # free, low, other; None where it is dead
    energy: float  # squared cosine with the true span, 0 to 1
    true: int  # the true feature with the largest cosine
    cosine: float
    free_cosine: float  # the largest cosine with a free true feature


@dataclass(frozen=True)
class TrueGroup:
    """Recovery of one group of true features, and stability of the latents assigned to it; None where there are none."""

    ensemble: str
    group: str  # free, low, other
    n_true: int
    found: float | None  # share of (true feature, member) pairs with a latent at theta
    found_by_all: float | None  # share of true features with a latent at theta in every member
    found_by_none: float | None  # in no member
    # `found` in members turned at random: inside the true span for low, anywhere for the others.
    found_chance: float | None
    mean_cosine: float | None  # of true features and their closest latents
    n_latents: int  # living, of all members
    p_hat: float | None  # mean over the latents
    stable: float | None  # share of the latents
    unstable: float | None  # share of the latents
    chance: float | None  # match rate with every comparison turned at random


@dataclass(frozen=True)
class SpanLevel:
    """Energy of a set of decoder rows inside the true span, and overlaps of the rows' own spans; all from 0 to 1."""

    ensemble: str
    rank: int  # in which order the sets are shown
    set: str  # unstable; as many stable, living, random rows; and `r / d`, what is expected of random rows
    n_rows: float | None  # per member, mean
    energy: float | None  # squared cosine with the true span, mean over rows
    span_overlap: float | None  # of the top-r span with the true one
    cross_overlap: float | None  # of the top-r spans of two members
    cross_energy: float | None  # of other members' unstable rows inside the top-r span of half as many rows


@dataclass(frozen=True)
class PhaseCell:
    """One cell of the map, a small ensemble: its settings and what it recovers. Columns as in TrueGroup and SpanLevel."""

    ensemble: str
    grid: str  # rate: r against rate_low; n_low: r against n_low at a fixed number of active low-rank features
    r: int
    n_low: int
    rate_low: float
    n_members: int
    n_samples: int
    ev: float
    free_found: float | None
    free_p: float | None
    n_free_latents: int
    low_found: float | None
    low_p: float | None
    n_low_latents: int
    chance: float | None  # match rate of low-rank latents turned at random inside the true span
    n_unstable: float | None  # unstable latents per member, mean
    energy: float | None  # of the unstable latents inside the true span
    living_energy: float | None  # of as many living latents
    random_energy: float  # r / d
    span_overlap: float | None
    cross_overlap: float | None
    verdict: str


SORT_KEYS: dict[type, tuple[str, ...]] = {
    Synthetic: ("ensemble",),
    TrueFeature: ("ensemble", "id"),
    TrueLatent: ("ensemble", "seed", "feature"),
    TrueGroup: ("ensemble", "group"),
    SpanLevel: ("ensemble", "rank"),
    PhaseCell: ("ensemble", "grid", "r", "n_low", "rate_low"),
}
