"""Time of co-firing and substitution over all pairs of members, against the bare encoder product and the activity pass.

Codes of co-firing are drawn, not encoded: what is timed is everything that follows the encoder, on as many firings as the size has.
The encoder's product, the activity pass and the pass of substitution are timed on some batches, for all tokens at their rate.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from seedscope.engine.bench.dashboard import process_memory
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.contract.tables.function import N_NEAREST
from seedscope.engine.features.ablation import AblationPass
from seedscope.engine.features.activity import ActivityPass
from seedscope.engine.features.cofiring import correlation, jaccard, moments, pair_sums
from seedscope.engine.features.firings import FiringSpool
from seedscope.engine.saes.sae import SAE, Codes

BATCH = 512  # tokens
TIMED_BATCHES = 4  # of what is timed at its rate
N_PARTNERS = N_NEAREST + 1  # the nearest rows, argmax and runner-up among them, and one control


class FunctionSize(NamedTuple):
    """What is measured."""

    members: int
    d_sae: int
    d_in: int
    k: int
    n_tokens: int


SMALL = FunctionSize(members=4, d_sae=4_096, d_in=256, k=32, n_tokens=2**17)
FULL = FunctionSize(members=8, d_sae=16_384, d_in=768, k=64, n_tokens=10**6)


def lines(
    *,
    full: bool = False,
    size: FunctionSize | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[BenchLine]:
    """Co-firing of the stored partners, and substitution of all argmax partners."""
    size = size or (FULL if full else SMALL)
    n, d_sae, d_in, k, n_tokens = size
    what = f"{n} x {d_sae:,}, d_in {d_in}, k {k}, {n_tokens:,} tokens"
    torch.manual_seed(0)
    sae = _sae(size)
    report(1, 5)
    with _watched() as watched:
        spooled, firings = _spooled(sae, size)
        began = time.perf_counter()
        own = [moments(firings, member) for member in range(n)]
        for done, (a, b) in enumerate(combinations(range(n), 2)):
            first, second = _pairs(size, done, N_PARTNERS)
            sums = pair_sums(firings, a, b, first, second)
            correlation(sums, own[a], own[b], first, second, n_tokens)
            jaccard(sums.together, own[a].n_active[first], own[b].n_active[second])
        paired = time.perf_counter() - began
    report(2, 5)
    began = time.perf_counter()
    for done, (a, b) in enumerate(combinations(range(n), 2)):
        pair_sums(firings, a, b, *_pairs(size, done, 1))
    argmax = time.perf_counter() - began
    report(3, 5)
    rows = [torch.randn(BATCH, d_in) for _ in range(TIMED_BATCHES)]
    flat = sae.W_enc.detach().transpose(1, 2).reshape(-1, d_in)
    with torch.no_grad():
        codes = [sae.encode(part).cpu() for part in rows]
        taken = interleaved(
            {
                "product": lambda: [part @ flat.T for part in rows],
                "encode": lambda: [sae.encode(part) for part in rows],
                "activity": lambda: _activity(sae, codes),
                "across": lambda: _across(sae, rows, codes),
            },
            rounds=3,
        )
    report(5, 5)
    scale = n_tokens / (BATCH * TIMED_BATCHES)
    product, activity = taken["product"] * scale, (taken["encode"] + taken["activity"]) * scale
    yield BenchLine(
        work=f"co-firing of {N_PARTNERS} partners per feature and comparison, both ways, {what}",
        ours_s=spooled + paired,
        limit="the encoder's bare product of all members",
        limit_s=product,
        goal="at most 2 x the encoder product's time; peak under 2 GB at 8 x 16,384, k 64, 1 M tokens",
        remark=f"sorting the firings {spooled:.1f} s, the pairs {paired:.1f} s; largest memory {watched.peak / 1e6:.0f} MB "
        f"({watched.resident / 1e6:.0f} MB with mapped files), of that the SAEs {_bytes(sae) / 1e6:.0f} MB; encoding comes on top "
        "where activity was measured before",
        numbers={"peak_bytes": float(watched.peak), "pairs_s": paired, "spool_s": spooled},
    )
    yield BenchLine(
        work=f"substitution of all argmax partners, both ways, {what}",
        ours_s=activity + taken["across"] * scale + argmax,
        limit="the activity pass: encoding and collecting firings",
        limit_s=activity,
        goal="at most 3 x the activity pass",
        remark="the activity pass, products of active rows with every member's residual, and the sums of pairs",
    )


def _sae(size: FunctionSize) -> SAE:
    decoder = torch.nn.functional.normalize(torch.randn(size.members, size.d_sae, size.d_in), dim=-1)
    b_enc, b_dec = torch.zeros(decoder.shape[:2]), torch.zeros(size.members, size.d_in)
    made = SAE(decoder.transpose(1, 2), b_enc, decoder, b_dec, seeds=tuple(range(size.members)), k=size.k)
    return made.requires_grad_(False)


def _spooled(sae: SAE, size: FunctionSize) -> tuple[float, FiringSpool]:
    """Seconds of collecting and merging the firings of drawn codes, and these."""
    firings, seconds = FiringSpool(sae), 0.0
    rng = np.random.default_rng(0)
    stratum = size.d_sae // size.k  # one feature of each stratum fires, low ones more often
    for first in range(0, size.n_tokens, BATCH):
        n = min(BATCH, size.n_tokens - first)
        drawn = (rng.random((n, size.members, size.k)) ** 1.5 * stratum).astype(np.int64)
        values = torch.from_numpy(rng.random((n, size.members, size.k), np.float32) + 0.1)
        codes = Codes(values, torch.from_numpy(drawn + np.arange(size.k) * stratum))
        began = time.perf_counter()
        firings.add(codes, np.arange(first, first + n))
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    for member in range(size.members):
        firings.merged(member)
    return seconds + time.perf_counter() - began, firings


def _pairs(size: FunctionSize, seed: int, n_partners: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of features, as many as both directions of a pair of members name at most."""
    rng = np.random.default_rng(seed)
    first = np.repeat(np.arange(size.d_sae), 2 * n_partners)
    return first, rng.integers(0, size.d_sae, len(first))


def _activity(sae: SAE, codes: list[Codes]) -> None:
    collected = ActivityPass(sae)
    for at, part in enumerate(codes):
        collected.add(part, np.arange(at * BATCH, (at + 1) * BATCH))


def _across(sae: SAE, rows: list[torch.Tensor], codes: list[Codes]) -> None:
    gains = AblationPass(sae, pair_numbers=0, across=True)
    for part, of_part in zip(rows, codes, strict=True):
        gains.add(part, of_part)


def _bytes(sae: SAE) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in sae.parameters())


class _Watched:
    """The largest memory of this process while it is watched, in bytes; 0 without /proc."""

    peak = 0  # that is not of mapped files, whose pages the system takes back when it wants
    resident = 0  # with these


@contextmanager
def _watched() -> Iterator[_Watched]:
    watched, done = _Watched(), threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            now = process_memory(os.getpid())
            watched.peak = max(watched.peak, sum(each.anonymous for each in now))
            watched.resident = max(watched.resident, sum(each.resident for each in now))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield watched
    finally:
        done.set()
        thread.join()
