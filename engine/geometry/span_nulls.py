"""What a span found without a seed captures of that seed's features by chance, and how unlikely what it does capture is.

A draw gives every span found without a seed a statistic: the captured energy that `engine.geometry.shared_spans` defines, of
either the seed's features in a random span or a random dictionary in the span. Energies are compared in units of the span's own
null (less its mean, over its standard deviation), and p is the share of draws, the observation counted among them, whose largest
value over all spans reaches the span's own: it is corrected for the number of spans (Westfall and Young 1993, single step). A
span's p over seeds is the smallest level at which half of the seeds reject, times the seeds over that half: valid however the
seeds depend on each other (Rueger 1978). Draws are in float32 and the same under the same seed.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.contract.tables.shared_spans import NULL_SETS
from seedscope.engine.geometry.expansions import SpanPool
from seedscope.engine.geometry.shared_spans import FoundSpan, captured_by
from seedscope.engine.matching.match import random_dictionary

N_DRAWS = 199
HIGH = 0.99  # quantile of a null that is told beside its mean
NEIGHBOURS = 10  # a density-matched stand-in is drawn from this many living features on either side in rank
SETS_AT_ONCE = 2**24  # numbers of the products of random sets


class Tested(NamedTuple):
    """The test of the spans found without one seed on that seed's features; arrays (spans,)."""

    energy: np.ndarray
    means: dict[str, np.ndarray]  # {null: mean over draws}
    highs: dict[str, np.ndarray]  # {null: HIGH quantile over draws}
    p: dict[str, np.ndarray]  # {null: corrected for the number of spans}

    @property
    def worst(self) -> np.ndarray:
        """The largest p over the nulls."""
        return np.max(list(self.p.values()), axis=0)


def judge_spans(
    pool: SpanPool,
    spans: Sequence[FoundSpan],
    without: int,
    decoders: Sequence[np.ndarray],
    living: np.ndarray,
    density: np.ndarray | None,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Tested:
    """Test the spans that were found without a seed on its features; `density` (seeds, d_sae) or None leaves out that null.

    Cost per draw: two products of the seed's features with all spans, and a decomposition of as many random rows as every span
    has members.
    """
    rows = pool.rows[pool.of(without)]
    ns = [span.n_measured for span in spans]
    energy = captured_by(rows, (span.directions for span in spans), ns) if len(rows) else np.zeros(len(spans))
    rng = np.random.default_rng((seed, without))
    drawn = {name: np.zeros((n_draws, len(spans)), np.float32) for name in NULL_SETS}
    if density is None:
        del drawn["density"]
    tensor = torch.from_numpy(rows)
    if len(spans) and len(rows):
        stacked, ends = _stacked(spans)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        root = _root(tensor)
        for draw in range(n_draws):
            stop_if_abandoned()
            rotated = random_dictionary(tensor, "haar", generator)
            drawn["rotated"][draw] = _nearest((rotated @ stacked).square_(), ends, ns)
            gaussian = torch.nn.functional.normalize(torch.randn(rows.shape, generator=generator) @ root, dim=-1)
            drawn["second_moment"][draw] = _nearest((gaussian @ stacked).square_(), ends, ns)
    units = _LivingRows(pool, decoders, living, density)
    pickers: dict[str, Callable[..., Tensor]] = {"living": units.any, "density": units.matched}
    for name in [name for name in pickers if name in drawn and len(rows)]:
        for at, span in enumerate(spans):
            drawn[name][:, at] = _of_random_sets(tensor, span, pickers[name], n_draws, rng)
    return Tested(
        energy,
        {name: values.mean(0) for name, values in drawn.items()},
        {name: np.quantile(values, HIGH, axis=0) for name, values in drawn.items()},
        {name: corrected_p(energy, values) for name, values in drawn.items()},
    )


def corrected_p(
    observed: Float[np.ndarray, " spans"], drawn: Float[np.ndarray, "draws spans"]
) -> Float[np.ndarray, " spans"]:
    """p of every span by the largest of its family: 1 / (draws + 1) at least."""
    if not len(observed):
        return np.zeros(0)
    values = np.concatenate([drawn, observed[None]]).astype(float)
    scale = values.std(0)
    scores = (values - values.mean(0)) / np.where(scale > 0, scale, np.inf)
    largest = scores[:-1].max(1)
    return (1 + (largest[:, None] >= scores[-1] - 1e-12).sum(0)) / (len(drawn) + 1)


def over_seeds(p: np.ndarray) -> float:
    """One p of the seeds' own, however they depend on each other; 1 at most."""
    half = math.ceil(len(p) / 2)
    return min(1.0, float(np.sort(p)[half - 1]) * len(p) / half)


def _root(rows: Tensor) -> Tensor:
    """(d, d) that Gaussian rows are multiplied by to have the second moment of these: `random_dictionary`'s, found once."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    root: Tensor = (vectors * values.clamp_min(0).sqrt()).T
    return root


def _stacked(spans: Sequence[FoundSpan]) -> tuple[Tensor, list[int]]:
    """All spans' directions side by side, and where each ends."""
    ends = np.cumsum([span.rank for span in spans]).tolist()
    return torch.from_numpy(np.concatenate([span.directions for span in spans], 1)), ends


def _nearest(products: Tensor, ends: list[int], ns: Sequence[int]) -> np.ndarray:
    """Captured energies from squared products (rows, directions of all spans)."""
    total = torch.cat([products.new_zeros(len(products), 1), products.cumsum(1)], 1)
    energy = total[:, ends] - total[:, [0, *ends[:-1]]]
    n_rows = len(products)
    return np.array([energy[:, at].topk(min(n, n_rows)).values.mean() for at, n in enumerate(ns)], np.float32)


class _LivingRows:
    """Unit rows of living features, drawn in place of a span's members: of the same seeds, as many of each."""

    def __init__(
        self, pool: SpanPool, decoders: Sequence[np.ndarray], living: np.ndarray, density: np.ndarray | None
    ) -> None:
        self._pool = pool
        self._rows: list[Tensor] = []
        self._places: list[np.ndarray] = []
        for seed, (rows, alive) in enumerate(zip(decoders, living, strict=True)):
            at = np.flatnonzero(alive)
            if density is not None:
                at = at[np.argsort(density[seed, at], kind="stable")]
            unit = np.asarray(rows, np.float32)[at]
            self._rows.append(torch.from_numpy(unit / np.linalg.norm(unit, axis=1, keepdims=True)))
            place = np.full(len(alive), -1)
            place[at] = np.arange(len(at))
            self._places.append(place)

    def any(self, members: np.ndarray, n_draws: int, rng: np.random.Generator) -> Tensor:
        """(draws, members, d)."""
        return self._drawn(members, lambda places, n: _distinct(n, len(places), n_draws, rng))

    def matched(self, members: np.ndarray, n_draws: int, rng: np.random.Generator) -> Tensor:
        """(draws, members, d), each of NEIGHBOURS on either side in density."""

        def near(places: np.ndarray, n: int) -> np.ndarray:
            low = np.clip(places - NEIGHBOURS, 0, max(n - 2 * NEIGHBOURS - 1, 0))
            return np.minimum(low + rng.integers(0, 2 * NEIGHBOURS + 1, (n_draws, len(places))), n - 1)

        return self._drawn(members, near)

    def _drawn(self, members: np.ndarray, choose: Callable[[np.ndarray, int], np.ndarray]) -> Tensor:
        parts = []
        for seed in np.unique(self._pool.seed[members]).tolist():
            some = members[self._pool.seed[members] == seed]
            places = self._places[seed][self._pool.feature[some]]
            parts.append(self._rows[seed][torch.from_numpy(choose(places, len(self._rows[seed])))])
        return torch.cat(parts, 1)


def _distinct(n: int, chosen: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, chosen) of n places, no place twice in a draw."""
    if 8 * chosen > n:
        return rng.random((n_draws, n)).argsort(1)[:, :chosen]
    places = rng.integers(0, n, (n_draws, chosen))
    again = np.arange(n_draws)
    while len(again := again[(np.diff(np.sort(places[again], 1), axis=1) == 0).any(1)]):
        places[again] = rng.integers(0, n, (len(again), chosen))
    return places


def _of_random_sets(
    rows: Tensor, span: FoundSpan, pick: Callable[..., Tensor], n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Captured energy of `rows` in the span of each draw of as many random rows, at the span's rank."""
    energies, d = [], rows.shape[1]
    at_once = max(SETS_AT_ONCE // (len(span.members) * d + len(rows) * span.rank + d * d), 1)
    for first in range(0, n_draws, at_once):
        stop_if_abandoned()
        drawn = pick(span.members, min(at_once, n_draws - first), rng)
        if drawn.shape[1] > d:
            top = torch.linalg.eigh(drawn.mT @ drawn).eigenvectors[..., -span.rank :]
        else:
            values, vectors = torch.linalg.eigh(drawn @ drawn.mT)
            values, vectors = values[..., -span.rank :], vectors[..., -span.rank :]
            top = drawn.mT @ (vectors / values.clamp_min(1e-6).sqrt()[:, None])
        products = (rows @ top.transpose(0, 1).flatten(1)).square_()  # (rows, draws x rank): one product of matrices
        energy = products.unflatten(1, (len(drawn), -1)).sum(-1)
        energies.append(energy.topk(min(span.n_measured, len(rows)), dim=0).values.mean(0).numpy())
    return np.concatenate(energies)
