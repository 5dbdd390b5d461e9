"""Partners by entropic optimal transport: Sinkhorn in the log domain, block by block; the matrix of cosines never exists.

Every row of `a` sends the mass 1 / rows_a, every row of `b` receives 1 / rows_b, and moving mass between two rows costs 1 - cosine.
The plan that minimises cost - epsilon * entropy is P_ij = exp((cosine_ij + f_i + g_j) / epsilon) (Cuturi 2013), with potentials
f and g that make its marginals uniform. A row that many others come near to gets a low potential, and they are sent elsewhere:
where argmax lets all of them claim it, transport lets them compete, as one-to-one matching does, but for shares of mass.

One pass over the blocks multiplies every pair once. It computes the f that makes the marginal of the rows exact for the present g,
and with it the g* that would make that of the columns exact. How far g is from g* is the marginal gap. Plain Sinkhorn goes on from
g*, and takes hundreds of passes at small epsilon; here the next g is Anderson's combination of the last passes (Anderson 1965),
which takes tens. A pass that makes the gap much larger starts that memory anew.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned

# Of the cost 1 - cosine; this project's. An unrelated pair at cosine 0 weighs exp(-1 / EPSILON), 2e-9, of a pair at cosine 1: the
# thousands of unrelated rows of a dictionary together then hold less of a row's mass than one partner at cosine 0.5.
EPSILON = 0.05
TOLERANCE = 1e-3  # of the marginals, in L1: the share of the mass that arrives at the wrong rows
MAX_PASSES = 200
BLOCK_ENTRIES = (
    2**20
)  # cosines in memory at once: 4 MB, and as much again for their masses; larger ones leave the caches
_BLOCK_ROWS = 128  # products of fewer rows are slow
_LEAST = (
    -80.0
)  # logarithm of a mass beside the row's largest: float32 is slow below, and at the solution none that counts is
_MEMORY = 5  # passes that are combined
_PLAIN = 3  # passes at the beginning that are not


class Carried(NamedTuple):
    """Where the plan sends the mass of every row of one side."""

    partner: Int[Tensor, " rows"]  # row of the other side that gets the most; ties go to the lowest index
    cosine: Float[Tensor, " rows"]  # with it
    confidence: Float[Tensor, " rows"]  # share of the row's mass that goes there, 0 to 1


class Transport(NamedTuple):
    """The plan exp((cosine_ij + f_i + g_j) / epsilon) by its potentials, and partners under it in both directions."""

    forward: Carried  # from `a` to `b`
    backward: Carried
    f: Float[Tensor, " rows_a"]  # float64
    g: Float[Tensor, " rows_b"]
    marginal_gap: float  # L1 distance of the plan's marginals from uniform ones, 0 to 2
    n_passes: int  # over all pairs, without the last one, which reads the partners
    epsilon: float


class TransportPartners(NamedTuple):
    """Partners under the plan between two dictionaries, rows without a direction included."""

    forward: Int[np.ndarray, " rows_a"]  # of `a` in `b`; -1: none, for rows without a direction
    backward: Int[np.ndarray, " rows_b"]
    share: float  # of its mass that a row sends to its partner, mean over the rows of both sides with a direction
    epsilon: float
    n_passes: int
    marginal_gap: float


class _Pass(NamedTuple):
    f: Tensor  # of the rows, exact for the g that was given
    best_g: Tensor  # exact for f
    to_b: tuple[Tensor, Tensor]  # partner and share of every row of a; zeros where partners were not asked for
    to_a: tuple[Tensor, Tensor]


def transport(
    a: Float[Tensor, "rows_a d_in"],
    b: Float[Tensor, "rows_b d_in"],
    *,
    epsilon: float = EPSILON,
    tolerance: float = TOLERANCE,
    max_passes: int = MAX_PASSES,
    report: Callable[[int, float], None] = lambda n_passes, gap: None,
) -> Transport:
    """Entropic transport between unit float32 rows that have a direction, with uniform marginals.

    Ends when the marginal gap is at most `tolerance`, or after `max_passes`: `marginal_gap` then says how far it came. `report`
    gets (passes done, gap). Products and the masses of one block are float32, potentials and sums over blocks float64: gaps
    below 1e-5 are not reached. Cost: one product of the full size and one exponential per pair and pass. Memory above the
    inputs: two blocks of BLOCK_ENTRIES numbers, or of 128 rows where these are more, and about 2 _MEMORY numbers per row of `b`.
    Raises ValueError for an epsilon that is not above 0, and for a side without rows.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon is {epsilon}, expected a number above 0")
    if not len(a) or not len(b):
        raise ValueError(f"{len(a)} and {len(b)} rows have a direction, expected at least one on each side")
    g, n_passes, gap, before = torch.zeros(len(b), dtype=torch.float64, device=a.device), 0, math.inf, math.inf
    best, least = g, math.inf
    memory: list[tuple[Tensor, Tensor]] = []
    while n_passes < max_passes:
        target = _swept(a, b, g, epsilon, partners=False).best_g
        step, n_passes = target - g, n_passes + 1
        gap = float(torch.expm1(-step / epsilon).abs().mean())
        report(n_passes, gap)
        if gap < least:
            best, least = g, gap
        if gap <= tolerance:
            break
        if not gap <= 2 * before:
            memory.clear()
        before = gap
        if n_passes > _PLAIN:
            memory = [*memory, (target, step)][-_MEMORY - 1 :]
        g = _combined(memory) if len(memory) > 1 else target
    last = _swept(a, b, best, epsilon, partners=True)
    forward, backward = _carried(a, b, *last.to_b), _carried(b, a, *last.to_a)
    return Transport(forward, backward, last.f, best, least, n_passes, epsilon)


def partners_between(a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"]) -> TransportPartners:
    """Partners of all rows of two dictionaries of unit rows; rows of zeros, which have no direction, take no part.

    Raises ValueError where no row of a side has a direction.
    """
    at_a, at_b = (rows.any(-1).nonzero()[:, 0] for rows in (a, b))
    found = transport(a[at_a], b[at_b])

    def placed(carried: Carried, own: Tensor, other: Tensor, n: int) -> np.ndarray:
        partner = torch.full((n,), -1, dtype=torch.long, device=own.device)
        partner[own] = other[carried.partner]
        return partner.cpu().numpy()

    shares = torch.cat([found.forward.confidence, found.backward.confidence])
    return TransportPartners(
        placed(found.forward, at_a, at_b, len(a)),
        placed(found.backward, at_b, at_a, len(b)),
        float(shares.double().mean()),
        found.epsilon,
        found.n_passes,
        found.marginal_gap,
    )


def _combined(memory: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The next g: the combination of past targets whose combined step is smallest."""
    targets, steps = (torch.stack(each) for each in zip(*memory, strict=True))
    d_targets, d_steps = targets.diff(dim=0), steps.diff(dim=0)
    gram = d_steps @ d_steps.T
    gram += 1e-10 * gram.diagonal().max() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights, info = torch.linalg.solve_ex(gram, d_steps @ steps[-1])
    if int(info) or not bool(torch.isfinite(weights).all()):
        return targets[-1]
    combined: Tensor = targets[-1] - weights @ d_targets
    return combined


def _swept(a: Tensor, b: Tensor, g: Tensor, epsilon: float, *, partners: bool) -> _Pass:
    """One pass over all pairs; with `partners` also where the plan's mass goes."""
    n_a, n_b = len(a), len(b)
    step = min(max(BLOCK_ENTRIES // n_b, _BLOCK_ROWS), n_a)
    logits, masses = a.new_empty(step, n_b), a.new_empty(step, n_b)
    scaled_g = (g / epsilon).to(a.dtype)
    f, row_share = (torch.zeros(n_a, dtype=torch.float64, device=a.device) for _ in range(2))
    arrives = torch.zeros(n_b, dtype=torch.float64, device=a.device)  # mass at every row of b
    row_partner, column_partner = (torch.zeros(n, dtype=torch.long, device=a.device) for n in (n_a, n_b))
    column_top = a.new_full((n_b,), -torch.inf)
    for first in range(0, n_a, step):
        stop_if_abandoned()
        rows = slice(first, min(first + step, n_a))
        logit, mass = logits[: rows.stop - first], masses[: rows.stop - first]
        torch.mm(a[rows], b.T, out=logit)
        logit.div_(epsilon).add_(scaled_g)
        top = logit.amax(1)
        torch.sub(logit, top[:, None], out=mass).clamp_(min=_LEAST).exp_()
        sums = mass.sum(1).double()
        f[rows] = -epsilon * (top + sums.log() + math.log(n_a))
        arrives += (1 / (n_a * sums)).to(a.dtype) @ mass
        if partners:
            row_partner[rows], row_share[rows] = logit.argmax(1), 1 / sums
            logit.add_((f[rows] / epsilon).to(a.dtype)[:, None])  # the logarithm of the plan
            block_top = logit.amax(0)
            higher = block_top > column_top
            column_partner[higher] = first + logit[:, higher].argmax(0)
            column_top = torch.maximum(column_top, block_top)
    best_g = g - epsilon * (arrives.log() + math.log(n_b))
    return _Pass(f, best_g, (row_partner, row_share), (column_partner, column_top.double().exp() / arrives))


def _carried(rows: Tensor, others: Tensor, partner: Tensor, share: Tensor) -> Carried:
    return Carried(partner, (rows * others[partner]).sum(1).clamp(-1, 1), share.clamp(0, 1).to(rows.dtype))
