"""Measure snapshots of training members: how far they agree, and what each feature is worth, step by step.

Endpoint agreement alone cannot tell convergence from a common start, so the Hungarian distance and the mean best cosine are
followed from step 0 (paper B), among all features and among the living ones, beside random dictionaries and beside what
the dictionaries' mean direction alone gives. The arrays of the part ARE the columns of the tables, named `Table.column`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import is_match
from seedscope.engine.features.ablation import AblationPass
from seedscope.engine.matching.assignment import DENSE_UP_TO, hungarian
from seedscope.engine.matching.cuda import best as best_cosines
from seedscope.engine.matching.match import HUNGARIAN_UP_TO
from seedscope.engine.saes.encode import count_active, encoded
from seedscope.engine.saes.sae import SAE, directed, unit_rows
from seedscope.engine.training.batches import Rows

ANALYSIS = "trajectory"
N_TOKENS = 16_384  # evaluation tokens, in whole windows, that activity and worth are measured on at every snapshot
REACH = (
    4  # members on either side, in seed order and round the end, that each is compared with: all, up to nine members
)
N_RANDOM = 3  # pairs of random dictionaries; one where they are matched sparsely, for they spread by thousandths


class Alike(NamedTuple):
    """Pairs of dictionaries."""

    distance: Float[np.ndarray, " pairs"] | None  # mean 1 - cosine over the one-to-one matching
    best: Float[np.ndarray, " pairs"]  # mean best cosine, of both directions


class Common(NamedTuple):
    """What all rows of a dictionary have in common; means over members or pairs."""

    mean_cosine: float
    mean_share: float
    centred: Alike


class Used(NamedTuple):
    """What members do with tokens."""

    evs: Float[np.ndarray, " members"]
    n_active: Int[np.ndarray, "members d_sae"]
    worth: Float[np.ndarray, "members d_sae"]  # EV lost when each feature alone is masked


class Followed(NamedTuple):
    """One snapshot; `live` and `used` are None without tokens, `live` also where a member has no living feature."""

    all: Alike
    n_all: float  # features per member that have a direction
    live: Alike | None
    n_live: float
    common: Common
    matched: Int[np.ndarray, "members d_sae"]  # comparisons whose best cosine reaches theta
    best: Float[np.ndarray, "members d_sae"]  # mean best cosine over comparisons; NO_MATCH for rows without a direction
    used: Used | None


def compared(n_members: int) -> list[tuple[int, int]]:
    """Pairs of members that are compared: every member with the REACH next ones, which makes all pairs of up to nine."""
    steps = ((i, (i + step) % n_members) for i in range(n_members) for step in range(1, REACH + 1))
    return sorted({(min(pair), max(pair)) for pair in steps if pair[0] != pair[1]})


def n_compared(n_members: int) -> int:
    """Comparisons of each member."""
    return min(n_members - 1, 2 * REACH)


def affordable(n_snapshots: int, n_members: int, d_sae: int, d_in: int) -> bool:
    """Whether pairs are matched one to one at every snapshot without being asked for."""
    return n_snapshots * len(compared(n_members)) * d_sae**2 * d_in <= HUNGARIAN_UP_TO


@torch.no_grad()
def follow(
    members: SAE,
    rows: Rows | None,
    *,
    units: Float[Tensor, " d_in"],
    theta: float,
    assign: bool,
    device: torch.device | str = "cpu",
) -> Followed:
    """Measure members as they stand at one snapshot; `rows` (tokens, d_in) are activations that no training saw.

    Cosines are those of decoder rows in the space of training, whose `units` x has per dimension. Cost: 2 d_sae^2 d_in
    FLOPs per pair, up to four assignments per pair with `assign`, and a pass over the rows.
    """
    n, d_sae = members.n_members, members.d_sae
    device = torch.device(device)
    unit = unit_rows((members.W_dec.detach().float() / units).to(device))
    valid = directed(members.W_dec.detach()).to(device)
    pairs = compared(n)
    total, matched, count = np.zeros((n, d_sae)), np.zeros((n, d_sae), np.int32), n_compared(n)
    every, at = [unit[m][valid[m]] for m in range(n)], [each.cpu().numpy() for each in valid]

    def note(pair: tuple[int, int], both: tuple[Tensor, Tensor]) -> None:
        for m, cosines in zip(pair, both, strict=True):
            cosine = cosines.clamp(-1, 1).cpu().numpy()
            total[m, at[m]] += cosine
            matched[m, at[m]] += is_match(cosine, theta)

    whole = alike(every, pairs, assign=assign, note=note)
    best = np.where(np.stack(at), total / max(count, 1), NO_MATCH)
    used = use(members, rows, device=device) if rows is not None else None
    living, n_live = None, 0.0
    if used is not None:
        live = valid & torch.from_numpy(used.n_active > 0).to(device)
        n_live = float(live.sum(1).double().mean())
        if bool((live == valid).all()):
            living = whole
        elif bool(live.any(1).all()):
            living = alike([unit[m][live[m]] for m in range(n)], pairs, assign=assign)
    return Followed(
        whole, float(valid.sum(1).double().mean()), living, n_live, common(every, pairs, assign=assign), matched,
        best.astype(np.float32), used,
    )  # fmt: skip


def alike(
    rows: Sequence[Tensor],
    pairs: list[tuple[int, int]],
    *,
    assign: bool,
    note: Callable[[tuple[int, int], tuple[Tensor, Tensor]], None] = lambda pair, both: None,
) -> Alike:
    """Compare members' unit rows (features, d_in) pair by pair; of unequal numbers the smaller side is matched whole.

    `note` is called with each pair and its best cosines, one way and the other.
    """
    distances, bests = [], []
    for i, j in pairs:
        forward, back = _best(rows[i], rows[j])
        note((i, j), (forward, back))
        bests.append(float((forward.mean() + back.mean()) / 2))
        if assign:
            distances.append(1 - float(np.nanmean(hungarian(rows[i], rows[j]).cosine)))
    # Rounding may put the cosine of two equal rows above 1.
    return Alike(np.clip(distances, 0, 2) if assign else None, np.clip(bests, -1, 1))


def common(rows: Sequence[Tensor], pairs: list[tuple[int, int]], *, assign: bool) -> Common:
    """What unit rows of each member share, and how alike members are when its direction is taken out of every row.

    Of n unit rows with the mean m, the mean cosine of two different ones is (n |m|^2 - 1) / (n - 1).
    """
    means = [each.double().mean(0) for each in rows]
    shares = np.array([float(mean @ mean) for mean in means])
    n = np.array([len(each) for each in rows])
    directions = [torch.nn.functional.normalize(mean, dim=0).to(each) for mean, each in zip(means, rows, strict=True)]
    centred = [
        unit_rows(each - (each @ direction)[:, None] * direction)
        for each, direction in zip(rows, directions, strict=True)
    ]
    cosines = (n * shares - 1) / np.maximum(n - 1, 1)
    return Common(float(cosines.mean()), float(shares.mean()), alike(centred, pairs, assign=assign))


def random_level(d_sae: int, d_in: int, *, assign: bool, seed: int = 0) -> Alike:
    """How alike random unit dictionaries of this size are."""
    generator = torch.Generator().manual_seed(seed)
    n = N_RANDOM if d_sae <= DENSE_UP_TO else 1
    rows = [unit_rows(torch.randn(d_sae, d_in, generator=generator)) for _ in range(2 * n)]
    return alike(rows, [(2 * i, 2 * i + 1) for i in range(n)], assign=assign)


@torch.no_grad()
def use(members: SAE, rows: Rows, *, device: torch.device | str = "cpu") -> Used:
    """Run rows through members: explained variance, firings and every feature's marginal worth, exact."""
    ablation = AblationPass(members, pair_numbers=0)
    n_active = np.zeros((members.n_members, members.d_sae), np.int64)
    for _, batch, codes in encoded(members, rows, torch.device(device)):
        ablation.add(batch, codes)
        count_active(n_active, codes)
    worths = [ablation.finish(m) for m in range(members.n_members)]
    return Used(
        np.array([worth.explained_variance() for worth in worths]), n_active,
        np.stack([worth.marginal_worth() for worth in worths]),
    )  # fmt: skip


def _best(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Best cosine of every row of each side in the other; whole products are quicker while they are small."""
    if max(len(a), len(b)) <= DENSE_UP_TO:
        cosines = a @ b.T
        return cosines.amax(1), cosines.amax(0)
    forward, back = best_cosines(a, b)
    return forward.cosine, back.cosine
