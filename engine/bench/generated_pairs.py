"""Two members of an ensemble whose counterparts are known: directions, encoders and activations planted from common true features.

True features are unit vectors: half of them *free*, anywhere on the sphere, half in *crowds*, CROWD at a time in CROWD_RANK
dimensions, where a row is easily mistaken for its neighbour. A member holds a true feature as a unit row u + level * noise; noise
is isotropic for free features, and inside the crowd's dimensions for the others, as seeds differ inside the spans that they share.
Features are

    shared    in both members, at one of several noise levels
    split     one row u of the first member, two rows u + v and u - v of the second, which divide its tokens between them
    merged    the reverse
    alone     in one member only: half of them free, half in the crowds of the others

A true feature fires on tokens at a rate of its own, with strength |N(0, 1)|. A member's feature at noise level l keeps a firing
with probability c = 1 / sqrt(1 + l^2), the cosine with its true feature, and changes its strength by a random factor. It fires
besides, a share 1 - c as often, on tokens of another true feature of its crowd (of a free one, if it is free). Definitions of this
project.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

CROWD, CROWD_RANK = 48, 12
_SPLIT = 0.8  # length of v: cosine 0.78 with the row that was divided
_JITTER = 0.2  # standard deviation of the logarithm of the factors on strengths


@dataclass(frozen=True)
class PlantedConfig:
    """What the two members hold."""

    d_in: int = 256
    n_shared: int = 3000
    """In both members, equally many at each noise level."""
    n_split: int = 150
    n_merged: int = 150
    n_alone: int = 900
    """Of each member."""
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.2)
    """Length of the noise on both unit rows of a pair, whose cosine then is 1 / (1 + level^2): 0.99 to 0.41."""
    n_tokens: int = 32_768
    rates: tuple[float, float] = (3e-4, 1e-2)
    """Smallest and largest share of tokens on which a true feature fires; log-uniform between them."""
    seed: int = 0


class PlantedMember(NamedTuple):
    """One member; features in random order."""

    decoder: np.ndarray  # (features, d_in) unit rows, float32
    encoder: np.ndarray  # (features, d_in) unit columns, float32: the true features with noise of their own
    codes: sparse.csc_matrix  # (tokens, features) activations, float32
    level: np.ndarray  # (features,) noise level


class PlantedPair(NamedTuple):
    """Two members and which of their features are counterparts."""

    a: PlantedMember
    b: PlantedMember
    counterparts: sparse.csr_matrix  # (features of a, features of b) bool


class _Plan(NamedTuple):
    """Which true feature every feature of a member is, and how it differs from it."""

    true: np.ndarray
    level: np.ndarray
    part: np.ndarray  # 0: whole, 1 and 2: the halves of a split


def draw_pair(config: PlantedConfig) -> PlantedPair:
    """The two members that a configuration's seed draws."""
    rng = np.random.default_rng(config.seed)
    n_true = config.n_shared + config.n_split + config.n_merged + 2 * config.n_alone
    # Shared ones first, then those of splits, merges, and of either member alone; crowds go across all of them.
    crowd = np.where(rng.random(n_true) < 0.5, rng.integers(max(n_true // (2 * CROWD), 1), size=n_true), -1)
    spans = np.linalg.qr(rng.standard_normal((max(n_true // (2 * CROWD), 1), config.d_in, CROWD_RANK)))[0]
    true = _around(rng, crowd, spans)
    splits, v = _splits(config), _around(rng, crowd, spans)
    low, high = np.log(config.rates)
    tokens = [np.flatnonzero(rng.random(config.n_tokens) < rate) for rate in np.exp(rng.uniform(low, high, n_true))]
    strengths = [np.abs(rng.standard_normal(len(each))) for each in tokens]
    halves = [rng.random(len(each)) < 0.5 for each in tokens]
    members = []
    for plan in splits:
        order = rng.permutation(len(plan.true))
        plan = _Plan(*(each[order] for each in plan))
        rows = true[plan.true] + (_SPLIT * np.choose(plan.part, [0, 1, -1]))[:, None] * v[plan.true]
        decoder, encoder = (
            _unit(_unit(rows) + plan.level[:, None] * _around(rng, crowd[plan.true], spans)) for _ in range(2)
        )
        codes = _codes(rng, plan, crowd, tokens, strengths, halves, config.n_tokens)
        members.append((plan, PlantedMember(decoder, encoder, codes, plan.level)))
    (plan_a, a), (plan_b, b) = members
    holds = [
        sparse.csr_matrix(
            (np.ones(len(plan.true), bool), (np.arange(len(plan.true)), plan.true)), (len(plan.true), n_true)
        )
        for plan in (plan_a, plan_b)
    ]
    return PlantedPair(a, b, (holds[0] @ holds[1].T).tocsr())


def _splits(config: PlantedConfig) -> tuple[_Plan, _Plan]:
    """What the first and the second member hold, in the order of the true features."""
    n = np.cumsum([0, config.n_shared, config.n_split, config.n_merged, config.n_alone, config.n_alone])
    shared, split, merged, only_a, only_b = (np.arange(n[i], n[i + 1]) for i in range(5))
    levels = np.resize(np.array(config.levels), config.n_shared)

    def plan(divided: np.ndarray, whole: np.ndarray, alone: np.ndarray) -> _Plan:
        true = np.concatenate([shared, divided, divided, whole, alone])
        part = np.repeat([0, 1, 2, 0], [len(shared), len(divided), len(divided), len(whole) + len(alone)])
        exact = np.full(2 * len(divided) + len(whole), min(config.levels))
        return _Plan(true, np.concatenate([levels, exact, np.resize(np.array(config.levels), len(alone))]), part)

    return plan(merged, split, only_a), plan(split, merged, only_b)


def _around(rng: np.random.Generator, crowd: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Random unit vectors, one per entry of `crowd`: inside its span, or anywhere for -1."""
    d_in = spans.shape[1]
    rows = rng.standard_normal((len(crowd), d_in))
    for group in np.unique(crowd[crowd >= 0]):
        inside = np.flatnonzero(crowd == group)
        rows[inside] = rng.standard_normal((len(inside), CROWD_RANK)) @ spans[group].T
    return _unit(rows)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _codes(
    rng: np.random.Generator,
    plan: _Plan,
    crowd: np.ndarray,
    tokens: list[np.ndarray],
    strengths: list[np.ndarray],
    halves: list[np.ndarray],
    n_tokens: int,
) -> sparse.csc_matrix:
    """Activations of a member's features."""
    neighbours = {int(group): np.flatnonzero(crowd == group) for group in np.unique(crowd)}
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for true, level, part in zip(plan.true, plan.level, plan.part, strict=True):
        cosine = 1 / np.sqrt(1 + level**2)
        kept = rng.random(len(tokens[true])) < cosine
        if part:
            kept &= halves[true] == (part == 1)
        at = tokens[true][kept]
        value = strengths[true][kept] * np.exp(_JITTER * rng.standard_normal(len(at)))
        others = neighbours[int(crowd[true])]
        others = others[others != true]
        besides = tokens[rng.choice(others)] if len(others) else at
        besides = np.setdiff1d(besides[rng.random(len(besides)) < 1 - cosine], at)
        columns.append(np.concatenate([at, besides]))
        values.append(np.concatenate([value, np.abs(rng.standard_normal(len(besides)))]))
    starts = np.concatenate([[0], np.cumsum([len(each) for each in columns])])
    data, indices = np.concatenate(values).astype(np.float32), np.concatenate(columns)
    return sparse.csc_matrix((data, indices, starts), (n_tokens, len(columns)))
