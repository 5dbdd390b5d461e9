"""Where an ensemble starts: random decoder rows per seed, the shared centre of the data, and its centroids."""

import torch
from jaxtyping import Float
from torch import Tensor

from engine.convention import Convention
from engine.sae import SAE


def random_start(
    seeds: tuple[int, ...],
    d_in: int,
    d_sae: int,
    *,
    center: Float[Tensor, " d_in"],
    k: int | None = None,
    convention: Convention | None = None,
    more: dict[str, float] | None = None,
) -> SAE:
    """Members whose decoder rows are independent random unit vectors, one generator per seed.

    Encoder = decoder transposed, encoder bias zero, decoder bias = `center` (Gao et al. 2024; dictionary_learning).
    `more` says what all numbers of the convention's further tensors begin as. The same seed gives the same member
    whatever the other seeds are.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.randn(d_sae, d_in, generator=generator, dtype=center.dtype))
    W_dec = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    n_members = len(seeds)
    return SAE(
        W_dec.transpose(1, 2),
        W_dec.new_zeros(n_members, d_sae),
        W_dec,
        center.expand(n_members, d_in),
        k=k,
        convention=convention,
        more={name: W_dec.new_full((n_members, d_sae), value) for name, value in (more or {}).items()},
        seeds=seeds,
    )


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
    if len(points) < n_centroids:
        raise ValueError(
            f"found {len(points)} activations for {n_centroids} centroids, expected at least as many; add tokens or lower d_sae"
        )
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
