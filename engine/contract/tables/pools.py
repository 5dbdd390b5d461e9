"""Tables of an ensemble's feature pool: the unique features of all its members as one SAE. Standard library only."""

from dataclasses import dataclass

# The pool; pools of two disjoint halves of the seeds; and controls of these two, with two SAEs each.
POOL_CURVES = ("pool", "halves", "members", "fresh", "subset")


@dataclass(frozen=True)
class FeaturePool:
    """Unique features of all members as one SAE, and how it was trained further."""

    ensemble: str
    theta: float  # two features with at least this cosine count as one, -1 to 1
    d_sae: int
    k: int | None  # active features per token where that is fixed
    unique_by_holders: list[int]  # unique features that exactly 1, 2, .. members hold
    halves: list[int]  # seeds of the first half, then as many of the second; empty with fewer than four members
    fresh: list[int]  # seeds of the control `fresh`, which are not the ensemble's; empty where there is none
    tokens: int  # of the further training
    text: str | None  # the text of the further training, in words; None where there was none
    # Of the further training: the fields of engine.contract.recipe.TrainConfig that its variant uses, as JSON.
    recipe: str | None
    n_evaluated: int | None  # rows of activations that EV, L0 and dead shares are measured on
    n_loss_tokens: int | None
    sae_digest: str  # of the pool that was saved
    folder: str  # of it, relative to the study's folder
    remarks: list[str]


@dataclass(frozen=True)
class PooledFeature:
    """The member and feature that a pooled feature was taken from."""

    ensemble: str
    id: int  # its row in the pool
    seed: int
    feature: int
    holders: int  # members that hold it
    density: float | None  # share of the evaluated rows on which it is active in the member it was taken from, 0 to 1


@dataclass(frozen=True)
class PoolPoint:
    """One curve after one length of further training; every list has one entry per SAE of the curve."""

    ensemble: str
    curve: str  # one of POOL_CURVES
    tokens: int  # of further training; 0: as taken from the members
    evs: list[float]  # explained variance, at most 1
    l0s: list[float]  # mean number of active features per row
    deads: list[float]  # share of features that are active on no row, 0 to 1
    n_living: list[int]
    losses: list[float]  # next-token loss with the reconstruction in place, nats per token; empty where not measured
    shares: list[float]  # share of each SAE's living features with a match in the other, 0 to 1; empty for one SAE
    shared: float | None  # the same over both directions together; None for one SAE
    best_cosine: float | None  # mean of the largest cosines, both directions together


SORT_KEYS: dict[type, tuple[str, ...]] = {
    FeaturePool: ("ensemble",),
    PooledFeature: ("ensemble", "id"),
    PoolPoint: ("ensemble", "curve", "tokens"),
}
