"""Sets of living features drawn in a span's place: as many of each seed, any of them or of about the same density.

The span of a drawn set is that of its leading directions, as many as the span has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.geometry.expansions import SpanPool
from seedscope.engine.machine import working_array

NEIGHBOURS = 10  # a density-matched stand-in is drawn from this many living features on either side in rank
SETS_AT_ONCE = 2**24  # numbers of the products of random sets


class Draws(NamedTuple):
    """Sets of rows."""

    rows: Tensor  # (living, d) that all draws are of
    at: Tensor  # (draws, rows of a set)


class LivingRows:
    """Unit rows of all living features, seed by seed; with densities in their order."""

    def __init__(
        self,
        decoders: Sequence[np.ndarray],
        living: np.ndarray,
        density: np.ndarray | None,
        scratch: Path | None = None,
    ) -> None:
        """`living` (seeds, d_sae); `density` (seeds, d_sae) or None. Memory: 4 bytes per number of the decoders, or `scratch`."""
        self.have_density = density is not None
        rows = working_array((int(living.sum()), decoders[0].shape[1]), np.float32, scratch)
        self._places, first = [], 0
        for seed, alive in enumerate(living):
            at = np.flatnonzero(alive)
            if density is not None:
                at = at[np.argsort(density[seed, at], kind="stable")]
            unit = np.asarray(decoders[seed], np.float32)[at]
            rows[first : first + len(at)] = unit / np.linalg.norm(unit, axis=1, keepdims=True)
            place = np.full(len(alive), -1)
            place[at] = np.arange(len(at))
            self._places.append(_SeedPlaces(place, first, len(at)))
            first += len(at)
        self._rows = torch.from_numpy(rows)

    def of(self, pool: SpanPool, members: np.ndarray) -> "StandIns":
        """What can be drawn in the place of features of the pool."""
        seeds = np.unique(pool.seed[members]).tolist()
        features = [pool.feature[members[pool.seed[members] == seed]] for seed in seeds]
        places = [self._places[seed] for seed in seeds]
        return StandIns(self._rows, [(each.place[some], each) for some, each in zip(features, places, strict=True)])


class _SeedPlaces(NamedTuple):
    place: np.ndarray  # (d_sae,) of a feature among the seed's living ones, -1: dead
    first: int  # row of the seed's first
    n: int


class StandIns(NamedTuple):
    """Draws of living rows for one span."""

    rows: Tensor
    members: list[tuple[np.ndarray, _SeedPlaces]]  # per seed: the members' places among its living features

    def any(self, n_draws: int, rng: np.random.Generator) -> Draws:
        """Any living features, none twice in a draw."""
        return self._chosen([_distinct(seed.n, len(at), n_draws, rng) + seed.first for at, seed in self.members])

    def matched(self, n_draws: int, rng: np.random.Generator) -> Draws:
        """Each member's stand-in is of NEIGHBOURS on either side in density."""
        chosen = []
        for at, seed in self.members:
            low = np.clip(at - NEIGHBOURS, 0, max(seed.n - 2 * NEIGHBOURS - 1, 0))
            places = low + rng.integers(0, 2 * NEIGHBOURS + 1, (n_draws, len(at)))
            chosen.append(np.minimum(places, seed.n - 1) + seed.first)
        return self._chosen(chosen)

    def _chosen(self, places: list[np.ndarray]) -> Draws:
        return Draws(self.rows, torch.from_numpy(np.concatenate(places, 1)))


def _distinct(n: int, chosen: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, chosen) of n places, no place twice in a draw."""
    if 8 * chosen > n:
        return rng.random((n_draws, n)).argsort(1)[:, :chosen]
    places = rng.integers(0, n, (n_draws, chosen))
    again = np.arange(n_draws)
    while len(again := again[(np.diff(np.sort(places[again], 1), axis=1) == 0).any(1)]):
        places[again] = rng.integers(0, n, (len(again), chosen))
    return places


def energy_in_random_sets(rows: Tensor, draws: Draws, rank: int, n: int) -> np.ndarray:
    """(draws,) captured energy of `rows` (rows, d): mean squared cosine of the n nearest with the span of each set."""
    energies, d = [], rows.shape[1]
    n_draws, set_size = draws.at.shape
    at_once = max(SETS_AT_ONCE // (set_size * d + len(rows) * rank + min(d, set_size) ** 2), 1)
    for first in range(0, n_draws, at_once):
        stop_if_abandoned()
        top = leading_directions(draws.rows[draws.at[first : first + at_once]], rank)
        products = (rows @ top.transpose(0, 1).flatten(1)).square_()  # (rows, draws x rank): one product of matrices
        energy = products.unflatten(1, (len(top), -1)).sum(-1)
        energies.append(energy.topk(min(n, len(rows)), dim=0).values.mean(0).numpy())
    return np.concatenate(energies)


def leading_directions(sets: Float[Tensor, "sets rows d"], rank: int) -> Float[Tensor, "sets d directions"]:
    """Orthonormal columns, `rank` or as many as there can be, that capture most of each set's energy."""
    rank = min(rank, *sets.shape[1:])
    if sets.shape[1] > sets.shape[2]:
        return torch.linalg.eigh(sets.mT @ sets).eigenvectors[..., -rank:]
    values, vectors = torch.linalg.eigh(sets @ sets.mT)
    return sets.mT @ (vectors[..., -rank:] / values[:, -rank:].clamp_min(1e-6).sqrt()[:, None])
