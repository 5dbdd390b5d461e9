"""The contract's tables of an ensemble's feature pool; a part of `engine.schema`. Standard library only."""

from dataclasses import dataclass

# The pool itself; pools of two disjoint halves of the seeds; and their controls, two SAEs each.
POOL_KINDS = ("pool", "halves", "members", "fresh", "subset")


@dataclass(frozen=True)
class FeaturePool:
    """Unique features of all members as one SAE, trained on."""

    ensemble: str
    theta: float  # from which on two features count as one
    d_sae: int
    k: int | None
    unique_by_holders: list[int]  # unique features that exactly 1, 2, .. members hold
    halves: list[int]  # seeds of the first half, then as many of the second; empty with fewer than four members
    tokens: int  # that it was trained on for
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
    density: float | None  # in the member it came from


@dataclass(frozen=True)
class PoolPoint:
    """One kind after one length of training on; lists have one entry per SAE of the kind."""

    ensemble: str
    kind: str  # one of POOL_KINDS
    tokens: int  # further ones; 0: as taken
    evs: list[float]
    l0s: list[float]
    dead: list[float]
    losses: list[float]  # nats per token with the reconstruction in place; empty where it was not measured
    shared: float | None  # share of living features of one with a partner in the other, both ways; None for one SAE
    best_cosine: float | None  # mean of their largest cosines


SORT_KEYS: dict[type, tuple[str, ...]] = {
    FeaturePool: ("ensemble",),
    PooledFeature: ("ensemble", "id"),
    PoolPoint: ("ensemble", "kind", "tokens"),
}
