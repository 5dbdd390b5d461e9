"""What a span found without a seed captures of that seed's features by chance, and how unlikely what it does capture is.

A draw gives every span found without a seed a statistic: the captured energy that `engine.geometry.shared_spans` defines, of
either the seed's features in a random span or a random dictionary in the span. Energies are compared in units of the span's own
null (less its mean, over its standard deviation), and p is the share of draws, the observation counted among them, whose largest
value over all spans reaches the span's own: it is corrected for the number of spans (Westfall and Young 1993, single step). A
span's p over seeds is the smallest level at which half of the seeds reject, times the seeds over that half: valid however the
seeds depend on each other (Rueger 1978). Draws are in float32 and the same under the same seed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.contract.tables.shared_spans import NULL_SETS
from seedscope.engine.geometry.expansions import SpanPool
from seedscope.engine.geometry.random_sets import LivingRows, energy_in_random_sets
from seedscope.engine.geometry.shared_spans import FoundSpan, captured_by

N_DRAWS = 199
HIGH = 0.99  # quantile of a null that is told beside its mean


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
    living_rows: LivingRows,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Tested:
    """Test the spans that were found without a seed on its features; without densities that null is left out.

    Cost per draw: two products of the seed's features with all spans; and for every span a product with the span of each of two
    random sets, as large as the span's, and finding that.
    """
    rows = pool.rows[pool.of(without)]
    ns = [span.n_measured for span in spans]
    energy = captured_by(rows, (span.directions for span in spans), ns) if len(rows) else np.zeros(len(spans))
    rng = np.random.default_rng((seed, without))
    drawn = {name: np.zeros((n_draws, len(spans)), np.float32) for name in NULL_SETS}
    if not living_rows.have_density:
        del drawn["density"]
    tensor = torch.from_numpy(rows)
    if len(spans) and len(rows):
        stacked, ends = _stacked(spans)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        lengths, axes = _principal_axes(tensor)
        turned = axes.T @ stacked  # the spans in the axes in which Gaussian rows are drawn
        spanned, coordinates = torch.linalg.qr(stacked)
        for draw in range(n_draws):
            stop_if_abandoned()
            # Spans are rotated in place of the rows, which are more; a rotation of theirs is a frame of what they span.
            rotated = random_frame(spanned.shape[0], spanned.shape[1], generator) @ coordinates
            drawn["rotated"][draw] = _nearest(tensor @ rotated, ends, ns)
            gaussian = torch.randn(rows.shape, generator=generator).mul_(lengths)
            gaussian /= gaussian.norm(dim=1, keepdim=True)
            drawn["second_moment"][draw] = _nearest(gaussian @ turned, ends, ns)
    for name in [name for name in ("living", "density") if name in drawn and len(rows)]:
        for at, span in enumerate(spans):
            members = living_rows.of(pool, span.members)
            draws = members.any(n_draws, rng) if name == "living" else members.matched(n_draws, rng)
            drawn[name][:, at] = energy_in_random_sets(tensor, draws, span.rank, span.n_measured)
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


def _principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(d,) lengths and (d, d) axes: normal numbers times the lengths, along the axes, have these rows' second moment."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return values.clamp_min(0).sqrt(), vectors


def random_frame(d: int, n: int, generator: torch.Generator) -> Float[Tensor, "d n"]:
    """Orthonormal columns drawn uniformly: of a Haar rotation, of which the sign makes it one exactly (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(d, n, generator=generator))
    frame: Tensor = q * r.diagonal().sign()
    return frame


def _stacked(spans: Sequence[FoundSpan]) -> tuple[Tensor, list[int]]:
    """All spans' directions side by side, and where each ends."""
    ends = np.cumsum([span.rank for span in spans]).tolist()
    return torch.from_numpy(np.concatenate([span.directions for span in spans], 1)), ends


def _nearest(products: Tensor, ends: list[int], ns: Sequence[int]) -> np.ndarray:
    """Captured energies from products of rows with the directions of all spans, which are squared in place."""
    n_rows, ranks = len(products), np.diff([0, *ends]).tolist()
    energies = (part.sum(1) for part in products.square_().split(ranks, 1))
    return np.array([each.topk(min(n, n_rows)).values.mean() for each, n in zip(energies, ns, strict=True)], np.float32)
