"""What features are worth: explained variance when they are masked, exact for every subset from one pass.

Masking sets an activation to zero after the activation function; TopK is not run again. With residual r = x - x_hat,
masking a set S changes the summed squared error by 2 c.s + s' G s, where s marks S, c_i = sum_t a_i (r . d_i) and
G_ij = sum_t a_i a_j (d_i . d_j). So c and G answer every mask, and 2 c_i + G_ii is feature i's marginal worth
(METHOD of this project; the headline of masking N stable against 4 N unstable features follows paper A).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.sae import SAE, Codes

N_DRAWS = 20
MATCHED_NEIGHBOURS = 10  # a density-matched stand-in is drawn from this many living features on either side in rank


class Masking(NamedTuple):
    """Explained variance with one kind of mask: mean and spread over random draws."""

    mask: str
    n_masked: int
    n_draws: int
    ev: float
    ev_sd: float


class SecondOrder(NamedTuple):
    """Everything one member's squared error needs under any mask, summed over the evaluation tokens (float64)."""

    error: float  # sum ||x - x_hat||^2
    total: float  # sum ||x - mean(x)||^2
    linear: Float[np.ndarray, " d_sae"]  # c
    quadratic: Float[np.ndarray, "d_sae d_sae"]  # G

    def explained_variance(self, masked: np.ndarray | None = None) -> float:
        """EV = 1 - error / total with the features `masked` (indices) set to zero; at most 1, may be negative."""
        error = self.error
        if masked is not None and len(masked):
            error += 2 * self.linear[masked].sum() + self.quadratic[np.ix_(masked, masked)].sum()
        return 1 - error / self.total

    def marginal_worth(self) -> Float[np.ndarray, " d_sae"]:
        """EV lost when each feature alone is masked; negative where the reconstruction is better without it."""
        return (2 * self.linear + np.diagonal(self.quadratic)) / self.total


class AblationPass:
    """Accumulates c, G and the error of every member; memory members * d_sae^2 doubles."""

    def __init__(self, sae: SAE) -> None:
        self._sae = sae
        n, s = sae.n_members, sae.d_sae
        self._error = torch.zeros(n, dtype=torch.float64)
        self._linear = torch.zeros(n, s, dtype=torch.float64)
        self._together = torch.zeros(n, s * s, dtype=torch.float64)  # sum_t a_i a_j
        self._sum = torch.zeros(sae.d_in, dtype=torch.float64)
        self._square, self._n_tokens = 0.0, 0

    def add(self, rows: Float[Tensor, "tokens d_in"], codes: Codes) -> None:
        """Fold in one batch of activations and their codes."""
        sae = self._sae
        residual = rows[:, None] - sae.decode(codes)
        self._error += residual.pow(2).sum(-1).sum(0, dtype=torch.float64)
        self._sum += rows.sum(0, dtype=torch.float64)
        self._square += float(rows.double().pow(2).sum())
        self._n_tokens += len(rows)
        for m in range(sae.n_members):
            a, index = codes.values[:, m], codes.indices[:, m]
            along = torch.bmm(sae.W_dec.detach()[m][index], residual[:, m, :, None])[..., 0]
            self._linear[m].index_add_(0, index.flatten(), (a * along).double().flatten())
            pair = (index[:, :, None] * sae.d_sae + index[:, None, :]).flatten()
            self._together[m] += torch.bincount(
                pair, weights=(a[:, :, None] * a[:, None, :]).double().flatten(), minlength=sae.d_sae**2
            )

    def finish(self, member: int) -> SecondOrder:
        """The quadratic form of one member's squared error."""
        rows = self._sae.W_dec.detach()[member].double()
        together = self._together[member].view(self._sae.d_sae, -1)
        return SecondOrder(
            float(self._error[member]),
            self._square - float(self._sum.pow(2).sum()) / self._n_tokens,
            self._linear[member].numpy(),
            (together * (rows @ rows.T)).numpy(),
        )


def headline(
    worth: SecondOrder, bucket: np.ndarray, density: np.ndarray, *, n_draws: int = N_DRAWS, seed: int = 0
) -> list[Masking]:
    """Mask N stable against 4 N unstable features, N = min(n_stable, n_unstable // 4), beside random and density-matched sets.

    `bucket` and `density` are (d_sae,). Random sets come from the living features. With N = 0 only the whole buckets
    are masked.
    """
    rng = np.random.default_rng(seed)
    stable, unstable = np.flatnonzero(bucket == "stable"), np.flatnonzero(bucket == "unstable")
    middle, living = np.flatnonzero(bucket == "middle"), np.flatnonzero(bucket != "dead")
    by_density = living[np.argsort(density[living], kind="stable")]
    n = min(len(stable), len(unstable) // 4)
    results = [
        Masking(name, len(chosen), 1, worth.explained_variance(chosen), 0.0)
        for name, chosen in (
            ("none", stable[:0]),
            ("all stable", stable),
            ("all middle", middle),
            ("all unstable", unstable),
        )
    ]
    if n == 0:
        return results
    sets: dict[str, list[np.ndarray]] = {}
    for _ in range(n_draws):
        some_stable = rng.choice(stable, n, replace=False)
        some_unstable = rng.choice(unstable, 4 * n, replace=False)
        for name, chosen in (
            ("N stable", some_stable),
            ("4N unstable", some_unstable),
            ("N random", rng.choice(living, n, replace=False)),
            ("4N random", rng.choice(living, min(4 * n, len(living)), replace=False)),
            ("N matched to stable", _density_matched(some_stable, by_density, rng)),
            ("4N matched to unstable", _density_matched(some_unstable, by_density, rng)),
        ):
            sets.setdefault(name, []).append(chosen)
    for name, draws in sets.items():
        values = [worth.explained_variance(chosen) for chosen in draws]
        results.append(Masking(name, len(draws[0]), n_draws, float(np.mean(values)), float(np.std(values, ddof=1))))
    return results


def _density_matched(chosen: np.ndarray, by_density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many living features, each close in density rank to one of `chosen`, none twice; itself is allowed."""
    rank = {feature: i for i, feature in enumerate(by_density)}
    free = np.ones(len(by_density), bool)
    picked = []
    for feature in rng.permutation(chosen):
        reach = MATCHED_NEIGHBOURS
        while True:
            low, high = max(rank[feature] - reach, 0), rank[feature] + reach + 1
            candidates = low + np.flatnonzero(free[low:high])
            if len(candidates):
                break
            reach *= 2
        at = rng.choice(candidates)
        free[at] = False
        picked.append(by_density[at])
    return np.array(picked)
