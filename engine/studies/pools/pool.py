"""The feature pool: the unique features of an ensemble's members as one SAE, those that most members hold first.

Members are walked in seed order and features in theirs; one joins the pool when its largest cosine to the features in it is
below theta (paper A pools unique features across seeds). A member holds a pooled feature when one of its own reaches theta
with it. The d_sae features that most members hold make the pool, densest first among equals (this project's definition).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.stability import THETA, is_match
from seedscope.engine.matching.cuda import best
from seedscope.engine.matching.match import dictionaries
from seedscope.engine.saes.sae import SAE, assemble

ROWS = 1024  # features that are compared with the pool, and then with each other, at once


class Unique(NamedTuple):
    """The unique features of some members, in the order in which they were found."""

    member: Int[np.ndarray, " unique"]  # index into the ensemble's members
    feature: Int[np.ndarray, " unique"]
    holders: Int[np.ndarray, " unique"]  # members that hold it, its own among them


class Pool(NamedTuple):
    """The best of the unique features as an SAE of one member, and where each row came from."""

    sae: SAE
    seed: Int[np.ndarray, " d_pool"]  # of the SAE whose feature this is
    feature: Int[np.ndarray, " d_pool"]  # in that SAE
    holders: Int[np.ndarray, " d_pool"]  # members that hold it, descending
    density: Float[np.ndarray, " d_pool"] | None  # in that SAE
    n_unique: Int[np.ndarray, " members"]  # unique features with so many holders, 1 first


def unique_features(
    sae: SAE,
    *,
    members: tuple[int, ...] | None = None,
    theta: float = THETA,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Unique:
    """Walk members, all if not given, and count who holds what; rows without a direction are left out.

    Cost: all features times the unique ones times d_in multiply-adds, twice; memory the unit rows, and the pool's once more.
    """
    walked = tuple(range(sae.n_members)) if members is None else members
    members_rows = dictionaries(sae, device=device)
    rows = [members_rows[member].decoder[members_rows[member].valid] for member in walked]
    total, n = 2 * sum(map(len, rows)), 0
    pool = rows[0].new_empty(sum(map(len, rows)), sae.d_in)  # no page of it is touched before a feature needs it
    owners: list[np.ndarray] = []
    features: list[np.ndarray] = []
    done = 0
    for place, member in enumerate(walked):
        for first in range(0, len(rows[place]), ROWS):
            part = rows[place][first : first + ROWS]
            new = _new(part, pool[:n], theta)
            pool[n : n + len(new)] = part[new]
            owners.append(np.full(len(new), place))
            features.append(members_rows[member].valid.cpu().numpy()[first : first + ROWS][new])
            n, done = n + len(new), done + len(part)
            report(done, total)
    owner = np.concatenate(owners) if owners else np.zeros(0, np.int64)
    feature = np.concatenate(features) if features else np.zeros(0, np.int64)
    holders = np.zeros(n, np.int64)
    for place, part in enumerate(rows):
        if n and len(part):
            cosine = best(pool[:n], part)[0].cosine.clamp(-1, 1).cpu().numpy()
            holders += is_match(cosine, theta) | (owner == place)
        done += len(part)
        report(done, total)
    return Unique(np.array(walked)[owner], feature, holders)


def _new(part: Float[Tensor, "rows d_in"], pool: Float[Tensor, "unique d_in"], theta: float) -> np.ndarray:
    """Indices of the rows that are below theta with all of the pool and with those of them that came in before."""
    candidates = np.arange(len(part))
    if len(pool) and len(part):
        candidates = candidates[~is_match(best(part, pool)[0].cosine.clamp(-1, 1).cpu().numpy(), theta)]
    rows = part[candidates]
    near = is_match((rows @ rows.T).clamp(-1, 1).cpu().numpy(), theta)
    taken = np.zeros(len(candidates), bool)
    for i in range(len(candidates)):
        taken[i] = not (near[i] & taken).any()
    return candidates[taken]


def pool(
    sae: SAE,
    *,
    members: tuple[int, ...] | None = None,
    density: Float[np.ndarray, "members d_sae"] | None = None,
    theta: float = THETA,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Pool:
    """Pool the features of members, all if not given; fewer than d_sae where there are not as many unique ones.

    Without `density` equals stay in the order in which they were found. Raises ValueError where features cannot be taken
    out of their SAE, and where no row has a direction or fewer are unique than a token needs.
    """
    if sae.convention.architecture == "groupmax":
        raise ValueError(
            "groupmax takes the largest of every group of neighbours, so a feature means nothing outside its group; pool an "
            "ensemble of another architecture"
        )
    unique = unique_features(sae, members=members, theta=theta, device=device, report=report)
    if not len(unique.holders):
        raise ValueError("no decoder row has a direction (all are zero or not finite), expected some features to pool")
    dense = np.zeros(len(unique.holders)) if density is None else density[unique.member, unique.feature]
    order = np.lexsort((np.arange(len(dense)), -dense, -unique.holders))[: sae.d_sae]
    if len(order) < sae.k:
        raise ValueError(
            f"found {len(order)} unique features at theta {theta:g}, expected at least k ({sae.k}); raise theta"
        )
    member, feature = unique.member[order], unique.feature[order]
    walked = sae.n_members if members is None else len(members)
    return Pool(
        sae=taken_from(sae, member, feature, members=members),
        seed=np.array(sae.seeds)[member],
        feature=feature,
        holders=unique.holders[order],
        density=None if density is None else dense[order],
        n_unique=np.bincount(unique.holders, minlength=walked + 1)[1:],
    )


def taken_from(
    sae: SAE, member: Int[np.ndarray, " n"], feature: Int[np.ndarray, " n"], *, members: tuple[int, ...] | None = None
) -> SAE:
    """An SAE of one member from these features with their own weights; b_dec is the mean of the members', all if not given."""
    m, f = torch.from_numpy(np.asarray(member)), torch.from_numpy(np.asarray(feature))
    tensors = {}
    for name in sae.convention.tensors:
        tensor = getattr(sae, name).detach()
        if name == "b_dec":
            chosen = tensor if members is None else tensor[list(members)]
            tensors[name] = chosen.double().mean(0)[None].to(tensor.dtype)
        elif name == "W_enc":
            tensors[name] = tensor[m, :, f].T[None]
        else:
            tensors[name] = tensor[m, f][None]
    return assemble(tensors, sae.convention, (0,)).requires_grad_(False)
