"""Find the small spans that an ensemble's features without counterparts share, and test each one on every seed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seedscope.engine.contract.tables.shared_spans import SPAN_FAILURES
from seedscope.engine.geometry.expansions import FEWEST_SEEDS, K_MAX, SpanPool, mutual_links, pool_of
from seedscope.engine.geometry.random_sets import LivingRows
from seedscope.engine.geometry.row_sets import Device
from seedscope.engine.geometry.shared_spans import (
    FEWEST_MEMBERS,
    FoundAgain,
    FoundSpan,
    captured_by,
    directions,
    discover,
    found_again,
)
from seedscope.engine.geometry.side_by_side import side_by_side
from seedscope.engine.geometry.span_nulls import N_DRAWS, Tested, judge_spans, over_seeds
from seedscope.engine.geometry.subspaces import Report

LEVEL = 0.01  # corrected p of a shared span: at most
ID_LENGTH = 12


class Unsearchable(ValueError):
    """Nothing can be searched: too few seeds, or too few features without counterparts."""


class LeftOut(NamedTuple):
    """The discovery without one seed, tested on that seed."""

    spans: list[FoundSpan]
    tested: Tested
    again: FoundAgain  # of the spans found with all seeds


class Candidate(NamedTuple):
    """A span found with all seeds, and what its tests say."""

    id: str
    span: FoundSpan
    p: dict[str, float]  # {null: corrected for the number of candidates, over seeds}; 1 where it is not found again
    kept: bool
    failed: str | None  # of SPAN_FAILURES
    energy: np.ndarray  # (pool,) of the members: squared cosine with the span of the other seeds' members; 0 elsewhere


class FoundSpans(NamedTuple):
    """Everything that the search of an ensemble found."""

    pool: SpanPool
    n_links: int
    candidates: list[Candidate]  # kept ones first
    left_out: list[LeftOut]  # per seed
    order: list[int]  # of every candidate, its index in LeftOut.again
    n_draws: int

    @property
    def kept(self) -> list[Candidate]:
        """Those that beat every null."""
        return [each for each in self.candidates if each.kept]

    def at(self, candidate: int, seed: int) -> tuple[int, float]:
        """(index in the list found without a seed or -1, Jaccard index) of a candidate."""
        again = self.left_out[seed].again
        return int(again.place[self.order[candidate]]), float(again.overlap[self.order[candidate]])


def find_spans(
    decoders: Sequence[np.ndarray],
    unstable: np.ndarray,
    living: np.ndarray,
    density: np.ndarray | None = None,
    *,
    digests: Sequence[str] = (),
    k_max: int = K_MAX,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    device: Device = "cpu",
    scratch: Path | None = None,
    report: Report = lambda done, total: None,
) -> FoundSpans:
    """Search the `unstable` features (seeds, d_sae) of all seeds; `living` are those that expansions and nulls may use.

    `density` (seeds, d_sae) is None where it is not known; that null is then left out. `digests` of the SAEs make ids; without
    them ids are of the members alone. The result depends on nothing but the arguments. `decoders` are read one at a time, thrice;
    where rows are many they lie in files of the folder `scratch`. Raises Unsearchable.
    """
    n_seeds = len(decoders)
    if n_seeds < FEWEST_SEEDS:
        raise Unsearchable(
            f"found {n_seeds} seeds, expected at least {FEWEST_SEEDS}: a span is tested on a seed that was left out"
        )
    n_filled = int((unstable & living).any(1).sum())
    if n_filled < FEWEST_SEEDS or int((unstable & living).sum()) < FEWEST_MEMBERS:
        raise Unsearchable(
            f"{n_filled} of {n_seeds} seeds have living features without counterparts, expected at least {FEWEST_SEEDS}"
        )
    pool = pool_of(decoders, unstable, living, scratch)
    total = 2 * n_seeds + 1
    links = mutual_links(pool, decoders, living, k_max, device=device, report=lambda done, _: report(done, total))
    living_rows = LivingRows(decoders, living, density, scratch)

    def search(without: int) -> tuple[list[FoundSpan], Tested | None]:
        some = discover(pool, links, without if without >= 0 else None)
        if without < 0:
            return some, None
        return some, judge_spans(pool, some, without, living_rows, n_draws=n_draws, seed=seed)

    spans: list[FoundSpan] = []
    left_out: list[LeftOut] = []
    for without, (some, tested) in enumerate(side_by_side(search, range(-1, n_seeds)), -1):  # -1: with all seeds
        if tested is None:
            spans = some
        else:
            left_out.append(LeftOut(some, tested, found_again(spans, some, pool.seed != without)))
        report(n_seeds + without + 2, total)
    candidates = [_candidate(pool, span, at, left_out, digests) for at, span in enumerate(spans)]
    order = sorted(
        range(len(spans)), key=lambda at: (not candidates[at].kept, -candidates[at].energy.sum(), candidates[at].id)
    )
    return FoundSpans(pool, links.nnz // 2, [candidates[at] for at in order], left_out, order, n_draws)


def _candidate(
    pool: SpanPool, span: FoundSpan, at: int, left_out: Sequence[LeftOut], digests: Sequence[str]
) -> Candidate:
    # Seeds without unstable features have nothing to test.
    tested = [each for seed, each in enumerate(left_out) if len(pool.of(seed))]
    indices = [int(each.again.place[at]) for each in tested]
    names = list(tested[0].tested.p)
    p = {
        name: over_seeds(
            np.array([each.tested.p[name][i] if i >= 0 else 1.0 for each, i in zip(tested, indices, strict=True)])
        )
        for name in names
    }
    failed = None
    if sum(i >= 0 for i in indices) * 2 < len(indices):
        failed = SPAN_FAILURES[-1]
    elif max(p.values()) > LEVEL:
        failed = max(p, key=lambda name: p[name])
    return Candidate(_identity(pool, span, digests), span, p, failed is None, failed, _energies(pool, span))


def _identity(pool: SpanPool, span: FoundSpan, digests: Sequence[str]) -> str:
    """Of the members and the SAEs that they are of."""
    members = (
        f"{digests[s] if len(digests) else s}:{f}"
        for s, f in zip(pool.seed[span.members].tolist(), pool.feature[span.members].tolist(), strict=True)
    )
    return hashlib.sha256(" ".join(sorted(members)).encode()).hexdigest()[:ID_LENGTH]


def _energies(pool: SpanPool, span: FoundSpan) -> np.ndarray:
    energy = np.zeros(len(pool.rows))
    for seed in np.unique(pool.seed[span.members]).tolist():
        mine = pool.seed[span.members] == seed
        others = directions(pool.rows[span.members[~mine]], span.rank)
        energy[span.members[mine]] = ((pool.rows[span.members[mine]] @ others) ** 2).sum(1).clip(0, 1)
    return energy


def pair_energy(found: FoundSpans, candidate: int, seed: int, other: int) -> float | None:
    """Energy that the span of `seed`'s members, as found without `other`, captures of `other`; None where there is none."""
    index, _ = found.at(candidate, other)
    pool, rows = found.pool, found.pool.rows[found.pool.of(other)]
    if index < 0 or not len(rows):
        return None
    span = found.left_out[other].spans[index]
    mine = span.members[pool.seed[span.members] == seed]
    if not len(mine):
        return None
    return float(captured_by(rows, [directions(pool.rows[mine], span.rank)], [span.n_measured])[0])
