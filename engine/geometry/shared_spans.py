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


def choose_rank(pool: SpanPool, members: np.ndarray) -> int:
    """The rank at which a seed's members gain most over its other living features, in the span of the other seeds' members."""
    gain = np.zeros(most_directions(pool))
    for seed in np.unique(pool.seed[members]).tolist():
        mine = members[pool.seed[members] == seed]
        others = members[pool.seed[members] != seed]
        rest = np.setdiff1d(pool.of(seed), mine, assume_unique=True)
        if not len(others):
            continue
        rest = rest[:: len(rest) // SAMPLE + 1]
        background = np.concatenate([pool.rows[rest], pool.others[seed]])
        span = directions(pool.rows[others], len(gain))
        above = ((pool.rows[mine] @ span) ** 2).mean(0)
        if len(background):
            above -= ((background @ span) ** 2).mean(0)
        else:
            above -= 1 / pool.dimension
        gain += len(mine) * np.pad(np.cumsum(above), (0, len(gain) - len(above)), mode="edge")
    return int(np.argmax(gain)) + 1


def nearest_by_chance(rank: int, d: float, n: int) -> float:
    """Energy in a span of `rank` directions that one of n isotropic rows reaches on average: a quantile of the beta law."""
    return float(beta.ppf(1 - 1 / max(n, 2), rank / 2, (d - rank) / 2)) if rank < d else 1.0


def discover(pool: SpanPool, links: sparse.csr_matrix, without: int | None = None) -> list[FoundSpan]:
    """Spans of the communities of all seeds but `without`, the largest first; a feature is in one of them at most."""
    left_out = None if without is None else pool.seed == without
    there = np.arange(len(pool.rows)) if left_out is None else np.flatnonzero(~left_out)
    n_fewest = FEWEST_SEEDS - (without is not None)
    joined = [piece for group in communities(links, left_out) for piece in _pieces(pool, links, group, n_fewest)]
    for _ in range(ROUNDS):
        stop_if_abandoned()
        spans = [(group, choose_rank(pool, group)) for group in joined if _is_enough(pool, group, n_fewest)]
        merged = [(group, choose_rank(pool, group)) for group in _merge(pool, spans, len(there))]
        joined = _assign(pool, there, merged)
    found = (_span(pool, members) for members in joined if _is_enough(pool, members, n_fewest))
    return sorted(found, key=lambda span: (-len(span.members), int(span.members[0])))


def _pieces(pool: SpanPool, links: sparse.csr_matrix, group: np.ndarray, n_seeds: int) -> list[np.ndarray]:
    """A community, or the communities inside it where several do not lie in each other's spans: modularity misses small ones."""
    outside = np.ones(len(pool.rows), bool)
    outside[group] = False
    parts = [part for part in communities(links, outside) if _is_enough(pool, part, n_seeds)]
    pieces = _merge(pool, [(part, choose_rank(pool, part)) for part in parts], len(pool.rows)) if len(parts) > 1 else []
    return pieces if len(pieces) > 1 else [group]


def _is_enough(pool: SpanPool, members: np.ndarray, n_seeds: int) -> bool:
    return len(members) >= FEWEST_MEMBERS and len(np.unique(pool.seed[members])) >= n_seeds


def _span(pool: SpanPool, members: np.ndarray) -> FoundSpan:
    n_seeds = len(np.unique(pool.seed[members]))
    return FoundSpan(
        members,
        directions(pool.rows[members], choose_rank(pool, members)),
        max(1, round(len(members) / n_seeds)),
    )


def _merge(pool: SpanPool, spans: list[tuple[np.ndarray, int]], n: int) -> list[np.ndarray]:
    """Members of spans, together where they lie mostly in each other's span, and there better than the nearest of n by chance."""
    if not spans:
        return []
    bases = [directions(pool.rows[members], rank) for members, rank in spans]
    starts = np.cumsum([0, *(each.shape[1] for each in bases[:-1])])
    stacked = np.concatenate(bases, 1)
    level = np.array([max(nearest_by_chance(rank, pool.dimension, n), MOSTLY) for _, rank in spans])
    inside = np.stack(
        [np.add.reduceat(((pool.rows[members] @ stacked) ** 2).mean(0), starts) > level for members, _ in spans]
    )
    n_groups, label = connected_components(inside & inside.T, directed=False)
    return [np.sort(np.concatenate([spans[at][0] for at in np.flatnonzero(label == of)])) for of in range(n_groups)]


def _assign(pool: SpanPool, there: np.ndarray, spans: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
    """Members of each span anew: the features that lie in it, as the other seeds' members fit it, better than chance."""
    n = len(there)
    best, of_best = np.zeros(len(pool.rows), np.float32), np.full(len(pool.rows), -1)
    for index, (members, rank) in enumerate(spans):
        level = nearest_by_chance(rank, pool.dimension, n)
        for seed in np.unique(pool.seed[there]).tolist():
            others = members[pool.seed[members] != seed]
            mine = there[pool.seed[there] == seed]
            if not len(others):
                continue
            energy = ((pool.rows[mine] @ directions(pool.rows[others], rank)) ** 2).sum(1)
            better = (energy > level) & (energy > best[mine])
            best[mine[better]], of_best[mine[better]] = energy[better], index
    return [np.flatnonzero(of_best == index) for index in range(len(spans))]


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
