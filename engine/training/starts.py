"""Initial weights of an ensemble: random decoder rows by seed, centroids or mixtures of points, and the centre of the data."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.recipe import Centroids
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE


def random_start(
    seeds: tuple[int, ...],
    d_in: int,
    d_sae: int,
    *,
    center: Float[Tensor, " d_in"],
    k: int | None = None,
    convention: Convention | None = None,
    more: dict[str, float] | None = None,
    shared: bool = False,
    encoder_scale: float = 1.0,
) -> SAE:
    """Members whose decoder rows are independent random unit vectors, one generator per seed; `shared`: all have those of seed 0.

    Encoder = decoder transposed, times `encoder_scale`; encoder bias zero, decoder bias = `center` (Gao et al. 2024;
    dictionary_learning).
    `more` says what all numbers of the convention's further tensors begin as. The same seed gives the same member
    whatever the other seeds are.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(0 if shared else seed)
        rows.append(torch.randn(d_sae, d_in, generator=generator, dtype=center.dtype))
    W_dec = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    n_members = len(seeds)
    return SAE(
        W_dec.transpose(1, 2) * encoder_scale if encoder_scale != 1 else W_dec.transpose(1, 2),
        W_dec.new_zeros(n_members, d_sae),
        W_dec,
        center.expand(n_members, d_in),
        k=k,
        convention=convention,
        more={name: W_dec.new_full((n_members, d_sae), value) for name, value in (more or {}).items()},
        seeds=seeds,
    )


class Hull(NamedTuple):
    """Points C of the data and a row-stochastic W: decoder rows begin at W C (METHOD section 10)."""

    points: Float[Tensor, "sets d_sae d_in"]  # one set for all members, or one for each
    weights: Float[Tensor, "members d_sae d_sae"] | None  # None: the identity

    @property
    def rows(self) -> Float[Tensor, "sets d_sae d_in"]:
        """W C."""
        return self.points if self.weights is None else torch.bmm(self.weights, self.points)


def hull(points: Float[Tensor, "n d_in"], d_sae: int, seeds: tuple[int, ...], kind: Centroids) -> Hull:
    """Where rows begin that are made of the data.

    `shared`: one k-means for all members (its seed is 0); `independent`: one for each, by its seed; both with W = 1.
    `random`: by its seed each member draws d_sae distinct points, and every row of W uniformly from the simplex. Raises
    ValueError for fewer points than features.
    """
    if kind != "random":
        own = seeds if kind == "independent" else (0,)
        return Hull(torch.stack([kmeans(points, d_sae, seed=seed) for seed in own]), None)
    _require_enough(points, d_sae)
    chosen, weights = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        chosen.append(points[torch.randperm(len(points), generator=generator)[:d_sae].to(points.device)])
        drawn = torch.empty(d_sae, d_sae, dtype=points.dtype).exponential_(generator=generator)
        weights.append((drawn / drawn.sum(1, keepdim=True)).to(points.device))
    return Hull(torch.stack(chosen), torch.stack(weights))


def geometric_median(points: Float[Tensor, "n d_in"], *, steps: int = 32) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to `points`, by Weiszfeld's iteration; robust to outlier tokens."""
    median = points.mean(0)
    for _ in range(steps):
        weight = 1 / (points - median).norm(dim=1).clamp_min(1e-8)
        median = (weight[:, None] * points).sum(0) / weight.sum()
    return median


def kmeans(points: Float[Tensor, "n d_in"], n_centroids: int, *, seed: int, steps: int = 25) -> Float[Tensor, "c d_in"]:
    """Centroids of `points` by Lloyd's iteration from distinct points drawn by `seed`.

    A centroid that loses all its points stays where it was. Cost: 2 n c d_in FLOPs per step. Raises ValueError for fewer
    points than centroids.
    """
    _require_enough(points, n_centroids)
    generator = torch.Generator().manual_seed(seed)
    centroids = points[torch.randperm(len(points), generator=generator)[:n_centroids].to(points.device)]
    for _ in range(steps):
        nearest = torch.cat(
            [(part @ centroids.T - centroids.pow(2).sum(1) / 2).argmax(1) for part in points.split(4096)]
        )
        sizes = nearest.bincount(minlength=n_centroids)[:, None]
        sums = torch.zeros_like(centroids).index_add(0, nearest, points)
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _require_enough(points: Tensor, n: int) -> None:
    if len(points) < n:
        raise ValueError(
            f"found {len(points)} activations for {n} centroids, expected at least as many; add tokens or lower d_sae"
        )
