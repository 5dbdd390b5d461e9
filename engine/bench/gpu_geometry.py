"""Spans of sets of rows on a device, and what pages ask of them, against the SVDs, eigendecompositions and products in them."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.bench.gpu_sizes import GpuSizes
from seedscope.engine.bench.gpu_work import GpuSlot, Limit, Result, Work, WrongResultError, double, within
from seedscope.engine.geometry.projection import SPLIT_WORK, energy_by_rank, fit_spans, project
from seedscope.engine.geometry.subspaces import N_SPLITS, basis, log_ranks, overlaps, transfer

ENERGY = 1e-5  # allowed error of a captured energy; engine.geometry.subspaces states 2e-7
CHECKED_ROWS = 16  # features whose curves are computed again one by one


def geometry(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work]:
    """Captured energy and overlap of all pairs of members."""
    device = slot.device
    sets = [member[: sizes.span_rows].to(device) for member in _rows(sizes.span_members, sizes.span_rows, sizes.d_in)]
    ranks, n = log_ranks(sizes.d_in), len(sets)
    half = [rows[: len(rows) // 2] for rows in sets]
    bases = [basis(rows, ranks[-1]) for rows in half]
    size = f"{n} members x {sizes.span_rows:,} rows of {sizes.d_in} at {len(ranks)} ranks"
    svd = "torch.linalg.svd of every half in float32"
    yield Work(
        name=f"captured energy, one split, all {n * (n - 1):,} ordered pairs of {size}",
        ours=lambda: _transferred(sets, ranks, device),
        check=partial(_check_transfer, sets, ranks),
        limit=svd,
        limits={svd: Limit(lambda: torch.linalg.svd(half[0], full_matrices=False), n)},
        beside={"D(t) V(s) of every ordered pair": Limit(lambda: sets[0] @ bases[0].vectors, n * (n - 1))},
    )
    product = "V(s)^T V(t) of every pair at the largest rank"
    yield Work(
        name=f"overlap of all {n * (n - 1) // 2:,} pairs of spans of {size}",
        ours=lambda: {"overlap": overlaps(bases, ranks)},
        check=partial(_check_overlaps, half, ranks),
        limit=product,
        limits={product: Limit(lambda: bases[0].vectors.T @ bases[1].vectors, n * (n - 1) / 2)},
    )


def projection(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work]:
    """What the page of a set asks for, and what that of one feature does."""
    device = slot.device
    n, d = sizes.projected_members, sizes.d_in
    rows = _rows(n, sizes.projected_features, d).to(device)
    in_set = np.zeros(rows.shape[:2], bool)
    in_set[:, ::8] = True
    everything, stable = np.ones_like(in_set), np.zeros_like(in_set)
    stable[:, 1::8] = True
    size = f"{in_set[0].sum():,} of {n} x {sizes.projected_features:,} rows of {d}"
    n_splits = int(np.clip(SPLIT_WORK // (d**2 * (n * d + int(in_set.sum()))), 1, N_SPLITS))  # as `project` takes them
    moment = torch.eye(d, dtype=torch.float64, device=device) + rows[0].double().T @ rows[0].double()
    eigen = "the eigendecompositions alone, 8 a member and split"
    yield Work(
        name=f"projection of a set, {size}",
        ours=lambda: _projected(rows, in_set, everything, stable),
        check=partial(_check_projection, rows, in_set),
        limit=eigen,
        limits={eigen: Limit(lambda: torch.linalg.eigh(moment), 8 * n * n_splits)},
        remark=f"the limit counts {n_splits} splits",
    )
    spans = fit_spans(rows, in_set, tuple(range(n)))
    ranks, vectors = log_ranks(d), rows[0, :1_000]
    product = "the products of the features with the directions"
    yield Work(
        name=f"energy of {len(vectors):,} features in {n} spans at {len(ranks)} ranks",
        ours=lambda: {"energy": energy_by_rank(vectors, spans.bases, ranks)},
        check=partial(_check_energy, rows, in_set, ranks),
        limit=product,
        limits={product: Limit(lambda: vectors @ spans.bases[0].vectors, n)},
    )


def _rows(n_members: int, n_rows: int, d: int) -> Tensor:
    """Random unit rows of one anisotropic distribution, (members, rows, d) on the CPU."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n_members, n_rows, d, generator=generator) * torch.logspace(0, -1, d)
    return torch.nn.functional.normalize(rows, dim=2)


def right_vectors(rows: Tensor | np.ndarray) -> np.ndarray:
    """Directions by NumPy's SVD in float64, (d, rank), strongest first."""
    return np.linalg.svd(double(rows), full_matrices=False)[2].T


def _captured(rows: np.ndarray, vectors: np.ndarray, ranks: list[int]) -> np.ndarray:
    """(rows, ranks) squared cosines of rows with spans; NaN beyond the directions that there are."""
    energy = np.square(rows @ vectors).cumsum(1)
    curve = np.full((len(rows), len(ranks)), np.nan)
    for at, rank in enumerate(ranks):
        if rank <= vectors.shape[1]:
            curve[:, at] = energy[:, rank - 1]
    return curve


def _transferred(sets: list[Tensor], ranks: list[int], device: torch.device) -> Result:
    found = transfer(sets, ranks, n_splits=1, device=device)
    return {"within": found.within.energy, "cross": found.cross.energy}


def _check_transfer(sets: list[Tensor], ranks: list[int], found: Result) -> float:
    """The halves that `transfer` draws with its seed, two of them fitted again and measured on three members."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(rows), generator=generator).numpy() for rows in sets]
    worst = 0.0
    for member in sorted({0, len(sets) - 1}):
        rows, order = double(sets[member]), orders[member]
        vectors = right_vectors(rows[order[: len(rows) // 2]])
        own = _captured(rows[order[len(rows) // 2 :]], vectors, ranks).mean(0)
        worst = max(worst, within("within", np.asarray(found["within"])[member, 0], own, ENERGY))
        for other in sorted({0, len(sets) // 2, len(sets) - 1} - {member}):
            across = _captured(double(sets[other]), vectors, ranks).mean(0)
            worst = max(worst, within("cross", np.asarray(found["cross"])[member, other], across, ENERGY))
    return worst


def _check_overlaps(halves: list[Tensor], ranks: list[int], found: Result) -> float:
    worst = 0.0
    for s, t in sorted({(0, 1), (0, len(halves) - 1), (len(halves) - 1, len(halves) - 1)}):
        one, other = (right_vectors(halves[at]) for at in (s, t))
        least = min(one.shape[1], other.shape[1])
        right = [
            np.square(one[:, :rank].T @ other[:, :rank]).sum() / rank if rank <= least else np.nan for rank in ranks
        ]
        for i, j in ((s, t), (t, s)):
            worst = max(worst, within("overlap", np.asarray(found["overlap"])[i, j], np.array(right), ENERGY))
    return worst


def _projected(rows: Tensor, in_set: np.ndarray, living: np.ndarray, stable: np.ndarray) -> Result:
    made = project(rows, in_set, living=living, stable=stable)
    return {
        "rank": np.array(made.rank), "n_splits": np.array(made.n_splits), "effective_rank": made.effective_rank,
        "overlap": made.overlap[0], "own": np.stack(made.own), "others": np.stack(made.others),
    }  # fmt: skip


def _check_projection(rows: Tensor, in_set: np.ndarray, found: Result) -> float:
    """Effective ranks and overlaps of two members; `own` and `others` of one with the halves that its seed draws."""
    sets = [double(rows[member])[in_set[member]] for member in range(len(rows))]
    rank, n_splits = int(found["rank"]), int(found["n_splits"])
    d = rows.shape[2]
    if not (1 <= rank <= d and 1 <= n_splits <= 64):
        raise WrongResultError(f"rank is {rank} and n_splits {n_splits}, expected 1 to {d} and 1 to 64")
    worst = _check_mean_overlap(sets, rank, found["overlap"])
    for member in (0, len(sets) - 1):
        values = np.linalg.svd(sets[member], compute_uv=False)
        share = values[values > 0] / values.sum()
        right = np.exp(-(share * np.log(share)).sum())
        worst = max(worst, within("effective_rank", np.asarray(found["effective_rank"])[member], right, 1e-4 * right))
    generator = torch.Generator().manual_seed(0)
    own, others = np.zeros(len(sets[0])), np.zeros(len(sets[0]))
    for _ in range(n_splits):
        halves = [
            [half.numpy() for half in torch.randperm(len(each), generator=generator).tensor_split(2)] for each in sets
        ]
        fitted = [
            [right_vectors(each[half])[:, :rank] for half in both] for each, both in zip(sets, halves, strict=True)
        ]
        for half, without in zip(halves[0], reversed(fitted[0]), strict=True):
            own[half] += np.square(sets[0][half] @ without).sum(1) / n_splits
        spans = [vectors for both in fitted[1:] for vectors in both]
        others += sum(np.square(sets[0] @ vectors).sum(1) for vectors in spans) / len(spans) / n_splits
    return max(
        worst,
        within("own", np.asarray(found["own"])[0], own, ENERGY),
        within("others", np.asarray(found["others"])[0], others, ENERGY),
    )


def _check_mean_overlap(sets: list[np.ndarray], rank: int, found: Tensor | np.ndarray) -> float:
    ranks = np.array(sorted({*log_ranks(sets[0].shape[1]), rank}))
    bases = [right_vectors(each) for each in sets]
    curves = []
    for at, one in enumerate(bases):
        for other in bases[:at]:
            inner = np.square(one.T @ other).cumsum(0).cumsum(1)
            reached = ranks <= min(inner.shape)
            last = np.minimum(ranks, min(inner.shape)) - 1
            curves.append(np.where(reached, inner[last, last] / ranks, np.nan))
    some = np.isfinite(curves).any(0)
    right = np.full(len(ranks), np.nan)
    right[some] = np.nanmean(np.array(curves)[:, some], 0)
    return within("overlap", found, right, ENERGY)


def _check_energy(rows: Tensor, in_set: np.ndarray, ranks: list[int], found: Result) -> float:
    vectors = double(rows[0, :CHECKED_ROWS])
    return max(
        within(
            "energy", np.asarray(found["energy"])[member, :CHECKED_ROWS],
            _captured(vectors, right_vectors(rows[member][torch.from_numpy(in_set[member]).to(rows.device)]), ranks), ENERGY,
        )
        for member in sorted({0, len(rows) - 1})
    )  # fmt: skip
