"""Time of captured energy over all ordered pairs of members, against the bare SVDs and products that define it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.geometry.subspaces import basis, log_ranks, overlaps, transfer

BARE_PAIRS = 64  # ordered pairs that are multiplied at most; the others take as long
BARE_SVDS = 12


def lines(
    *,
    full: bool = False,
    n_members: int | None = None,
    n_rows: int | None = None,
    d: int = 768,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[BenchLine]:
    """One split of `transfer` and `overlaps`; 24 x 1,000 rows by default, 96 x 4,000 in full, on the best device."""
    n_members, n_rows = n_members or (96 if full else 24), n_rows or (4000 if full else 1000)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    size = f"{n_members} members x {n_rows:,} unstable rows x {d:,} at {len(ranks := log_ranks(d))} ranks, {where}"
    sets = _sets(n_members, n_rows, d, device)
    half = [rows[: n_rows // 2] for rows in sets]
    bases = [basis(rows, ranks[-1]) for rows in half]
    pairs = [(s, t) for s in range(n_members) for t in range(n_members) if s != t]
    some = pairs[:: max(len(pairs) // BARE_PAIRS, 1)][:BARE_PAIRS]
    report(1, 2)
    runs = {
        "ours": lambda: transfer(sets, ranks, n_splits=1, device=device),
        "SVDs": lambda: [torch.linalg.svd(rows, full_matrices=False) for rows in half[:BARE_SVDS]],
        "products": lambda: [_captured(sets[t], bases[s].vectors, ranks) for s, t in some],
        "overlaps": lambda: overlaps(bases, ranks),
        "angles": lambda: [bases[s].vectors.T @ bases[t].vectors for s, t in some],
    }
    taken = interleaved({name: partial(_finished, run) for name, run in runs.items()}, rounds=1 if full else 3)
    report(2, 2)
    svds = taken["SVDs"] * n_members / min(BARE_SVDS, n_members)
    products = taken["products"] * len(pairs) / len(some)
    yield BenchLine(
        work=f"captured energy within and across, one split, all {len(pairs):,} ordered pairs of {size}",
        ours_s=taken["ours"],
        limit="torch.linalg.svd of every half in float32, and D(t) V(s) of every ordered pair",
        limit_s=svds + products,
        peers_s={"the SVDs alone": svds, "the products alone": products},
        goal="all ordered pairs of 96 members x 4,000 unstable rows x 768 at 12 ranks",
        remark=f"limit from {min(BARE_SVDS, n_members)} SVDs and {len(some)} products, for all at their rate",
    )
    yield BenchLine(
        work=f"overlap of all {len(pairs) // 2:,} pairs of spans of {size}",
        ours_s=taken["overlaps"],
        limit="V(s)^T V(t) of every pair at the largest rank",
        limit_s=taken["angles"] * len(pairs) / 2 / len(some),
        remark=f"spans are given; limit from {len(some)} products, for all at their rate",
    )


def _sets(n_members: int, n_rows: int, d: int, device: torch.device) -> list[Tensor]:
    """Random unit rows of one anisotropic distribution."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1, d)
    rows = (torch.randn(n_rows, d, generator=generator) * scale for _ in range(n_members))
    return [torch.nn.functional.normalize(some, dim=1).to(device) for some in rows]


def _captured(rows: Tensor, vectors: Tensor, ranks: list[int]) -> Tensor:
    """Energy at every rank by definition; ranks beyond the vectors repeat the last."""
    captured = (rows @ vectors).square().mean(0).cumsum(0)
    return captured[torch.tensor([min(rank, len(captured)) - 1 for rank in ranks])].cpu()


def _finished(run: Callable[[], object]) -> None:
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
