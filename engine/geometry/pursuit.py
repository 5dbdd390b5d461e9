"""Orthogonal matching pursuit: the residual of a feature written with a few features of another member.

In every step the feature with the largest |cosine| with the residual joins, and the residual is made orthogonal to all that
joined (Pati et al. 1993). Float32; each new direction is made orthogonal twice, so residuals below 1e-4 are rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.geometry.row_sets import Device, Rows, unit_sets
from seedscope.engine.geometry.subspaces import Report
from seedscope.engine.matching.match import NULL_KINDS, random_dictionary

K_MAX = 8
HELD_COSINES = 2**24  # numbers: rows at once times features of the dictionary
N_ROWS = 512  # rows per member that all pairs are searched for
NOTHING = 1e-4  # length of a residual that is rounding


class Pursuit(NamedTuple):
    """Residuals of unit rows written with 1 .. k_max rows of a dictionary."""

    residual: Float[np.ndarray, "rows k_max"]  # norms, 1 (orthogonal to all) to 0 (written exactly); never rise
    atoms: Int[np.ndarray, "rows k_max"]  # in the order of joining; -1 where nothing was left to write


def pursuit_residual(
    rows: Rows, dictionary: Rows, k_max: int = K_MAX, *, least_gain: float = -1.0, device: Device = "cpu"
) -> Pursuit:
    """Orthogonal matching pursuit of every row in one dictionary, in batches; signs are free, ties go to the lowest index.

    A row whose newest feature takes at most the share `least_gain` of its squared residual (-1: never) is left as it is.
    Cost: 2 k_max rows features d FLOPs at most; memory: HELD_COSINES. Raises ValueError for no rows, an empty dictionary, and
    k_max < 1.
    """
    if k_max < 1:
        raise ValueError(f"k_max is {k_max}, expected at least 1")
    rows, dictionary = (side.float() for side in unit_sets([rows, dictionary], device))
    batches = [
        _pursue(some, dictionary, k_max, least_gain) for some in rows.split(max(HELD_COSINES // len(dictionary), 1))
    ]
    return Pursuit(*(torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True)))


def _pursue(rows: Tensor, dictionary: Tensor, k_max: int, least_gain: float) -> tuple[Tensor, Tensor]:
    norms = rows.new_ones(len(rows), k_max)
    atoms = torch.full((len(rows), k_max), -1, device=rows.device)
    going = torch.arange(len(rows), device=rows.device)
    left, directions = rows, rows.new_zeros(len(rows), k_max, rows.shape[1])  # orthonormal, of what has joined
    for step in range(k_max):
        cosine, atom = (left @ dictionary.T).abs_().max(1)
        joins = cosine > NOTHING  # nothing that has joined is found again: the residual is orthogonal to it
        new = dictionary[atom]
        for _ in range(2):  # once leaves rounding behind where the new one nearly lies in the span
            new = new - torch.einsum("rkd,rk->rd", directions, torch.einsum("rkd,rd->rk", directions, new))
        new = torch.nn.functional.normalize(new, dim=1) * joins[:, None]
        directions[:, step] = new
        left = left - new * (new * left).sum(1, keepdim=True)
        after = left.norm(dim=1)
        norms[going, step:] = after[:, None]
        atoms[going, step] = torch.where(joins, atom, -1)
        before = norms[going, step - 1] if step else torch.ones_like(after)
        goes_on = 1 - (after / before.clamp_min(NOTHING)) ** 2 > least_gain
        if not goes_on.all():
            going, left, directions = going[goes_on], left[goes_on], directions[goes_on]
        if not len(going):
            break
    return norms, atoms


class Residuals(NamedTuple):
    """Mean residual norms over the rows of one member, written with at most k features of another; k = 1 .. k_max."""

    by_pair: np.ndarray  # (members, members, k_max) rows' member, dictionary's member; the diagonal is NaN
    mean: np.ndarray  # (k_max,) over ordered pairs
    spread: np.ndarray  # (k_max,) standard deviation over ordered pairs
    chance: dict[str, np.ndarray]  # null kind -> (k_max,) with a random dictionary in place of each other member's
    n_rows: np.ndarray  # (members,) rows that were written


def span_residuals(
    rows: Sequence[Rows],
    dictionaries: Sequence[Rows],
    k_max: int = K_MAX,
    *,
    n_rows: int = N_ROWS,
    seed: int = 0,
    device: Device = "cpu",
    report: Report = lambda done, total: None,
) -> Residuals:
    """Write rows of every member with the features of every other member, and of random dictionaries of the same sizes.

    Of more than `n_rows` rows a random choice is written. The random dictionaries are those of `engine.matching.match`:
    `haar` keeps a dictionary's geometry and rotates it at random; `second_moment` keeps mean direction and anisotropy. Each
    random one serves all other members. Cost: that of `pursuit_residual` per ordered pair and kind, three times in all.
    Raises ValueError for fewer than two members and for empty sets.
    """
    unit_rows, unit_dictionaries = (unit_sets(side, device, n_members=2) for side in (rows, dictionaries))
    generator = torch.Generator().manual_seed(seed)
    written = [some[torch.randperm(len(some), generator=generator)[:n_rows].to(some.device)] for some in unit_rows]
    members = range(len(written))

    def random_like(dictionary: Tensor, kind: str) -> Tensor:
        return random_dictionary(dictionary, kind, generator)

    kinds: dict[str, Callable[[Tensor], Tensor]] = {"": lambda dictionary: dictionary}
    kinds |= {kind: partial(random_like, kind=kind) for kind in NULL_KINDS}
    residual = {kind: np.full((len(written), len(written), k_max), np.nan) for kind in kinds}
    for other in members:
        others = [member for member in members if member != other]
        together = torch.cat([written[member] for member in others])
        for kind, draw in kinds.items():
            norms = pursuit_residual(together, draw(unit_dictionaries[other].float()), k_max, device=device).residual
            cuts = np.cumsum([len(written[member]) for member in others])[:-1]
            residual[kind][others, other] = np.stack([part.mean(0) for part in np.split(norms, cuts)])
        report(other + 1, len(written))
    by_pair = residual.pop("")
    chance = {kind: np.nanmean(values, (0, 1)) for kind, values in residual.items()}
    return Residuals(
        by_pair,
        np.nanmean(by_pair, (0, 1)),
        np.nanstd(by_pair, (0, 1)),
        chance,
        np.array([len(some) for some in written]),
    )
