"""Time of finding the neighbours of one feature among all members, and of 32 at once, against one read of the rows."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.live.neighbours import Resident, neighbours

D_SAE, D_IN, K, TOGETHER = 16_384, 768, 5, 32
ENOUGH_BYTES = 12 * 2**30  # free memory for the rows of 96 members
PLAIN = "torch.mv and torch.topk, member by member"


def lines() -> Iterator[BenchLine]:
    """What the engine does for a page, in this process, on the processor and on the device where there is one."""
    yield from _lines("cpu", 96 if _free_bytes() >= ENOUGH_BYTES else 24, f"{torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        yield from _lines("cuda", 96, torch.cuda.get_device_name())


def _lines(device: str, n_members: int, where: str) -> Iterator[BenchLine]:
    rows = _rows(n_members, device)
    resident = Resident(tuple(range(n_members)), rows, np.array([], np.int64))
    ask = LiveQuery("neighbours", seeds=resident.seeds, k=K)
    queries = [LiveQuery(**vars(ask) | {"seed": i % n_members, "feature": 17 * i}) for i in range(TOGETHER)]
    taken = interleaved(
        {
            "one": partial(neighbours, resident, queries[:1]),
            "together": partial(neighbours, resident, queries),
            "read": lambda: rows.sum().item(),
            PLAIN: partial(_plain, rows, n_members),
        }
    )
    size = f"{K} nearest in each of {n_members} members of {D_SAE:,} rows of {D_IN}, float32, {where}"
    yield BenchLine(
        work=f"neighbours of one feature, the {size}",
        ours_s=taken["one"],
        limit=f"one read of the same {rows.nbytes / 1e9:.1f} GB: torch.sum of them, {rows.nbytes / taken['read'] / 1e9:.1f} GB/s",
        limit_s=taken["read"],
        peers_s={PLAIN: taken[PLAIN]},
        goal=">= 60 % of measured bandwidth",
        remark=f"{taken['read'] / taken['one']:.0%} of it"
        + ("" if n_members == 96 else "; 24 members because less than 12 GiB are free"),
    )
    rate = 2 * TOGETHER * rows.numel() / taken["together"] / 1e9
    yield BenchLine(
        work=f"neighbours of {TOGETHER} features at once, the {size}",
        ours_s=taken["together"],
        limit="neighbours of one feature",
        limit_s=taken["one"],
        peers_s={f"{PLAIN}, {TOGETHER} times": TOGETHER * taken[PLAIN]},
        goal=f"less than 3 x one ({TOGETHER} one after the other: {TOGETHER} x)",
        remark=f"{rate:.0f} GFLOP/s: one is bound by memory, {TOGETHER} at once by arithmetic",
    )


def _rows(n_members: int, device: str) -> Tensor:
    rows = torch.empty(n_members * D_SAE, D_IN, device=device)
    for member in rows.split(D_SAE):
        member.uniform_(-1, 1).div_(member.norm(dim=1, keepdim=True))
    return rows


def _plain(rows: Tensor, n_members: int) -> list:
    anchor = rows[17]
    nearest = [torch.mv(member, anchor).topk(K) for member in rows.split(len(rows) // n_members)]
    return [best.indices.tolist() for best in nearest]


def _free_bytes() -> int:
    """Memory that is free or can be freed."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
