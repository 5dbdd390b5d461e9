"""The tables of studies whose true features are known, part of the contract (engine.contract.schema). Standard library only."""

from dataclasses import dataclass

# `holds`, or what stands against it: matches inside the span happen by chance, free features do not come back, low-rank ones
# do, unstable latents do not lie in the span, or hardly more than random directions.
VERDICTS = ("holds", "chance", "free lost", "one by one", "no span")


@dataclass(frozen=True)
class Synthetic:
    """What a study of known true features is made of, and whether low-rank ones are found as a span and not one by one."""

    ensemble: str
    d_in: int
    n_free: int
    n_low: int
    r: int  # dimensions that the low-rank features share
    rate_free: float
    rate_low: float
    noise: float
    seed: int
    n_samples: int  # per member
    n_evaluated: int
    n_map_members: int
    n_map_samples: int
    n_map_cells: int  # of the whole map, computed or not
    verdict: str  # of VERDICTS


@dataclass(frozen=True)
class TrueFeature:
    """A direction that samples are made of, and its best latent in every member, in seed order."""

    ensemble: str
    id: int
    group: str  # free, low
    rate: float
    n_active: int  # evaluation samples
    latents: list[int]
    cosines: list[float]


@dataclass(frozen=True)
class TrueLatent:
    """A decoder row against the truth."""

    ensemble: str
    seed: int
    feature: int
    group: str | None  # free, low, other; None where it is dead
    energy: float  # inside the true span
    true: int  # the true feature with the largest cosine
    cosine: float
    free_cosine: float  # the largest with a free one


@dataclass(frozen=True)
class TrueGroup:
    """Recovery of one group of true features and of the latents assigned to it; None where there are none."""

    ensemble: str
    group: str
    n_true: int
    found: float | None  # share of (true feature, member) pairs with a latent at theta
    found_by_all: float | None
    found_by_none: float | None
    found_chance: float | None  # in members turned at random: inside the true span for low, anywhere for the others
    mean_cosine: float | None
    n_latents: int  # living, of all members
    p_hat: float | None
    stable: float | None
    unstable: float | None
    chance: float | None  # match rate with every comparison turned at random


@dataclass(frozen=True)
class SpanLevel:
    """How much of a set of rows the true span holds, and how alike their spans are."""

    ensemble: str
    rank: int  # order of the rows
    set: str  # unstable, then as many stable, living, random rows, then `r / d`
    n_rows: float | None  # per member, mean
    energy: float | None  # inside the true span
    span_overlap: float | None  # of the top-r span with the true one
    cross_overlap: float | None  # of the top-r spans of two members
    cross_energy: float | None  # of other members' unstable rows inside the top-r span of half as many rows


@dataclass(frozen=True)
class PhaseCell:
    """One small ensemble of the map: its settings and what was recovered."""

    ensemble: str
    grid: str  # rate: r against rate_low; n_low: r against n_low at one number active at once
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
    n_unstable: float | None  # per member
    energy: float | None  # of the unstable latents inside the true span
    living_energy: float | None  # of as many living ones
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
