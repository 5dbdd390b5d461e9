"""What became of every feature of a dictionary in a later one: survived, moved, split, merged, lost; and what is new there.

Definitions of this project. `theta` is the cosine of a match, `same` (at least theta) that of a row that is still the same. A rule
gives an old row at most one partner. Independently of the rule, every row has a nearest row on the other side; a row *goes to* its
nearest one if their cosine reaches theta. The first that holds is an old row's fate:

    survived  its partner's cosine reaches `same`
    split     two or more new rows go to it; or no new row reaches theta alone, and two whose nearest old row it is write it
    merged    it goes to a new row to which another old row goes too; or it is one of those that write a new row that no old row
              reaches alone
    moved     its partner's cosine reaches theta
    lost      none of these

Two rows *write* a third one if each has at least theta / sqrt(2) with it, the third is the nearest row of both, and its cosine
with the plane of the two reaches theta: a sum of two to four orthogonal rows of equal weight is found so, up to noise, and a row
that has just fallen below theta beside an unrelated one is not.

Likewise the first that holds is a new row's origin: `kept` (partner of an old row that survived or moved), `split` (goes to an old
row that split, or writes it), `merged` (an old row that merged goes to it or writes it), `beside` (goes to an old row that has
another partner: a near copy), `new` (none of these).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from seedscope.engine.contract.stability import is_match

SAME = 0.95  # cosine from which a row counts as the same: 18 degrees. This project's
FATES = ("survived", "moved", "split", "merged", "lost")
ORIGINS = ("kept", "split", "merged", "beside", "new")


class Towards(NamedTuple):
    """One row of another dictionary for every row; partner -1 where there is none."""

    cosine: Float[np.ndarray, " rows"]
    partner: Int[np.ndarray, " rows"]


class Fates(NamedTuple):
    """The fate of every old row, the origin of every new one, and which rows splits and merges joined."""

    fate: Shaped[np.ndarray, " old"]  # one of FATES
    origin: Shaped[np.ndarray, " new"]  # one of ORIGINS
    parts: dict[int, list[int]]  # {old row that split: new rows, nearest first}
    joined: dict[
        int, list[int]
    ]  # {new row that old rows merged into: all old rows that go to it or write it, nearest first}


def fates_of(
    old: Float[Tensor, "old d_in"],
    new: Float[Tensor, "new d_in"],
    partners: Towards,
    to_new: Towards,
    to_old: Towards,
    *,
    theta: float,
    same: float = SAME,
) -> Fates:
    """Fates and origins of unit rows.

    `partners` are the rule's for the old rows; `to_new` holds the nearest new row of every old one, `to_old` the nearest old row
    of every new one. Raises ValueError unless 0 <= theta <= same.
    """
    if not 0 <= theta <= same:
        raise ValueError(f"theta is {theta}, expected 0 to {same}: from there on a feature counts as the same")
    matched = (partners.partner >= 0) & is_match(partners.cosine, theta)
    survived = matched & is_match(partners.cosine, same)
    alone_old, alone_new = ~is_match(to_new.cosine, theta), ~is_match(to_old.cosine, theta)
    parts = _gathered(to_old, theta) | _written(old, new, to_old, alone_old, theta)
    joined = _gathered(to_new, theta) | _written(new, old, to_new, alone_new, theta)
    split, merged = np.zeros(len(old), bool), np.zeros(len(old), bool)
    split[list(parts)] = True
    split &= ~survived
    merged[[row for rows in joined.values() for row in rows]] = True
    merged &= ~survived & ~split
    fate = np.select([survived, split, merged, matched], ["survived", "split", "merged", "moved"], "lost")
    parts = {row: found for row, found in parts.items() if split[row]}
    joined = {row: found for row, found in joined.items() if merged[found].any()}
    kept, of_split, of_merge = (np.zeros(len(new), bool) for _ in range(3))
    kept[partners.partner[(fate == "survived") | (fate == "moved")]] = True
    of_split[[row for rows in parts.values() for row in rows]] = True
    of_merge[list(joined)] = True
    origin = np.select([kept, of_split, of_merge, ~alone_new], ["kept", "split", "merged", "beside"], "new")
    return Fates(fate, origin, parts, joined)


def _gathered(towards: Towards, theta: float) -> dict[int, list[int]]:
    """{row: the rows that go to it} where there are two or more, nearest first."""
    return {row: found for row, found in _by_nearest(towards, theta).items() if len(found) > 1}


def _by_nearest(towards: Towards, least: float) -> dict[int, list[int]]:
    """{row: the rows of the other side whose nearest it is, at a cosine of at least `least`}, nearest first."""
    rows = np.flatnonzero((towards.partner >= 0) & is_match(towards.cosine, least))
    rows = rows[np.argsort(-towards.cosine[rows], kind="stable")]
    nearest: dict[int, list[int]] = {}
    for row, at in zip(rows.tolist(), towards.partner[rows].tolist(), strict=True):
        nearest.setdefault(at, []).append(row)
    return nearest


def _written(rows: Tensor, writers: Tensor, towards: Towards, alone: np.ndarray, theta: float) -> dict[int, list[int]]:
    """{row: the writers whose nearest row it is} for rows that none of them reaches alone, but the plane of the nearest two."""
    found = {row: near for row, near in _by_nearest(towards, theta / 2**0.5).items() if alone[row] and len(near) > 1}
    if not found:
        return {}
    row, (first, second) = torch.tensor(list(found)), torch.tensor([near[:2] for near in found.values()]).T
    x, y, z = rows[row].double(), writers[first].double(), writers[second].double()
    xy, xz, yz = ((a * b).sum(1) for a, b in ((x, y), (x, z), (y, z)))
    across = (1 - yz**2).clamp_min(1e-9)  # two copies of one direction have no plane; none of them reaches theta alone
    inside = ((xy**2 + xz**2 - 2 * xy * xz * yz) / across).clamp(0, 1).sqrt()
    reaches = is_match(torch.where(across > 1e-6, inside, torch.maximum(xy, xz)).numpy(), theta)
    return {row: near for (row, near), holds in zip(found.items(), reaches, strict=True) if holds}
