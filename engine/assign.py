"""One-to-one matching that maximises the summed cosine, with a proof of how far it is from the optimum.

Small problems are solved densely (scipy, exact). Large ones on a sparse graph of candidates: the `n_candidates` best partners
from both sides, and the diagonal, so that a full matching always exists. The optimum on that graph gives column prices v
(shortest paths over its residual graph), and for ANY prices linear-programming duality bounds every matching:
value <= sum_i max_j (c_ij - v_j) + sum_j v_j. One more blockwise pass evaluates that bound over all pairs; pairs that
violate it become candidates, until value and bound agree. Never more than a block of the cosine matrix exists.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

DENSE_UP_TO = 2048  # rows; dense scipy takes under a second and 32 MB there
N_CANDIDATES = 32
RELATIVE_GAP = 1e-5
BLOCK_ENTRIES = 2**24  # cosines that exist at once: 64 MB
_OFFSET = 2.0  # keeps costs positive: scipy reads a zero as an absent edge


class Assignment(NamedTuple):
    """A one-to-one matching of the rows of `a` to rows of `b`; every row of the smaller side has a partner."""

    partner: Int[np.ndarray, " rows"]  # -1 where a row of the larger side stays alone
    cosine: Float[np.ndarray, " rows"]  # NaN there
    value: float  # summed cosine
    bound: float  # no matching exceeds this

    @property
    def gap(self) -> float:
        """Proven distance to the optimum, relative to the value."""
        return (self.bound - self.value) / max(abs(self.value), 1e-12)


def hungarian(
    a: Float[Tensor, "rows_a d_in"],
    b: Float[Tensor, "rows_b d_in"],
    *,
    n_candidates: int = N_CANDIDATES,
    relative_gap: float = RELATIVE_GAP,
    dense_up_to: int = DENSE_UP_TO,
    max_rounds: int = 8,
) -> Assignment:
    """Match unit rows one to one so that the summed cosine is largest, within a proven relative gap.

    Cost: three products of the full size and, per round, one more; memory about 100 bytes per candidate pair.
    """
    if len(a) > len(b):
        options = {"n_candidates": n_candidates, "relative_gap": relative_gap, "dense_up_to": dense_up_to}
        return _swapped(hungarian(b, a, max_rounds=max_rounds, **options), len(a))
    if len(b) <= dense_up_to:
        cosines = (a @ b.T).double().cpu().numpy()
        rows, partner = linear_sum_assignment(cosines, maximize=True)
        cosine = cosines[rows, partner]
        return Assignment(partner, cosine, float(cosine.sum()), float(cosine.sum()))
    graph = _Graph(a, b, n_candidates)
    best: Assignment | None = None
    bound = np.inf
    for _ in range(max_rounds):
        partner, cosine = graph.solve()
        prices = graph.prices(partner, cosine)
        price_bound, violators = _dual_bound(a, b, prices)
        bound = min(bound, price_bound)
        best = Assignment(partner, cosine, float(cosine.sum()), bound)
        if best.gap <= relative_gap:
            break
        graph.add(*violators)
    return best


def _swapped(found: Assignment, n_rows: int) -> Assignment:
    partner, cosine = np.full(n_rows, -1), np.full(n_rows, np.nan)
    partner[found.partner], cosine[found.partner] = np.arange(len(found.partner)), found.cosine
    return Assignment(partner, cosine, found.value, found.bound)


class _Graph:
    """Candidate pairs with their cosines, sorted by (row, column), each once."""

    def __init__(self, a: Tensor, b: Tensor, n_candidates: int) -> None:
        self._shape = (len(a), len(b))
        forward, backward = _top(a, b, n_candidates), _top(b, a, n_candidates)
        diagonal = np.arange(len(a))
        self._keys = np.array([], np.int64)
        self._cosines = np.array([], np.float64)
        self.add(forward[0], forward[1], forward[2])
        self.add(backward[1], backward[0], backward[2])
        self.add(diagonal, diagonal, (a * b[: len(a)]).sum(1).double().cpu().numpy())

    def add(self, rows: np.ndarray, columns: np.ndarray, cosines: np.ndarray) -> None:
        keys = np.r_[self._keys, rows.astype(np.int64) * self._shape[1] + columns]
        self._keys, first = np.unique(keys, return_index=True)
        self._cosines = np.r_[self._cosines, cosines][first]

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = np.divmod(self._keys, self._shape[1])
        starts = np.searchsorted(rows, np.arange(self._shape[0] + 1)).astype(np.int32)
        costs = csr_array((_OFFSET - self._cosines, columns.astype(np.int32), starts), self._shape)
        _, partner = min_weight_full_bipartite_matching(costs)
        at = np.searchsorted(self._keys, np.arange(self._shape[0], dtype=np.int64) * self._shape[1] + partner)
        return partner.astype(np.int64), self._cosines[at]

    def prices(self, partner: np.ndarray, cosine: np.ndarray) -> np.ndarray:
        """Least v >= 0 with c_ij - v_j <= c_i,partner(i) - v_partner(i) on every candidate edge: longest paths.

        The optimal matching has no improving cycle, so the Bellman-Ford sweeps end; rounding is cut at 1e-12.
        """
        rows, columns = np.divmod(self._keys, self._shape[1])
        gain = self._cosines - cosine[rows]
        order = np.argsort(columns, kind="stable")
        rows, columns, gain = rows[order], columns[order], gain[order]
        held, starts = np.unique(columns, return_index=True)
        prices = np.zeros(self._shape[1])
        source = partner[rows]
        for _ in range(2000):
            raised = np.maximum.reduceat(gain + prices[source], starts)
            better = raised > prices[held] + 1e-12
            if not better.any():
                break
            prices[held[better]] = raised[better]
        return prices


def _top(a: Tensor, b: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest cosines of every row of `a`: rows, columns, cosines, flat."""
    k, step = min(k, len(b)), max(BLOCK_ENTRIES // len(b), 1)
    found = [(a[i : i + step] @ b.T).topk(k, dim=1, sorted=False) for i in range(0, len(a), step)]
    rows = np.repeat(np.arange(len(a)), k)
    columns = torch.cat([f.indices for f in found]).flatten().cpu().numpy()
    return rows, columns, torch.cat([f.values for f in found]).flatten().double().cpu().numpy()


def _dual_bound(a: Tensor, b: Tensor, prices: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The bound that prices prove over all pairs, and every row's best pairs under them."""
    v = torch.from_numpy(prices).to(a)
    step = max(BLOCK_ENTRIES // len(b), 1)
    total, rows, columns, cosines = float(prices.sum()), [], [], []
    for i in range(0, len(a), step):
        worth, at = (a[i : i + step] @ b.T - v).topk(min(4, len(b)), dim=1)
        total += float(worth[:, 0].double().sum())
        rows.append(np.repeat(np.arange(i, i + len(at)), at.shape[1]))
        columns.append(at.flatten().cpu().numpy())
        cosines.append((worth + v[at]).flatten().double().cpu().numpy())
    return total, (np.concatenate(rows), np.concatenate(columns), np.concatenate(cosines))
