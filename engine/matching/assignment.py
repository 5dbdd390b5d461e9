"""One-to-one matching (the assignment problem) that maximises the summed cosine, with a proven bound on its distance to the best.

Small problems are solved exactly by scipy on the dense matrix. Large ones are solved on a sparse graph of candidate pairs: of
every row the pairs above a threshold t_i, at least `n_candidates` of them, and the best pairs of columns that few rows chose.
scipy finds the best matching on that graph; longest paths over its residual graph give column prices v.

For any prices, linear-programming duality bounds the value of every matching: value <= sum_i max_j (c_ij - v_j) + sum_j v_j. A
pair that is no candidate has c_ij <= t_i. So the maximum of a row is reached by a candidate unless t_i - min v exceeds it. Only
the rows for which it does are multiplied with all columns again. Their pairs that violate the bound become candidates, and the
graph is solved again, until value and bound agree.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from torch import Tensor

from seedscope.engine.contract.abandon import stop_if_abandoned

DENSE_UP_TO = 2048  # rows; the dense solver takes under a second and 32 MB at that size
N_CANDIDATES = 64
RELATIVE_GAP = 1e-5
BLOCK_ENTRIES = 2**24  # cosines in memory at once, 64 MB; more where that would be fewer than BLOCK_ROWS rows
BLOCK_ROWS = 1024  # products of fewer rows are slow
_PICKS = 16  # new candidates per row in the first round, on average; only rows that violate the bound get any
_SWEEPS = 10_000  # most sweeps of Bellman-Ford

# scipy.sparse has no annotations; these say what is used of it here.
_csr_array: Callable[..., sparse.csr_array] = sparse.csr_array
_vstack: Callable[..., sparse.csr_array] = sparse.vstack


class Assignment(NamedTuple):
    """A one-to-one matching of the rows of `a` to rows of `b`; every row of the smaller side has a partner."""

    partner: Int[np.ndarray, " rows"]  # row of `b`; -1 for a row of the larger side without partner
    cosine: Float[np.ndarray, " rows"]  # of the pair; NaN without partner
    value: float  # summed cosine
    bound: float  # no matching exceeds this

    @property
    def gap(self) -> float:
        """Upper limit on how far the value is below that of the best matching, relative to the value."""
        return (self.bound - self.value) / max(abs(self.value), 1e-12)


def hungarian(
    a: Float[Tensor, "rows_a d_in"],
    b: Float[Tensor, "rows_b d_in"],
    *,
    n_candidates: int = N_CANDIDATES,
    relative_gap: float = RELATIVE_GAP,
    dense_up_to: int = DENSE_UP_TO,
    max_rounds: int = 8,
    absolute: bool = False,
) -> Assignment:
    """Match unit rows one to one so that the summed cosine is largest, within a proven relative gap.

    With `absolute`, every cosine counts by its absolute value, and that is what the result holds.

    The gap is proven up to the float32 rounding of the cosines, about 1e-7 per pair. Where `max_rounds` end before
    `relative_gap` is reached, `gap` says so: it is larger. Ties are broken by fixed seeds: same input, same result.

    Cost: one product of the full size, and in every round one of those rows that their candidates do not certify: 1 % of
    them on spread-out features, all of them where many are near each other. Memory: a copy of `b`, a block of cosines (5
    bytes times the larger of BLOCK_ENTRIES and BLOCK_ROWS * rows_b, twice that where rows are multiplied again), and about
    100 bytes per candidate, of which there are 1.1 * n_candidates per row, more where rounds add some.
    """
    if len(a) > len(b):
        swapped = hungarian(
            b,
            a,
            n_candidates=n_candidates,
            relative_gap=relative_gap,
            dense_up_to=dense_up_to,
            max_rounds=max_rounds,
            absolute=absolute,
        )
        return _swapped(swapped, len(a))
    if len(b) <= dense_up_to:
        cosines = _counted(a @ b.T, absolute).double().cpu().numpy()
        rows, partner = linear_sum_assignment(cosines, maximize=True)
        cosine = cosines[rows, partner]
        return Assignment(partner, cosine, float(cosine.sum()), float(cosine.sum()))
    order = _shuffled(len(b))  # neighbouring rows are often similar, and thresholds come from groups of neighbours
    b = b[order.to(b.device)]
    graph = _Graph(a, b, n_candidates, absolute)
    bound = np.inf
    for turn in range(max(max_rounds, 1)):
        stop_if_abandoned()
        partner, cosine = graph.solve()
        value = float(cosine.sum())
        prices = graph.prices(partner, cosine, 0.1 * relative_gap * abs(value) / len(a))
        price_bound, violators = graph.bound(prices, _PICKS * 2**turn * len(a))
        bound = min(bound, price_bound)
        best = Assignment(order.numpy()[partner], cosine, value, max(bound, value))
        if best.gap <= relative_gap or not len(violators[0]):
            break
        graph.add(*violators)
    return best


def _swapped(backward: Assignment, n_rows: int) -> Assignment:
    """An assignment from `b` to `a` as one from the `n_rows` rows of `a` to `b`."""
    partner, cosine = np.full(n_rows, -1), np.full(n_rows, np.nan)
    partner[backward.partner], cosine[backward.partner] = np.arange(len(backward.partner)), backward.cosine
    return Assignment(partner, cosine, backward.value, backward.bound)


class _Graph:
    """Candidate pairs with their cosines, sorted by (row, column), each once; and per row a limit that no other pair exceeds."""

    def __init__(self, a: Tensor, b: Tensor, n_candidates: int, absolute: bool) -> None:
        self._a, self._b, self._n_candidates, self._absolute = a, b, n_candidates, absolute
        rows, columns, cosines, limits = _candidates(a, b, n_candidates, absolute)
        self._limits = limits.double().cpu().numpy()
        self._set(rows.cpu().numpy(), columns.cpu().numpy(), cosines.double().cpu().numpy())
        self.add(*_neglected(a, b, columns, n_candidates, absolute))
        # Every row's best cosine minus price, first with prices of 0. Costs relative to it let the solver start near its end.
        self._worth = np.zeros(len(a))
        np.maximum.at(self._worth, self._rows, self._cosines)

    def _set(self, rows: np.ndarray, columns: np.ndarray, cosines: np.ndarray) -> None:
        self._rows, self._columns, self._cosines = rows, columns.astype(np.int32), cosines
        self._starts = np.searchsorted(rows, np.arange(len(self._a) + 1))

    def add(self, rows: np.ndarray, columns: np.ndarray, cosines: np.ndarray) -> None:
        """Add pairs to the candidates, except those that are candidates already."""
        keys, first = np.unique(rows * len(self._b) + columns, return_index=True)
        old_keys = self._rows * len(self._b) + self._columns
        at = np.searchsorted(old_keys, keys)
        new = np.append(old_keys, -1)[at] != keys
        parts = zip((self._rows, self._columns, self._cosines), (rows, columns, cosines), strict=True)
        self._set(*(np.insert(old, at[new], more[first[new]]) for old, more in parts))

    def _costs(self) -> sparse.csr_array:
        shape = (len(self._a), len(self._b))
        costs = self._worth[self._rows] - self._cosines
        return _csr_array((costs + (1 - costs.min(initial=0)), self._columns, self._starts.astype(np.int32)), shape)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """The best matching on the candidates: (column, cosine) of every row."""
        try:
            partner = self._matched()
        except ValueError as error:
            if "no full matching" not in str(error):
                raise
            self._complete()
            partner = self._matched()
        return partner, self._cosines[self._columns == partner[self._rows]]

    def _matched(self) -> np.ndarray:
        costs, (n_rows, n_columns) = self._costs(), (len(self._a), len(self._b))
        if 0 < (n_columns - n_rows) * n_columns <= costs.nnz:  # scipy is ten times slower on what is not square
            costs = _vstack([costs, _csr_array(np.ones((n_columns - n_rows, n_columns)))], format="csr")
        columns: np.ndarray = min_weight_full_bipartite_matching(costs)[1]
        return columns[:n_rows].astype(np.int64)

    def _complete(self) -> None:
        """Add candidates so that a full matching exists: rows and columns that a largest one leaves out, in cyclic shifts."""
        partner = maximum_bipartite_matching(self._costs(), perm_type="column")
        rows, free = np.flatnonzero(partner < 0), np.setdiff1d(np.arange(len(self._b)), partner)
        pairs = [(rows, np.roll(free, -shift)[: len(rows)]) for shift in range(min(self._n_candidates, len(free)))]
        cosines = [_counted((self._a[i] * self._b[j]).sum(1), self._absolute).double().cpu().numpy() for i, j in pairs]
        self.add(*(np.concatenate(part) for part in (*zip(*pairs, strict=True), cosines)))

    def prices(self, partner: np.ndarray, cosine: np.ndarray, tolerance: float) -> np.ndarray:
        """Least v >= 0 with c_ij - v_j <= c_i,partner(i) - v_partner(i) + tolerance on every candidate: longest paths.

        Bellman-Ford over the columns, each sweep only from those whose price has just risen. The optimal matching has no
        improving cycle, so the sweeps end. Where _SWEEPS end them first, the bound that the prices give is looser, but valid.
        """
        tolerance = max(tolerance, 1e-12)
        gain = self._cosines - cosine[self._rows]
        gain[self._columns == partner[self._rows]] = -np.inf
        best = np.maximum.reduceat(gain, self._starts[:-1])
        owner = np.full(len(self._b), -1)
        owner[partner] = active = np.arange(len(partner))
        prices = np.zeros(len(self._b))
        for _ in range(_SWEEPS):
            active = active[best[active] + prices[partner[active]] > tolerance]
            if not len(active):
                break
            counts = self._starts[active + 1] - self._starts[active]
            ends = np.cumsum(counts)
            edges = np.arange(ends[-1]) + np.repeat(self._starts[active] - ends + counts, counts)
            columns, offers = self._columns[edges], gain[edges] + np.repeat(prices[partner[active]], counts)
            higher = offers > prices[columns] + tolerance
            np.maximum.at(prices, columns[higher], offers[higher])
            risen = owner[np.unique(columns[higher])]
            active = risen[risen >= 0]
        return prices

    def bound(self, prices: np.ndarray, n_picks: int) -> tuple[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The bound that prices give over all pairs; and the (rows, columns, cosines) that exceed what candidates alone give."""
        net_worth = np.maximum.reduceat(self._cosines - prices[self._columns], self._starts[:-1])
        loose = np.flatnonzero(self._limits - prices.min() > net_worth)
        n = len(self._b)
        k = min(n_picks // max(len(loose), 1), n)
        # Rows with equal cosines must not all pick the same columns, so each row ranks them with noise of its own.
        noise = 1e-6 * torch.rand(n + len(loose), generator=torch.Generator().manual_seed(0)).to(self._a)
        v, worth = torch.from_numpy(prices).to(self._a), net_worth.copy()
        violating_rows, violating_columns, violating_cosines = (
            [np.array([], np.int64)],
            [np.array([], np.int64)],
            [np.array([])],
        )
        for i in range(0, len(loose), _step(n)):
            stop_if_abandoned()
            rows = loose[i : i + _step(n)]
            net = _counted(self._a[rows] @ self._b.T, self._absolute).sub_(v)
            worth[rows] = np.maximum(net_worth[rows], net.amax(1).double().cpu().numpy())
            picks = (net + noise.unfold(0, n, 1)[i : i + len(rows)]).topk(k, dim=1).indices
            picked = net.gather(1, picks).double().cpu().numpy().ravel()
            rows, columns = np.repeat(rows, k), picks.cpu().numpy().ravel()
            violated = picked > net_worth[rows]
            violating_rows.append(rows[violated])
            violating_columns.append(columns[violated])
            violating_cosines.append((picked + prices[columns])[violated])
        self._worth = worth
        violators = (
            np.concatenate(violating_rows),
            np.concatenate(violating_columns),
            np.concatenate(violating_cosines),
        )
        return float(worth.sum() + prices.sum()), violators


def _candidates(a: Tensor, b: Tensor, k: int, absolute: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every row's pairs above a threshold of its own: rows, columns and cosines of the pairs, and the thresholds.

    The threshold is the (k + 1)th largest of the maxima of groups of columns, so that at least k pairs exceed it, ties aside.
    There are at least 8 k groups, so few of the largest cosines share a group. Pairs equal to the threshold are left out, so
    that rows with many equal cosines do not add all of them.
    """
    n_columns, step = len(b), _step(len(b))
    width = 1 << (max(n_columns // (8 * k), 1).bit_length() - 1)  # reductions over other widths are slow
    n_groups = n_columns // width + 1
    k = min(k, n_groups - 1)
    block = a.new_full((min(step, len(a)), n_groups * width), -torch.inf)
    parts = []
    for i in range(0, len(a), step):
        stop_if_abandoned()
        cosines = block[: len(a) - i]
        _counted(torch.mm(a[i : i + step], b.T, out=cosines[:, :n_columns]), absolute)
        maxima, groups = torch.unflatten(cosines, 1, (n_groups, width)).amax(2).topk(k + 1, dim=1)
        limits, groups = maxima[:, k:], groups[:, :k].sort(1).values
        at = torch.arange(len(cosines), device=a.device)[:, None] * n_groups + groups
        inside = cosines.view(-1, width).index_select(0, at.flatten()).view(-1, k, width)
        rows, group, place = (inside > limits[:, None]).nonzero().unbind(1)
        columns = groups[rows, group] * width + place
        parts.append((rows + i, columns, inside[rows, group, place], limits[:, 0]))
    rows, columns, cosines, limits = (torch.cat(part) for part in zip(*parts, strict=True))
    return rows, columns, cosines, limits


def _neglected(
    a: Tensor, b: Tensor, columns: Tensor, k: int, absolute: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best k // 2 pairs of every column that fewer rows chose than a quarter of the average."""
    chosen = torch.bincount(columns, minlength=len(b))
    few = (chosen < k * len(a) // (4 * len(b))).nonzero()[:, 0]
    k = min(k // 2, len(a))
    best = [_counted(b[part] @ a.T, absolute).topk(k, dim=1) for part in torch.split(few, _step(len(a)))]
    cosines, rows = (torch.cat(part).flatten() for part in zip(*best, strict=True))
    return rows.cpu().numpy(), few.repeat_interleave(k).cpu().numpy(), cosines.double().cpu().numpy()


def _counted(cosines: Tensor, absolute: bool) -> Tensor:
    """The cosines, or their absolute values; in place."""
    return cosines.abs_() if absolute else cosines


def _shuffled(n: int) -> Tensor:
    """A random order of n rows, always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _step(n_columns: int) -> int:
    """Rows of a block of cosines with so many columns."""
    return max(BLOCK_ENTRIES // n_columns, BLOCK_ROWS)
