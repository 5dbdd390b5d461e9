"""Explained variance of an SAE when features are masked, exact: what each feature is worth, alone and in sets.

Masking sets an activation to zero after the activation function; TopK is not run again. Let w_i be what multiplies decoder
row d_i in the reconstruction of a token, in the units of x: the activation a_i, times the token's scale where the SAE
normalises, by ||d_i|| where that is divided out. With residual r = x - x_hat, masking a set S changes the summed squared
error by 2 c.s + s' G s, where s marks S, c_i = sum_t w_i (r . d_i) and G_ij = sum_t w_i w_j (d_i . d_j). So 2 c_i + G_ii is
feature i's marginal worth, from one pass; c and all of G answer every mask. Of transcoders x is what they predict, at their
output hook point. G is kept while it is small; else chosen masks
are answered by a second pass (METHOD of this project; the headline of masking N stable against 4 N unstable features
follows paper A).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.saes.sae import SAE, Codes

N_DRAWS = 20
N_CURVE_DRAWS = 3
N_SIZES = 6  # points of a curve, on a geometric grid from one feature to all of a kind
PAIR_NUMBERS = 2**27  # entries of G, all members together, up to which it is kept: 1 GiB; 8 members of 4,096 features
WORK_NUMBERS = 2**24  # of the largest arrays that exist while a batch is folded in
WIDE = 16  # codes wider than d_sae / WIDE are multiplied densely: gathering pays for few features only
MATCHED_NEIGHBOURS = 10  # a density-matched stand-in is drawn from this many living features on either side in rank


class Masking(NamedTuple):
    """Explained variance with one kind of mask of one size: mean and spread over random draws."""

    mask: str
    n_masked: int
    n_draws: int
    ev: float
    ev_sd: float


class SecondOrder(NamedTuple):
    """What one member's squared error does under masks, summed over the evaluation tokens (float64)."""

    error: float  # sum ||x - x_hat||^2
    total: float  # sum ||x - mean(x)||^2
    linear: Float[np.ndarray, " d_sae"]  # c
    quadratic: Float[np.ndarray, "d_sae d_sae"] | Float[np.ndarray, " d_sae"]  # G, or its diagonal alone

    def explained_variance(self, masked: np.ndarray | None = None) -> float:
        """EV = 1 - error / total with the features `masked` (indices) set to zero; at most 1, may be negative.

        Raises ValueError for more than one feature where only the diagonal of G is known.
        """
        error = self.error
        if masked is not None and len(masked):
            if self.quadratic.ndim == 2:
                pairs = self.quadratic[np.ix_(masked, masked)].sum()
            elif len(masked) == 1:
                pairs = self.quadratic[masked[0]]
            else:
                raise ValueError(
                    f"{len(masked)} features are masked, expected at most 1: pairs were not summed, ask a MaskPass"
                )
            error += 2 * self.linear[masked].sum() + pairs
        return 1 - error / self.total

    def marginal_worth(self) -> Float[np.ndarray, " d_sae"]:
        """EV lost when each feature alone is masked; negative where the reconstruction is better without it."""
        diagonal = np.diagonal(self.quadratic) if self.quadratic.ndim == 2 else self.quadratic
        return (2 * self.linear + diagonal) / self.total


class Worth(NamedTuple):
    """What one member's features are worth on the evaluation tokens."""

    ev: float  # explained variance, nothing masked
    marginal: Float[np.ndarray, " d_sae"]  # EV lost when each feature alone is masked


class AblationPass:
    """Accumulates c, G and the error of every member.

    All of G where that takes at most `pair_numbers` doubles for all members together (`pairwise`), else its diagonal.
    Memory: these, the batch's residuals (tokens, members, d_in), and work space of a few WORK_NUMBERS. Cost per token and
    member: width rows of the decoder (all of it where codes are wide), width^2 sums (d_sae^2 where wide) if pairwise. With
    `across` also sum_t w_j (r . d_j) of every member's features with the residuals r of every other member, for that many times
    the products of rows: what features add in another member's place is computed from it (`engine.features.substitution`).
    """

    def __init__(self, sae: SAE, *, pair_numbers: int = PAIR_NUMBERS, across: bool = False) -> None:
        self._sae = sae
        n, s = sae.n_members, sae.d_sae
        self.pairwise = n * s * s <= pair_numbers
        self._across = across
        self._error = torch.zeros(n, dtype=torch.float64)
        self._linear = torch.zeros(n, s, n if across else 1, dtype=torch.float64)  # with the residuals of every member
        self._together = torch.zeros(n, s * s if self.pairwise else s, dtype=torch.float64)  # sum_t w_i w_j, or w_i^2
        self._sum = torch.zeros(sae.d_out, dtype=torch.float64)
        self._square, self._n_tokens = 0.0, 0

    def add(self, rows: Float[Tensor, "tokens d_out"], codes: Codes) -> None:
        """Fold in one batch of the activations that should be given back (or, by transcoders, predicted), and its codes."""
        sae = self._sae
        residual = rows[:, None] - sae.decode(codes)
        weights = sae.coefficients(codes)
        self._error += residual.pow(2).sum(-1).sum(0, dtype=torch.float64)
        self._sum += rows.sum(0, dtype=torch.float64)
        self._square += float(rows.double().pow(2).sum())
        self._n_tokens += len(rows)
        width = weights.shape[-1]
        wide = width * WIDE > sae.d_sae
        numbers = sae.d_sae if wide else width * max(sae.d_out, width if self.pairwise else 1)
        numbers = max(numbers, self._linear.shape[-1] * max(width, sae.d_out))
        at_once = max(WORK_NUMBERS // numbers, 1)
        fold = self._fold_wide if wide else self._fold
        for m in range(sae.n_members):
            of_member = residual if self._across else residual[:, m : m + 1]
            parts = (tensor.split(at_once) for tensor in (weights[:, m], codes.indices[:, m], of_member))
            for part in zip(*parts, strict=True):
                fold(m, *part)

    def _fold(self, m: int, weights: Tensor, index: Tensor, residuals: Tensor) -> None:
        """Gather the rows of the active features, (tokens, width, d_in); `residuals` are (tokens, members or 1, d_in)."""
        d_sae = self._sae.d_sae
        along = torch.bmm(
            self._sae.W_dec.detach()[m][index], residuals.transpose(1, 2)
        )  # (tokens, width, members or 1)
        self._linear[m].index_add_(0, index.flatten(), (weights[..., None] * along).double().flatten(0, 1))
        if self.pairwise:
            pair = (index[:, :, None] * d_sae + index[:, None, :]).flatten()
            product = (weights[:, :, None] * weights[:, None, :]).double().flatten()
            self._together[m] += torch.bincount(pair, weights=product, minlength=d_sae**2)
        else:
            self._together[m].index_add_(0, index.flatten(), weights.double().pow(2).flatten())

    def _fold_wide(self, m: int, weights: Tensor, index: Tensor, residuals: Tensor) -> None:
        """Multiply all features, (tokens, d_sae)."""
        dense = torch.zeros(len(weights), self._sae.d_sae, dtype=torch.float64)
        dense.scatter_add_(1, index, weights.double())  # adds: the padding may name a feature that is active
        for column, residual in enumerate(residuals.unbind(1)):
            self._linear[m, :, column] += (dense * (residual @ self._sae.W_dec.detach()[m].T)).sum(0)
        if self.pairwise:
            self._together[m].view(dense.shape[1], -1).addmm_(dense.T, dense)
        else:
            self._together[m] += dense.pow(2).sum(0)

    def release(self) -> None:
        """Hold the members' weights no longer; nothing can be added from then on."""
        del self._sae

    def finish(self, member: int, decoder_rows: Float[Tensor, "d_sae d_out"] | None = None) -> SecondOrder:
        """The quadratic form of one member's squared error; its decoder rows are needed where `release` was called."""
        rows = (self._sae.W_dec.detach()[member] if decoder_rows is None else decoder_rows).double()
        together = self._together[member]
        quadratic = together.view(len(rows), -1) * (rows @ rows.T) if self.pairwise else together * rows.pow(2).sum(1)
        return SecondOrder(
            float(self._error[member]),
            self._square - float(self._sum.pow(2).sum()) / self._n_tokens,
            self._linear[member, :, member if self._across else 0].numpy(),
            quadratic.numpy(),
        )

    def along(self, member: int, residual_of: int) -> Float[np.ndarray, " d_sae"]:
        """sum_t w_j (r . d_j) of one member's features with the residuals of another; raises ValueError without `across`."""
        if not self._across:
            raise ValueError("products with other members' residuals were not summed, ask for them with across=True")
        return self._linear[member, :, residual_of].numpy()

    def total(self) -> float:
        """sum ||x - mean(x)||^2 over the tokens, which all members share."""
        return self._square - float(self._sum.pow(2).sum()) / max(self._n_tokens, 1)

    def diagonal(self, member: int) -> Float[np.ndarray, " d_sae"]:
        """sum_t w_i^2 ||d_i||^2 of one member's features: the diagonal of G."""
        squares = self._together[member]
        squares = squares.view(self._sae.d_sae, -1).diagonal() if self.pairwise else squares
        return (squares * self._sae.W_dec.detach()[member].double().pow(2).sum(1)).numpy()


class Masked(NamedTuple):
    """What a second pass found for chosen masks of one member."""

    worth: SecondOrder
    change: dict[bytes, float]  # of the squared error, by the mask's sorted features

    def explained_variance(self, masked: np.ndarray | None = None) -> float:
        """EV with the features `masked` set to zero; raises ValueError for a set that the pass was not asked for."""
        if masked is None or not len(masked):
            return self.worth.explained_variance()
        change = self.change.get(_key(masked))
        if change is None:
            raise ValueError(f"found a set of {len(masked)} features that was not among the masks of the second pass")
        return 1 - (self.worth.error + change) / self.worth.total


class MaskPass:
    """Answers chosen masks of every member exactly, where G is too large to keep.

    `masks` holds for every member what headline_masks drew. Cost per token, member and mask: width * min(width, d_in)
    multiply-adds: with TopK codes and all of headline's masks several times what summing G costs.
    Memory: a byte per (feature, mask) of every member, the batch's residuals, and work space of a few WORK_NUMBERS.
    """

    def __init__(self, sae: SAE, masks: list[dict[str, list[np.ndarray]]]) -> None:
        self._sae = sae
        self._keys: list[list[bytes]] = []
        self._marks: list[Tensor] = []  # (d_sae, masks) each
        for of_member in masks:
            sets = {_key(chosen): chosen for drawn in of_member.values() for chosen in drawn if len(chosen)}
            marks = torch.zeros(sae.d_sae, len(sets), dtype=torch.bool)
            for column, chosen in enumerate(sets.values()):
                marks[torch.from_numpy(chosen), column] = True
            self._keys.append(list(sets))
            self._marks.append(marks)
        self._change = [torch.zeros(len(keys), dtype=torch.float64) for keys in self._keys]

    def add(self, rows: Float[Tensor, "tokens d_out"], codes: Codes) -> None:
        """Fold in one batch of activations and their codes, the same batches as in the first pass."""
        sae = self._sae
        residual = rows[:, None] - sae.decode(codes)
        weights = sae.coefficients(codes)
        width = weights.shape[-1]
        for m, marks in enumerate(self._marks):
            n_masks = marks.shape[1]
            at_once = max(WORK_NUMBERS // (width * (sae.d_out + n_masks) + n_masks * min(width, sae.d_out)), 1)
            parts = (tensor[:, m].split(at_once) for tensor in (weights, codes.indices, residual))
            for w, index, r in zip(*parts, strict=True):
                added = sae.W_dec.detach()[m][index] * w[..., None]  # by every active feature, (tokens, width, d_in)
                marked = marks[index].to(w.dtype)  # (tokens, width, masks)
                # ||r + removed||^2 - ||r||^2, by the shorter way: over pairs of active features, or as vectors.
                if width < sae.d_out:
                    along = added @ r[..., None]
                    change = marked * (added @ added.transpose(1, 2) @ marked + 2 * along)
                else:
                    removed = added.transpose(1, 2) @ marked
                    change = removed * (removed + 2 * r[..., None])
                self._change[m] += change.sum((0, 1), dtype=torch.float64)

    def finish(self, member: int, worth: SecondOrder) -> Masked:
        """The answers for one member, whose first pass found `worth`."""
        return Masked(worth, dict(zip(self._keys[member], self._change[member].tolist(), strict=True)))


def _key(masked: np.ndarray) -> bytes:
    return np.sort(masked).astype(np.int64).tobytes()


def headline_masks(
    bucket: np.ndarray, density: np.ndarray, *, n_draws: int = N_DRAWS, seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """Sets of features by name: N stable against 4 N unstable ones, N = min(n_stable, n_unstable // 4), and their controls.

    One set of each whole bucket, n_draws of the rest; with N = 0 the whole buckets alone. `bucket` and `density` are
    (d_sae,). Random sets come from the living features.
    """
    rng = np.random.default_rng(seed)
    stable, unstable = np.flatnonzero(bucket == "stable"), np.flatnonzero(bucket == "unstable")
    middle, living = np.flatnonzero(bucket == "middle"), np.flatnonzero(bucket != "dead")
    by_density = living[np.argsort(density[living], kind="stable")]
    n = min(len(stable), len(unstable) // 4)
    sets = {"none": [stable[:0]], "all stable": [stable], "all middle": [middle], "all unstable": [unstable]}
    for _ in range(n_draws if n else 0):
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
    return sets


def curve_masks(
    bucket: np.ndarray, density: np.ndarray, *, n_draws: int = N_CURVE_DRAWS, seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """Growing sets of features of one kind, by kind; each draw's sets are nested, draws one after the other.

    Kinds: stable, unstable, random (of the living), and features of the density of stable and of unstable ones. Empty
    buckets have no curve.
    """
    rng = np.random.default_rng((seed, 1))
    stable, unstable = np.flatnonzero(bucket == "stable"), np.flatnonzero(bucket == "unstable")
    living = np.flatnonzero(bucket != "dead")
    by_density = living[np.argsort(density[living], kind="stable")]
    curves: dict[str, list[np.ndarray]] = {}
    for _ in range(n_draws):
        for name, pool in (("stable", stable), ("unstable", unstable), ("random", living)):
            order = rng.permutation(pool)
            curves.setdefault(name, []).extend(order[:n] for n in _sizes(len(pool)))
            if name != "random" and len(pool):
                stand_ins = _density_matched(order, by_density, rng)
                curves.setdefault(f"matched to {name}", []).extend(stand_ins[:n] for n in _sizes(len(pool)))
    return {name: sets for name, sets in curves.items() if sets}


def _sizes(n: int) -> list[int]:
    return np.unique(np.geomspace(1, n, N_SIZES).round().astype(int)).tolist() if n else []


def explained_under(worth: SecondOrder | Masked, masks: dict[str, list[np.ndarray]]) -> list[Masking]:
    """Explained variance under chosen masks, one result per name and size.

    `worth` must answer sets of features: with all of G, or from a MaskPass over the same masks.
    """
    results = []
    for name, sets in masks.items():
        sizes = sorted({len(chosen) for chosen in sets})
        for n in sizes:
            values = [worth.explained_variance(chosen) for chosen in sets if len(chosen) == n]
            results.append(Masking(name, n, len(values), float(np.mean(values)), spread(values)))
    return results


def spread(values: list[float]) -> float:
    """Standard deviation over draws; 0 for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


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
