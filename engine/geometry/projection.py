"""Project any set of features on the spans of the other members' sets, for pages, through the live engine.

Everything is measured by `engine.geometry.subspaces`; here the number of splits is limited to what a page can wait for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seedscope.engine.geometry.row_sets import unit_sets
from seedscope.engine.geometry.subspaces import (
    N_SPLITS,
    Basis,
    Transfer,
    basis,
    effective_rank,
    log_ranks,
    overlaps,
    projected_energy,
    transfer,
)

FEWEST_ROWS = 2  # of a member's set: one half to fit, one to measure
SPLIT_WORK = 2**32  # d^2 (d + rows) of all members that one split may cost where a page gets all N_SPLITS
N_FINE = 40  # ranks of one feature's curve


class Projection(NamedTuple):
    """What a page shows of one set of rows per member."""

    ranks: np.ndarray
    rank: int  # that `own` and `others` are taken at, one of the ranks
    members: np.ndarray  # indices of those with FEWEST_ROWS rows or more, which alone are compared
    n_rows: np.ndarray  # (all members,) rows of each set
    n_splits: int
    transfer: Transfer
    effective_rank: np.ndarray  # (members,)
    overlap: (
        np.ndarray
    )  # (3, ranks) mean and standard deviation over unordered pairs that reach the rank, and their number
    own: list[
        np.ndarray
    ]  # per member (rows,) energy in its own set's span, fitted without the row; NaN: none of that rank
    others: list[np.ndarray]  # the same in the other members' sets' spans, mean


def default_rank(d: int) -> int:
    """The rank of the usual grid that is nearest to an eighth of the width."""
    return min(log_ranks(d), key=lambda rank: (abs(rank - d / 8), rank))


def project(
    rows: Float[Tensor, "members d_sae d"],
    chosen: Bool[np.ndarray, "members d_sae"],
    *,
    living: Bool[np.ndarray, "members d_sae"],
    stable: Bool[np.ndarray, "members d_sae"],
    rank: int = 0,
    seed: int = 0,
) -> Projection:
    """Captured energies of the chosen unit rows of every member, on the rows' device.

    `living` rows are what random sets of the same size are drawn from; the baseline of `stable` ones is left out where a
    member has none. rank 0: `default_rank`. As many random splits as SPLIT_WORK allows, at least one. Cost as `transfer` and
    `projected_energy` have it: 8 eigendecompositions of d x d per member and split, whatever is chosen. Raises ValueError
    for a rank beyond the width and for fewer than two members that have FEWEST_ROWS rows.
    """
    d = rows.shape[2]
    rank = rank or default_rank(d)
    if not 1 <= rank <= d:
        raise ValueError(f"rank is {rank}, expected 1 to {d}, the width of the rows")
    n_rows = chosen.sum(1)
    members = np.flatnonzero(n_rows >= FEWEST_ROWS)
    if len(members) < 2:
        counts = ", ".join(map(str, n_rows))
        raise ValueError(
            f"found {counts} features in the {len(n_rows)} seeds, expected {FEWEST_ROWS} or more in at least 2: spans are "
            "compared across seeds; take a wider set or more seeds"
        )
    sets = [_select_rows(rows, member, chosen[member]) for member in members]
    work = d**2 * (len(members) * d + int(n_rows.sum()))
    n_splits = int(np.clip(SPLIT_WORK // work, 1, N_SPLITS))
    ranks = sorted({*log_ranks(d), rank})
    generator = np.random.default_rng(seed)
    drawn = []
    for member in members.tolist():  # a random set of a random set: no more rows are copied than splits can use
        among = np.flatnonzero(living[member])
        drawn.append(generator.permutation(among)[: max(n_splits * (n_rows[member] // 2), 1)])
    has_living, has_stable = all(map(len, drawn)), bool(stable[members].any(1).all())
    captured = transfer(
        sets,
        ranks,
        living=[_select_rows(rows, member, some) for member, some in zip(members, drawn, strict=True)]
        if has_living
        else None,
        stable=[_select_rows(rows, member, stable[member]) for member in members] if has_stable else None,
        n_splits=n_splits,
        seed=seed,
        device=rows.device,
    )
    inside = [np.ones(len(each), bool) for each in sets]
    energy = projected_energy(sets, inside, [rank], n_splits=n_splits, seed=seed, device=rows.device)
    return Projection(
        np.array(ranks),
        rank,
        members,
        n_rows,
        n_splits,
        captured,
        np.array([effective_rank(each, device=rows.device).rank for each in sets]),
        _mean_over_pairs(overlaps([basis(each, ranks[-1]) for each in unit_sets(sets, rows.device)], ranks)),
        [each.own[:, 0] for each in energy],
        [each.others[:, 0] for each in energy],
    )


def _select_rows(rows: Tensor, member: int | np.integer, which: np.ndarray) -> Tensor:
    """Some rows of a member, by mask or by index."""
    return rows[member][torch.from_numpy(which).to(rows.device)]


def _mean_over_pairs(overlap: Float[np.ndarray, "members members ranks"]) -> np.ndarray:
    pairs = overlap[np.triu_indices(len(overlap), 1)]
    n = np.isfinite(pairs).sum(0)
    mean, spread = np.full((2, len(n)), np.nan)
    mean[n > 0], spread[n > 0] = np.nanmean(pairs[:, n > 0], 0), np.nanstd(pairs[:, n > 0], 0)
    return np.stack([mean, spread, n])


class FittedSpans(NamedTuple):
    """All directions of the sets of some members."""

    members: tuple[int, ...]  # seeds
    bases: list[Basis]


def fit_spans(rows: Float[Tensor, "members d_sae d"], chosen: np.ndarray, seeds: Sequence[int]) -> FittedSpans:
    """The spans of the chosen rows of the members with these seeds; members without such rows have none."""
    has = np.flatnonzero(chosen.any(1)).tolist()
    bases = [basis(_select_rows(rows, member, chosen[member]), rows.shape[2]) for member in has]
    return FittedSpans(tuple(seeds[member] for member in has), bases)


def energy_by_rank(
    vectors: Float[Tensor, "vectors d"], bases: Sequence[Basis], ranks: Sequence[int]
) -> Float[np.ndarray, "bases vectors ranks"]:
    """Squared cosine of every unit vector with every span at ascending ranks; NaN beyond a span's own rank.

    All ranks from one product of the vectors with the directions: d^2 multiply-adds per vector and span.
    """
    energy = np.full((len(bases), len(vectors), len(ranks)), np.nan)
    for at, one in enumerate(bases):
        within = [rank for rank in ranks if rank <= one.rank]
        captured = (vectors.float() @ one.vectors).double().square().cumsum(1).cpu().numpy()
        energy[at, :, : len(within)] = captured[:, np.array(within, int) - 1]
    return energy.clip(0, 1)
