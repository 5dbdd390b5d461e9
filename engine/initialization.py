"""Where an ensemble starts: random decoder rows per seed, and the shared centre of the data."""

import torch
from jaxtyping import Float
from torch import Tensor

from engine.sae import SAE


def random_start(seeds: tuple[int, ...], d_in: int, d_sae: int, *, k: int, center: Float[Tensor, " d_in"]) -> SAE:
    """Members whose decoder rows are independent random unit vectors, one generator per seed.

    Encoder = decoder transposed, encoder bias zero, decoder bias = `center` (Gao et al. 2024; dictionary_learning).
    The same seed gives the same member whatever the other seeds are.
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
        seeds=seeds,
    )


def geometric_median(points: Float[Tensor, "n d_in"], *, steps: int = 32) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to `points`, by Weiszfeld's iteration; robust to outlier tokens."""
    median = points.mean(0)
    for _ in range(steps):
        weight = 1 / (points - median).norm(dim=1).clamp_min(1e-8)
        median = (weight[:, None] * points).sum(0) / weight.sum()
    return median
