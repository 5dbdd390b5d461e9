"""Spans of sets of features: effective rank, captured energy from member to member, overlap, principal angles.

A set is the unit decoder rows of one bucket of one member, (n, d). All that its span captures lies in its second moment
M = D^T D: V_r are the top-r eigenvectors of M, and with P_r = V_r V_r^T the mean squared cosine E(r; s -> t) is
<P_r(s), M(t)> / n(t). For one rank that is ONE product over all ordered pairs, whatever the numbers of rows are.

Moments and eigenvectors are float64 (on a processor about as fast as float32): effective ranks are good to 1e-7, to 1e-4
where rows repeat. Projectors and their products are float32 with partial sums in float64: energies and overlaps are within
2e-7 of a float64 SVD's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.geometry.row_sets import Device, Rows, require_rows, unit_sets
from seedscope.engine.machine import working_array

N_RANKS = 12
N_SPLITS = 4  # random halves that curves are averaged over
N_DRAWS = 10  # subsamples behind a count-matched effective rank
PART = 4096  # float32 products that are summed before they are added up in float64; all of them at once err by 1e-5
HELD_PROJECTORS = 2**28  # bytes of one side's projectors at a time
ANGLES_AT_ONCE = 2**24  # numbers of the products behind principal angles
Report = Callable[[int, int], None]


def log_ranks(d: int, n: int = N_RANKS) -> list[int]:
    """At most n ranks from 1 to d, evenly spaced by their logarithm."""
    return sorted({round(rank) for rank in np.geomspace(1, d, n).tolist()})


class EffectiveRank(NamedTuple):
    """How many directions a set spreads over, in the sense of entropy."""

    rank: float  # exp of the entropy of the singular values' shares (Roy and Vetterli 2007)
    n: int  # rows
    d: int

    @property
    def per_dimension(self) -> float:
        """Its share of d; grows with n alone."""
        return self.rank / self.d

    @property
    def per_bound(self) -> float:
        """Its share of the most that n rows can have, min(n, d)."""
        return self.rank / min(self.n, self.d)


class MatchedRank(NamedTuple):
    """Effective rank of random sets of n rows."""

    mean: float
    spread: float  # standard deviation over draws; 0 where all rows were taken, for then there is one draw
    n: int
    d: int


def spectrum(rows: Rows, *, device: Device = "cpu") -> Float[np.ndarray, " values"]:
    """The min(n, d) singular values of the unit rows, descending; from the smaller of the two second moments."""
    [rows] = unit_sets([rows], device)
    return _spectrum(rows)


def _spectrum(rows: Tensor) -> np.ndarray:
    rows = rows.double()
    moment = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    return torch.linalg.eigvalsh(moment).flip(0).clamp_min(0).sqrt().cpu().numpy()


def effective_rank(rows: Rows, *, device: Device = "cpu") -> EffectiveRank:
    """exp(-sum p ln p), p = singular values over their sum. Raises ValueError for an empty set."""
    return EffectiveRank(_entropy_rank(spectrum(rows, device=device)), *rows.shape)


def _entropy_rank(values: np.ndarray) -> float:
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def matched_rank(rows: Rows, n: int, *, n_draws: int = N_DRAWS, seed: int = 0, device: Device = "cpu") -> MatchedRank:
    """Effective rank of n random rows of a set: what another set of n rows is compared with, as the rank grows with n.

    Raises ValueError for more rows than there are.
    """
    [rows] = unit_sets([rows], device)
    if not 1 <= n <= len(rows):
        raise ValueError(f"asked for {n} of {len(rows)} rows, expected 1 to {len(rows)}")
    generator = torch.Generator().manual_seed(seed)
    draws = (rows[_random_indices(len(rows), n, generator)] for _ in range(n_draws if n < len(rows) else 1))
    return _mean_rank([_entropy_rank(_spectrum(drawn)) for drawn in draws], n, rows.shape[1])


def random_rank(n: int, d: int, *, n_draws: int = N_DRAWS, seed: int = 0, device: Device = "cpu") -> MatchedRank:
    """Effective rank of n random unit rows: 0.585 of d = 768 at n = 500, 0.946 at 2,000."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1) for _ in range(n_draws))
    return _mean_rank([_entropy_rank(_spectrum(drawn.to(device))) for drawn in draws], n, d)


def _mean_rank(ranks: list[float], n: int, d: int) -> MatchedRank:
    return MatchedRank(float(np.mean(ranks)), float(np.std(ranks)), n, d)


def _random_indices(n: int, chosen: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[:chosen]


class Basis(NamedTuple):
    """Directions of a set, strongest first."""

    vectors: Tensor  # (d, rank) orthonormal columns, float32
    rank: int  # how many: no more than it had rows, where its curves stop


def basis(rows: Tensor, rank: int) -> Basis:
    """The top right singular vectors of unit rows, at most `rank` of them."""
    return _top_eigenvectors(rows.double().T @ rows.double(), min(rank, *rows.shape))


def _top_eigenvectors(moment: Tensor, rank: int) -> Basis:
    stop_if_abandoned()
    return Basis(torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :rank].float(), rank)


def moment(rows: Tensor) -> Tensor:
    """Mean of d d^T over the unit rows d, (d, d) float32, accumulated in float64."""
    return (rows.double().T @ rows.double() / len(rows)).float()


def projectors(bases: Sequence[Basis], ranks: Sequence[int]) -> Iterator[Float[Tensor, "bases d d"]]:
    """For every rank in turn V_r V_r^T of every basis, valid until the next; of a shorter basis, all it has."""
    d = len(bases[0].vectors)
    sums = bases[0].vectors.new_zeros(len(bases), d, d)
    before = 0
    for rank in ranks:
        stop_if_abandoned()
        for projector, one in zip(sums, bases, strict=True):
            part = one.vectors[:, before:rank]
            projector.addmm_(part, part.T)
        yield sums
        before = rank


def _inner_products(a: Tensor, b: Tensor) -> Tensor:
    """<A, B> of every matrix of a with every one of b, (a, b) float64."""
    parts = (x.flatten(1).split(PART, 1) for x in (a, b))
    return sum((x @ y.T).double() for x, y in zip(*parts, strict=True))


def _blocks(bases: Sequence[Basis]) -> list[slice]:
    size = max(HELD_PROJECTORS // (4 * len(bases[0].vectors) ** 2), 1)
    return [slice(first, min(first + size, len(bases))) for first in range(0, len(bases), size)]


def _nan_beyond_rank(bases: Sequence[Basis], ranks: Sequence[int]) -> np.ndarray:
    """(bases, ranks): 1 where a basis has that many directions, else NaN."""
    return np.where(np.array([one.rank for one in bases])[:, None] >= np.asarray(ranks), 1.0, np.nan)


def captured(
    bases: Sequence[Basis], moments: Float[Tensor, "sets d d"], ranks: Sequence[int]
) -> Float[np.ndarray, "bases sets ranks"]:
    """Mean squared cosine of every set's rows with every basis's span, at ascending ranks; NaN beyond a basis's rank.

    Cost: 2 bases sets d^2 multiply-adds a rank, whatever the number of rows.
    """
    energy = np.empty((len(bases), len(moments), len(ranks)))
    for block in _blocks(bases):
        for at, projector in enumerate(projectors(bases[block], ranks)):
            energy[block, :, at] = _inner_products(projector, moments).cpu().numpy()
    return energy.clip(0, 1) * _nan_beyond_rank(bases, ranks)[:, None]


def overlaps(bases: Sequence[Basis], ranks: Sequence[int]) -> Float[np.ndarray, "bases bases ranks"]:
    """||V_r(s)^T V_r(t)||_F^2 / r of all pairs: 1 for one span, r/d on average for unrelated ones.

    NaN where one of the two has fewer directions.
    """
    shares, blocks = np.empty((len(bases), len(bases), len(ranks))), _blocks(bases)
    for i, a in enumerate(blocks):
        for b in blocks[: i + 1]:
            both = zip(projectors(bases[a], ranks), projectors(bases[b], ranks), strict=True)
            for at, (one, other) in enumerate(both):
                inner = _inner_products(one, other).cpu().numpy() / ranks[at]
                shares[a, b, at], shares[b, a, at] = inner, inner.T
    stops = _nan_beyond_rank(bases, ranks)
    # A block with itself is rounded differently above and below the diagonal.
    shares = (shares + shares.swapaxes(0, 1)) / 2
    return shares.clip(0, 1) * stops[:, None] * stops[None]


def principal_angles(bases: Sequence[Basis], rank: int) -> Float[np.ndarray, "pairs rank"]:
    """Angles in radians, ascending, between the top-r spans of every unordered pair, (0, 1), (0, 2), .. (1, 2), ..

    The cosines are singular values of V_r(s)^T V_r(t) in float64 of float32 vectors: an angle below 1e-3 is within 5e-4 of
    0. NaN where one of the two has fewer directions. Cost: r^3 a pair.
    """
    pairs = np.array([(i, j) for i in range(len(bases)) for j in range(i + 1, len(bases))]).reshape(-1, 2)
    enough = np.array([one.rank >= rank for one in bases])[pairs].all(1)
    angles = np.full((len(pairs), rank), np.nan)
    for some in np.array_split(np.flatnonzero(enough), math.ceil(enough.sum() * rank**2 / ANGLES_AT_ONCE) or 1):
        if len(some):
            a, b = (torch.stack([bases[i].vectors[:, :rank] for i in pairs[some, side]]).double() for side in (0, 1))
            angles[some] = torch.linalg.svdvals(a.mT @ b).clamp(-1, 1).arccos().cpu().numpy()
    return angles


class Curve(NamedTuple):
    """Captured energy against rank, averaged over random splits; NaN from where a fitted set has fewer rows."""

    energy: np.ndarray  # (fitted on, measured on, ranks), NaN for the same member; within: (members, 1, ranks)
    n_fitted: np.ndarray  # (fitted on,) rows that each basis was fitted on: the curve stops there
    mean: np.ndarray  # (ranks,) over members or ordered pairs that reach the rank
    spread: np.ndarray  # (ranks,) standard deviation over them
    split_spread: np.ndarray  # (ranks,) standard deviation, over splits, of that mean
    n_pairs: np.ndarray  # (ranks,) members or ordered pairs that reach the rank


class Transfer(NamedTuple):
    """Energy that the span of one member's set captures of itself and of the other members' sets [paper A, section 6.2]."""

    ranks: np.ndarray
    d: int
    within: Curve  # fitted on a random half of a set, measured on the other half
    cross: Curve  # fitted on the same half, measured on all rows of every other member's set
    random_set: Curve | None  # as many random living rows of a member, measured on the others' sets; None: not given
    stable: Curve | None  # as many of its stable rows, or all where it has fewer
    activations: Curve | None  # top principal directions of the activations, one basis for all

    @property
    def random_subspace(self) -> np.ndarray:
        """(ranks,) r / d: what a random subspace captures on average."""
        return self.ranks / self.d


def transfer(
    sets: Sequence[Rows],
    ranks: Sequence[int] | None = None,
    *,
    living: Sequence[Rows] | None = None,
    stable: Sequence[Rows] | None = None,
    covariance: Rows | None = None,
    n_splits: int = N_SPLITS,
    seed: int = 0,
    device: Device = "cpu",
    report: Report = lambda done, total: None,
) -> Transfer:
    """Captured energy of every member's set in its own span, in the others', and in baselines of the same size.

    `living` and `stable` are those rows of each member, `covariance` (d, d) is of the activations. `ranks` default to
    `log_ranks`; where a fitted half has fewer rows than the rank the curves stop. Cost: an eigendecomposition per member,
    split and curve and 2 members^2 d^2 multiply-adds per rank, split and curve; memory: 8 members d^2 bytes,
    HELD_PROJECTORS and what `UnitSets` holds.
    Raises ValueError for fewer than two members, for sets of fewer than two rows, for empty baselines.
    """
    units = unit_sets(sets, device, n_members=2, n_rows=2)
    d = units.d
    ranks = _checked_ranks(ranks, d)
    named = {"random_set": living, "stable": stable}
    baselines = {
        name: unit_sets(rows, device, n_members=len(units)) for name, rows in named.items() if rows is not None
    }
    wholes = torch.stack([moment(rows) for rows in units])
    halves = [n // 2 for n in units.counts]
    n_fitted = {
        name: [min(half, n) for half, n in zip(halves, rows.counts, strict=True)] for name, rows in baselines.items()
    }
    n_fitted |= {"within": halves, "cross": halves}
    energy: dict[str, list[np.ndarray]] = {name: [] for name in n_fitted}
    generator = torch.Generator().manual_seed(seed)
    for split in range(n_splits):
        bases, within = [], []
        for rows in units:
            order = torch.randperm(len(rows), generator=generator)
            bases.append(basis(rows[order[: len(rows) // 2]], ranks[-1]))
            within.append(captured(bases[-1:], moment(rows[order[len(rows) // 2 :]])[None], ranks)[0])
        energy["within"].append(np.stack(within))
        energy["cross"].append(_energy_across(bases, wholes, ranks))
        for name, pools in baselines.items():
            drawn = (r[_random_indices(len(r), n, generator)] for r, n in zip(pools, n_fitted[name], strict=True))
            energy[name].append(_energy_across([basis(r, ranks[-1]) for r in drawn], wholes, ranks))
        report(split + 1, n_splits)
    curves = {name: _curve(by_split, n_fitted[name]) for name, by_split in energy.items()}
    activations = None
    if covariance is not None:
        top = _top_eigenvectors(torch.as_tensor(covariance).to(device).double(), ranks[-1])
        activations = _curve([captured([top], wholes, ranks)], [d])
    return Transfer(
        np.array(ranks),
        d,
        curves["within"],
        curves["cross"],
        curves.get("random_set"),
        curves.get("stable"),
        activations,
    )


def _checked_ranks(ranks: Sequence[int] | None, d: int) -> list[int]:
    ranks = log_ranks(d) if ranks is None else sorted({int(rank) for rank in ranks})
    if not ranks or not 1 <= ranks[0] <= ranks[-1] <= d:
        raise ValueError(f"ranks are {ranks}, expected at least one, from 1 to the width {d}")
    return ranks


def _energy_across(bases: Sequence[Basis], moments: Tensor, ranks: Sequence[int]) -> np.ndarray:
    energy = captured(bases, moments, ranks)
    energy[np.arange(len(bases)), np.arange(len(bases))] = np.nan
    return energy


def _curve(by_split: list[np.ndarray], n_fitted: Sequence[int]) -> Curve:
    energies = np.stack(by_split)
    energy = energies.mean(0)
    n_pairs = (~np.isnan(energy)).sum((0, 1))
    mean, spread, split_spread = np.full((3, energy.shape[-1]), np.nan)
    reached = n_pairs > 0
    mean[reached], spread[reached] = np.nanmean(energy[..., reached], (0, 1)), np.nanstd(energy[..., reached], (0, 1))
    split_spread[reached] = np.nanmean(energies[..., reached], (1, 2)).std(0)
    return Curve(energy, np.array(n_fitted), mean, spread, split_spread, n_pairs)


class FeatureEnergy(NamedTuple):
    """Squared cosine of every row of one member with spans of sets, at every rank; NaN where no span has that rank."""

    own: np.ndarray  # (rows, ranks) in its own member's set's span, fitted without the row
    others: np.ndarray  # (rows, ranks) mean over the other members' sets' spans


def projected_energy(
    rows: Sequence[Rows],
    in_set: Sequence[np.ndarray],
    ranks: Sequence[int] | None = None,
    *,
    n_splits: int = N_SPLITS,
    seed: int = 0,
    device: Device = "cpu",
    scratch: Path | None = None,
) -> list[FeatureEnergy]:
    """Every row's energy inside its own and inside the other members' sets' spans.

    `in_set` (rows,) says per member which rows form the set. A row that a span was fitted on fits itself, so each set is
    cut into two random halves, both fitted: a row of the set is measured in the half without it, any other row in both;
    others' spans are those halves too, so that all spans have seen equally many rows. Mean over splits.
    Cost: 2 eigendecompositions per member and split, d^2 multiply-adds per row, rank and split, twice; memory: 4 projectors a
    member and what `UnitSets` holds, with the result in a file of the folder `scratch` where it is large. Raises ValueError for
    fewer than two members and sets of fewer than two rows.
    """
    units = unit_sets(rows, device, n_members=2)
    chosen = [torch.as_tensor(mask).nonzero()[:, 0] for mask in in_set]
    require_rows([len(at) for at in chosen], 2)
    ranks = _checked_ranks(ranks, units.d)
    own, others = (_by_member(units.counts, len(ranks), scratch) for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_splits):
        halves = [at[torch.randperm(len(at), generator=generator)].tensor_split(2) for at in chosen]
        fitted = [[basis(every[at.to(every.device)], ranks[-1]) for at in half]
                  for every, half in zip(units, halves, strict=True)]  # fmt: skip
        sides = list(zip(*fitted, strict=True))
        reached = np.stack([_nan_beyond_rank(side, ranks) == 1 for side in sides])  # (2, members, ranks)
        for at, halves_at in enumerate(zip(*(projectors(side, ranks) for side in sides), strict=True)):
            has_rank = reached[:, :, at]
            total = sum(
                side[torch.from_numpy(ok).to(side.device)].sum(0) for side, ok in zip(halves_at, has_rank, strict=True)
            )
            for member, every in enumerate(units):
                first, second = (
                    _energy(every, side[member], ok) for side, ok in zip(halves_at, has_rank[:, member], strict=True)
                )
                inside = (first + second) / 2
                for half, without in zip(halves[member], (second, first), strict=True):
                    inside[half] = without[half]
                own[member][:, at] += inside / n_splits
                n_others = has_rank.sum() - has_rank[:, member].sum()
                mine = sum(side[member] * float(ok) for side, ok in zip(halves_at, has_rank[:, member], strict=True))
                elsewhere = _energy(every, (total - mine) / max(float(n_others), 1), n_others > 0)
                others[member][:, at] += elsewhere / n_splits
    return [FeatureEnergy(*energies) for energies in zip(own, others, strict=True)]


def _by_member(counts: Sequence[int], width: int, scratch: Path | None) -> list[np.ndarray]:
    """Zeros (rows, width) of every member, side by side in one working array."""
    return np.split(working_array((sum(counts), width), float, scratch), np.cumsum(counts)[:-1])


def _energy(rows: Tensor, projector: Tensor, has_rank: bool | np.bool_) -> np.ndarray:
    """(rows,) d^T P d; NaN where there is no such projector."""
    rows = rows.float()
    energy = ((rows @ projector) * rows).sum(1).cpu().numpy()
    return np.where(has_rank, energy.clip(0, 1), np.nan)
