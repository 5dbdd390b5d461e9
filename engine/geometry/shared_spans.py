"""Small spans that features without counterparts share over seeds: discovery, and the discovery without each seed in turn.

A community of `engine.geometry.expansions` gives a span: the top directions of its members' unit rows, all seeds together. Its rank
is the one at which the members of a seed lie furthest above its other living features: mean energy of the ones less that of the
others in the span of the other seeds' members. Members that lie there no better than the nearest of as many random rows
would, leave; features of the pool that do lie in it so join the span that holds most of them, and communities whose members lie
mostly in each other's spans are one. A span's test asks the discovery without a seed for features of that seed, so that no measured
row was seen by what was chosen (`engine.geometry.span_nulls`).
Definitions of this project.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.stats import beta

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.geometry.expansions import FEWEST_SEEDS, SAMPLE, SpanPool, communities

MOST_DIRECTIONS = 32  # of a small span, and at most half of the dimensions that living features effectively fill
FEWEST_MEMBERS = 4  # of a candidate, all seeds together
SAME = 0.5  # Jaccard index from which on a community without a seed is the one with it
MOSTLY = 0.5  # of the members' energy in each other's span, mean, from which on two communities are one
ROUNDS = 2  # of merging and assigning
KEPT_BASES = 1024
COLUMNS_AT_ONCE = 2048  # directions that all features of a seed are projected on together


class FoundSpan(NamedTuple):
    """A community and its span."""

    members: np.ndarray  # positions in the pool, ascending
    directions: np.ndarray  # (d, rank) orthonormal columns, strongest first, of all members
    n_measured: int  # features per seed that a test looks at: members per seed that has any, mean, rounded

    @property
    def rank(self) -> int:
        """Directions."""
        return self.directions.shape[1]


def directions(rows: np.ndarray, rank: int) -> np.ndarray:
    """(d, rank or fewer) top right singular vectors of rows, float32; from the smaller of the two second moments."""
    n, d = rows.shape
    rank = min(rank, n, d)
    rows = rows.astype(np.float64)
    if n > d:
        return np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :rank].astype(np.float32)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values[::-1][:rank] > 1e-10 * max(values[-1], 1e-300)
    top = vectors[:, ::-1][:, :rank][:, kept]
    return (rows.T @ top / np.sqrt(values[::-1][:rank][kept])).astype(np.float32)


def most_directions(pool: SpanPool) -> int:
    """The largest rank that a small span may have."""
    return max(1, min(MOST_DIRECTIONS, int(pool.dimension / 2)))


class Bases:
    """Directions of sets of the pool's rows and ranks of communities, each found once in a discovery, which asks for most again.

    Memory: d x `most_directions` float32 numbers per set and seed, of the last KEPT_BASES. For one thread.
    """

    def __init__(self, pool: SpanPool) -> None:
        self._pool, self._most = pool, most_directions(pool)
        self._bases: dict[bytes, np.ndarray] = {}
        self._ranks: dict[bytes, int] = {}
        self._background: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # of a seed: a sample's positions, and all its rows

    def of(self, members: np.ndarray, rank: int | None = None) -> np.ndarray:
        """(d, rank or fewer) `directions` of the members' rows; `most_directions` where no rank is named."""
        key = members.tobytes()
        found = self._bases.pop(key, None)
        if found is None:
            found = directions(self._pool.rows[members], self._most)
            while len(self._bases) >= KEPT_BASES:
                del self._bases[next(iter(self._bases))]
        self._bases[key] = found
        return found[:, :rank]

    def rank(self, members: np.ndarray) -> int:
        """At which a seed's members gain most over its other living features, in the span of the other seeds' members."""
        key = members.tobytes()
        if key not in self._ranks:
            self._ranks[key] = self._chosen(members)
        return self._ranks[key]

    def _chosen(self, members: np.ndarray) -> int:
        pool, gain = self._pool, np.zeros(self._most)
        for seed in np.unique(pool.seed[members]).tolist():
            of_seed = pool.seed[members] == seed
            mine, others = members[of_seed], members[~of_seed]
            if not len(others):
                continue
            span = self.of(others)
            above = ((pool.rows[mine] @ span) ** 2).mean(0)
            sample, background = self._rest(seed)
            energy = ((background @ span) ** 2).sum(0)
            inside = np.intersect1d(sample, mine, assume_unique=True)
            n_rest = len(background) - len(inside)
            energy -= ((pool.rows[inside] @ span) ** 2).sum(0)
            above -= energy / n_rest if n_rest else 1 / pool.dimension
            gain += len(mine) * np.pad(np.cumsum(above), (0, len(gain) - len(above)), mode="edge")
        return int(np.argmax(gain)) + 1

    def _rest(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if seed not in self._background:
            sample = self._pool.of(seed)
            sample = sample[:: len(sample) // SAMPLE + 1]
            self._background[seed] = sample, np.concatenate([self._pool.rows[sample], self._pool.others[seed]])
        return self._background[seed]


def nearest_by_chance(rank: int, d: float, n: int) -> float:
    """Energy in a span of `rank` directions that one of n isotropic rows reaches on average: a quantile of the beta law."""
    return float(beta.ppf(1 - 1 / max(n, 2), rank / 2, (d - rank) / 2)) if rank < d else 1.0


def discover(pool: SpanPool, links: sparse.csr_matrix, without: int | None = None) -> list[FoundSpan]:
    """Spans of the communities of all seeds but `without`, the largest first; a feature is in one of them at most."""
    bases = Bases(pool)
    seeds = [seed for seed in range(pool.n_seeds) if seed != without]
    left_out = None if without is None else pool.seed == without
    n_there = len(pool.rows) if left_out is None else int((~left_out).sum())
    n_fewest = FEWEST_SEEDS - (without is not None)
    joined = [piece for group in communities(links, left_out) for piece in _pieces(pool, bases, links, group, n_fewest)]
    for _ in range(ROUNDS):
        spans = [group for group in joined if _is_enough(pool, group, n_fewest)]
        joined = _assign(pool, bases, seeds, n_there, _merge(pool, bases, spans, n_there))
    found = (_span(pool, bases, members) for members in joined if _is_enough(pool, members, n_fewest))
    return sorted(found, key=lambda span: (-len(span.members), int(span.members[0])))


def _pieces(
    pool: SpanPool, bases: Bases, links: sparse.csr_matrix, group: np.ndarray, n_seeds: int
) -> list[np.ndarray]:
    """A community, or the communities inside it where several do not lie in each other's spans: modularity misses small ones."""
    stop_if_abandoned()
    if len(group) < 2 * FEWEST_MEMBERS:
        return [group]
    outside = np.ones(len(pool.rows), bool)
    outside[group] = False
    parts = [part for part in communities(links, outside) if _is_enough(pool, part, n_seeds)]
    pieces = _merge(pool, bases, parts, len(pool.rows)) if len(parts) > 1 else []
    return pieces if len(pieces) > 1 else [group]


def _is_enough(pool: SpanPool, members: np.ndarray, n_seeds: int) -> bool:
    return len(members) >= FEWEST_MEMBERS and len(np.unique(pool.seed[members])) >= n_seeds


def _span(pool: SpanPool, bases: Bases, members: np.ndarray) -> FoundSpan:
    n_seeds = len(np.unique(pool.seed[members]))
    return FoundSpan(members, bases.of(members, bases.rank(members)).copy(), max(1, round(len(members) / n_seeds)))


def _merge(pool: SpanPool, bases: Bases, spans: list[np.ndarray], n: int) -> list[np.ndarray]:
    """Members of spans, together where they lie mostly in each other's span, and there better than the nearest of n by chance."""
    if not spans:
        return []
    ranks = []
    for members in spans:
        stop_if_abandoned()
        ranks.append(bases.rank(members))
    held = [bases.of(members, rank) for members, rank in zip(spans, ranks, strict=True)]
    starts = np.cumsum([0, *(each.shape[1] for each in held[:-1])])
    stacked = np.concatenate(held, 1)
    level = np.array([max(nearest_by_chance(rank, pool.dimension, n), MOSTLY) for rank in ranks])
    inside = np.stack([np.add.reduceat(((pool.rows[each] @ stacked) ** 2).mean(0), starts) > level for each in spans])
    n_groups, label = connected_components(inside & inside.T, directed=False)
    return [np.sort(np.concatenate([spans[at] for at in np.flatnonzero(label == of)])) for of in range(n_groups)]


def _assign(pool: SpanPool, bases: Bases, seeds: list[int], n: int, spans: list[np.ndarray]) -> list[np.ndarray]:
    """Members of each span anew: the features that lie in it, as the other seeds' members fit it, better than chance."""
    best, of_best = np.zeros(len(pool.rows), np.float32), np.full(len(pool.rows), -1)
    ranks = [bases.rank(members) for members in spans]
    levels = [nearest_by_chance(rank, pool.dimension, n) for rank in ranks]
    for seed in seeds:
        rows = pool.rows[pool.part(seed)]
        nearest, of_nearest = best[pool.part(seed)], of_best[pool.part(seed)]  # views
        for some in _at_once(ranks):
            stop_if_abandoned()
            others = [(index, spans[index][pool.seed[spans[index]] != seed]) for index in some]
            fitted = [(index, bases.of(each, ranks[index])) for index, each in others if len(each)]
            if not fitted or not len(rows):
                continue
            products = rows @ np.concatenate([basis for _, basis in fitted], 1)
            products *= products
            end = 0
            for index, basis in fitted:
                energy = products[:, end : end + basis.shape[1]].sum(1)
                end += basis.shape[1]
                better = (energy > levels[index]) & (energy > nearest)
                nearest[better], of_nearest[better] = energy[better], index
    return [np.flatnonzero(of_best == index) for index in range(len(spans))]


def _at_once(ranks: list[int]) -> list[np.ndarray]:
    """Indices of spans, in groups of about COLUMNS_AT_ONCE directions."""
    group = np.cumsum(ranks) // COLUMNS_AT_ONCE
    return np.split(np.arange(len(ranks)), np.flatnonzero(np.diff(group)) + 1)


class FoundAgain(NamedTuple):
    """For every span, which of the spans found without a seed is the same."""

    place: np.ndarray  # (spans,) in the list without the seed, -1: none
    overlap: (
        np.ndarray
    )  # (spans,) Jaccard index of the members, the left-out seed's not counted; of the most alike, 0 to 1


def found_again(spans: list[FoundSpan], without: list[FoundSpan], there: np.ndarray) -> FoundAgain:
    """Match spans with those of a discovery that saw the features `there` (pool,) alone."""
    home = np.full(len(there), -1)
    for index, span in enumerate(without):
        home[span.members] = index
    found = FoundAgain(np.full(len(spans), -1), np.zeros(len(spans)))
    for at, span in enumerate(spans):
        seen = span.members[there[span.members]]
        homes = home[seen][home[seen] >= 0]
        if len(homes):
            shared = np.bincount(homes, minlength=len(without))
            jaccard = shared / (len(seen) + np.array([len(each.members) for each in without]) - shared)
            found.overlap[at] = jaccard.max()
            found.place[at] = int(jaccard.argmax()) if jaccard.max() >= SAME else -1
    return found


def nearest_energy(energy: np.ndarray, n: int) -> float:
    """Mean of the n largest energies, or of all where there are fewer; 0 to 1."""
    first = max(len(energy) - n, 0)
    return float(np.partition(energy, first)[first:].mean().clip(0, 1))


def captured_by(rows: np.ndarray, spans: Iterable[np.ndarray], ns: Iterable[int]) -> np.ndarray:
    """(spans,) captured energy: mean squared cosine with each span of the n rows that lie closest to it."""
    return np.array([nearest_energy(((rows @ span) ** 2).sum(1), n) for span, n in zip(spans, ns, strict=True)])
