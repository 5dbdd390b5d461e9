"""Features that write each other with few features, seed by seed, and the communities that they form.

A feature's expansion in another seed is its orthogonal matching pursuit there, cut where the next feature adds no more than the
best of as many random directions would: the share of the squared residual that it takes is at most `chance_gain`, random being
isotropic in as many dimensions as the living features effectively fill (`effective_dimension`). Two features
of different seeds are linked where each is in the other's expansion. Communities of that graph are those of Louvain's method
(Blondel et al. 2008) as scikit-network has it, which visits nodes in order and so gives the same result every time. The rule for
the cut and for links is this project's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from sknetwork.clustering import Louvain

from seedscope.engine.geometry.pursuit import pursuit_residual
from seedscope.engine.geometry.row_sets import Device
from seedscope.engine.geometry.subspaces import Report
from seedscope.engine.machine import working_array

K_MAX = 4  # features of another seed that an expansion has at most
FEWEST_SEEDS = 3
SAMPLE = 1024  # of a seed's features, at most, that members are compared with when a rank is chosen


class SpanPool(NamedTuple):
    """The features that are searched, of all seeds together, ordered by seed and feature."""

    dimension: float  # that the living features of all seeds effectively fill, 1 to d
    seed: Int[np.ndarray, " pool"]  # index of the seed
    feature: Int[np.ndarray, " pool"]
    rows: Float[np.ndarray, "pool d"]  # unit decoder rows, float32; in a file where they are many
    n_seeds: int
    others: list[np.ndarray]  # per seed, unit rows of living features that are not searched, a sample of SAMPLE at most

    def part(self, seed: int) -> slice:
        """Where one seed's features stand in the pool."""
        return slice(*np.searchsorted(self.seed, (seed, seed + 1)).tolist())

    def of(self, seed: int) -> np.ndarray:
        """Positions in the pool of one seed's features."""
        return np.arange(len(self.seed))[self.part(seed)]


def pool_of(
    decoders: Sequence[np.ndarray], chosen: np.ndarray, living: np.ndarray, scratch: Path | None = None
) -> SpanPool:
    """The chosen ones among the living features, both (seeds, d_sae); raises ValueError for one without a direction."""
    seed, feature = np.nonzero(chosen & living)
    d = decoders[0].shape[1]
    moment, pool, others = np.zeros((d, d)), working_array((len(seed), d), np.float32, scratch), []
    ends = (chosen & living).sum(1).cumsum()
    for index, (alive, mask) in enumerate(zip(living, chosen & living, strict=True)):
        rows = decoders[index]
        some = np.asarray(rows, np.float32)
        norms = np.linalg.norm(some, axis=1, keepdims=True)
        if not np.isfinite(norms[alive]).all() or (norms[alive] == 0).any():
            raise ValueError("found living features without a direction, expected none: leave them out as dead")
        unit = some[alive] / norms[alive]
        moment += (unit.T @ unit).astype(np.float64)
        pool[ends[index] - mask.sum() : ends[index]] = some[mask] / norms[mask]
        rest = np.flatnonzero(alive & ~mask)
        rest = rest[:: len(rest) // SAMPLE + 1]
        others.append(some[rest] / norms[rest])
    return SpanPool(effective_dimension(moment), seed, feature, pool, len(chosen), others)


def effective_dimension(moment: Float[np.ndarray, "d d"]) -> float:
    """Participation ratio of a second moment's eigenvalues, (sum)^2 / sum of squares: 1 to d, d where all are alike."""
    total = float(np.trace(moment))
    return total**2 / float((moment**2).sum()) if total else 1.0


def chance_gain(n: int, d: float) -> float:
    """Squared cosine of a direction with the nearest of n isotropic ones in d dimensions, about: 1 - n^(-2 / (d - 1))."""
    return 1.0 if d < 2 else 1 - float(n) ** (-2 / (d - 1))


def mutual_links(
    pool: SpanPool,
    decoders: Sequence[np.ndarray],
    living: np.ndarray,
    k_max: int = K_MAX,
    *,
    device: Device = "cpu",
    report: Report = lambda done, total: None,
) -> sparse.csr_matrix:
    """(pool, pool) symmetric, 1 where two features are in each other's expansions, written with all `living` (seeds, d_sae).

    Cost: that of `pursuit_residual` for the pool in every other seed, most of whose rows end after a step or two; memory: its own,
    and k_max numbers per feature and seed.
    """
    firsts, seconds = [np.zeros(0, int)], [np.zeros(0, int)]
    for other in range(pool.n_seeds):
        at_place = np.full(living.shape[1], -1)
        mine = pool.of(other)
        at_place[pool.feature[mine]] = mine
        written = np.flatnonzero(pool.seed != other)
        atoms = np.flatnonzero(living[other])
        if len(written) and len(mine):
            dictionary = np.asarray(decoders[other], np.float32)[atoms]
            level = chance_gain(len(atoms), pool.dimension)
            row, atom = _expansions(pool.rows[written], dictionary, k_max, level, device)
            place = at_place[atoms[atom]]
            firsts.append(written[row[place >= 0]])
            seconds.append(place[place >= 0])
        report(other + 1, pool.n_seeds)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    n = len(pool.rows)
    one_way = sparse.csr_matrix((np.ones(len(first), np.float32), (first, second)), (n, n))
    mutual = one_way.minimum(one_way.T).tocsr()
    mutual.eliminate_zeros()
    return mutual


def _expansions(
    rows: np.ndarray, dictionary: np.ndarray, k_max: int, level: float, device: Device
) -> tuple[np.ndarray, np.ndarray]:
    """(row, atom) of every feature that an expansion has, cut before the first whose gain is at most `level`."""
    found = pursuit_residual(rows, dictionary, k_max, least_gain=level, device=device)
    before = np.concatenate([np.ones((len(rows), 1), np.float32), found.residual[:, :-1]], 1)
    gain = 1 - (found.residual / np.maximum(before, 1e-6)) ** 2
    adds = (gain > level) & (found.atoms >= 0)
    row, step = np.nonzero(np.logical_and.accumulate(adds, axis=1))
    return row, found.atoms[row, step]


def communities(links: sparse.csr_matrix, left_out: np.ndarray | None = None) -> list[np.ndarray]:
    """Positions of the pool per community of at least two, the largest first; features marked `left_out` (pool,) are not there."""
    kept = np.arange(links.shape[0]) if left_out is None else np.flatnonzero(~left_out)
    some = links[kept][:, kept]
    linked = np.flatnonzero(np.diff(some.indptr))
    if not len(linked):
        return []
    labels = Louvain(shuffle_nodes=False, random_state=0).fit_predict(some[linked][:, linked])
    order = np.argsort(labels, kind="stable")
    parts = np.split(kept[linked[order]], np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: (-len(part), part[0]))
