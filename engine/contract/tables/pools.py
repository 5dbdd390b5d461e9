"""The contract's tables of an ensemble's feature pool; a part of `engine.contract.schema`. Standard library only."""

from dataclasses import dataclass

# The pool itself; pools of two disjoint halves of the seeds; and their controls, two SAEs each.
POOL_CURVES = ("pool", "halves", "members", "fresh", "subset")


@dataclass(frozen=True)
class FeaturePool:
    """Unique features of all members as one SAE, trained on."""

    ensemble: str
    theta: float  # from which on two features count as one
    d_sae: int
    k: int | None
    unique_by_holders: list[int]  # unique features that exactly 1, 2, .. members hold
    halves: list[int]  # seeds of the first half, then as many of the second; empty with fewer than four members
    fresh: list[int]  # seeds of the control that the ensemble does not have; empty where there is none
    tokens: int  # that it was trained on for
    text: str | None  # what it was trained on, in words; None where it was not
    recipe: (
        str | None
    )  # of training on: the fields of engine.contract.recipe.TrainConfig that its variant uses, as JSON
    n_evaluated: int | None
    n_loss_tokens: int | None
    sae_digest: str  # of the pool that was saved
    folder: str  # of it, relative to the study's folder
    remarks: list[str]


@dataclass(frozen=True)
class PooledFeature:
    """Where a pooled feature came from."""

    ensemble: str
    id: int  # its row in the pool
    seed: int
    feature: int
    holders: int  # members that hold it
    density: float | None  # in the member it came from, on the rows that the pool was evaluated on


@dataclass(frozen=True)
class PoolPoint:
    """One curve after one length of training on; lists have one entry per SAE of the curve."""

    ensemble: str
    curve: str  # one of POOL_CURVES
    tokens: int  # further ones; 0: as taken
    evs: list[float]
    l0s: list[float]
    deads: list[float]
    n_living: list[int]
    losses: list[float]  # nats per token with the reconstruction in place; empty where it was not measured
    shares: list[float]  # of each one's living features, those with a partner in the other; empty for one SAE
    shared: float | None  # the same of both ways together; None for one SAE
    best_cosine: float | None  # mean of their largest cosines


SORT_KEYS: dict[type, tuple[str, ...]] = {
    FeaturePool: ("ensemble",),
    PooledFeature: ("ensemble", "id"),
    PoolPoint: ("ensemble", "curve", "tokens"),
}
