"""What was found of shared spans as rows of the contract, as arrays of a part, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.tables.shared_spans import (
    NULL_SETS,
    SORT_KEYS,
    SPAN_FAILURES,
    SharedSpan,
    SharedSpanDirection,
    SharedSpanFeature,
    SharedSpanPair,
    SharedSpanSeed,
    SharedSpanSummary,
)
from seedscope.engine.geometry.expansions import K_MAX
from seedscope.engine.geometry.find_spans import LEVEL, Candidate, FoundSpans, pair_energy
from seedscope.engine.geometry.shared_spans import directions
from seedscope.engine.store.database import Writer

ANALYSIS = "shared_spans"
N_BOOTSTRAP = 1000
Rows = dict[type, list[Any]]


def rows_of(found: FoundSpans, ensemble: str, seeds: Sequence[int], weights: np.ndarray | None) -> Rows:
    """All tables but those on tokens; `weights` (pool,) are the features' activation energies, None: not known."""
    rows: Rows = {table: [] for table in SORT_KEYS}
    shares = _by_seed(found, weights)
    for number, candidate in enumerate(found.candidates):
        of_seeds = [_seed(found, number, candidate, ensemble, seeds, index) for index in range(len(seeds))]
        rows[SharedSpanSeed] += of_seeds
        rows[SharedSpan].append(_span(found, number, candidate, ensemble, of_seeds, shares))
        rows[SharedSpanPair] += _pairs(found, number, candidate, ensemble, seeds)
        rows[SharedSpanFeature] += _features(found, candidate, ensemble, seeds, None if weights is None else shares)
        if candidate.kept:
            rows[SharedSpanDirection] += _directions(found, candidate, ensemble, len(seeds))
    rows[SharedSpanSummary].append(_summary(found, ensemble, rows[SharedSpan], shares, weights is not None))
    return rows


def nothing_searched(ensemble: str, remark: str) -> Rows:
    """The one row of an ensemble in which nothing could be searched."""
    return {SharedSpanSummary: [_empty(ensemble, remark)]}


def principal(found: FoundSpans, candidate: Candidate) -> np.ndarray:
    """(d, rank) directions of a span, each with the sign that most of its members have."""
    span = candidate.span
    rows = found.pool.rows[span.members]
    positive = (rows @ span.directions > 0).mean(0) >= 0.5
    return span.directions * np.where(positive, 1, -1).astype(np.float32)


def _by_seed(found: FoundSpans, weights: np.ndarray | None) -> np.ndarray:
    """(pool,) share of every feature in its seed's energy."""
    weights = np.ones(len(found.pool.rows)) if weights is None else np.asarray(weights, float)
    total = np.bincount(found.pool.seed, weights, minlength=found.pool.n_seeds)[found.pool.seed]
    return np.divide(weights, total, out=np.zeros(len(weights)), where=total > 0)


def _seed(
    found: FoundSpans, number: int, candidate: Candidate, ensemble: str, seeds: Sequence[int], index: int
) -> SharedSpanSeed:
    pool, members = found.pool, candidate.span.members
    mine = members[pool.seed[members] == index]
    place, overlap = found.at(number, index)
    left_out = found.left_out[index]
    nulls: dict[str, float | None] = {f"{name}_{of}": None for name in NULL_SETS for of in ("mean", "high")}
    energy, p, n_measured, rank = None, None, None, None
    n_here = len(pool.of(index))
    if place >= 0 and n_here:
        tested, span = left_out.tested, left_out.spans[place]
        energy, p, rank = float(tested.energy[place]), float(tested.worst[place]), span.rank
        n_measured = min(span.n_measured, n_here)
        for name in tested.p:
            nulls[f"{name}_mean"] = float(tested.means[name][place].clip(0, 1))
            nulls[f"{name}_high"] = float(tested.highs[name][place].clip(0, 1))
    return SharedSpanSeed(
        ensemble, candidate.id, seeds[index], len(mine),
        directions(pool.rows[mine], candidate.span.rank).shape[1] if len(mine) else 0,
        rank, energy, n_measured, p, overlap, **nulls,
    )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _span(
    found: FoundSpans,
    number: int,
    candidate: Candidate,
    ensemble: str,
    of_seeds: list[SharedSpanSeed],
    shares: np.ndarray,
) -> SharedSpan:
    pool, members = found.pool, candidate.span.members
    nulls = {f"{name}_energy": _mean([getattr(row, f"{name}_mean") for row in of_seeds]) for name in NULL_SETS}
    tested = [index for index in range(pool.n_seeds) if len(pool.of(index))]
    again = [of_seeds[index].overlap for index in tested]
    return SharedSpan(
        ensemble=ensemble,
        span=candidate.id,
        number=number + 1,
        kept=candidate.kept,
        failed=candidate.failed,
        rank=candidate.span.rank,
        n_features=len(members),
        n_seeds=len(np.unique(pool.seed[members])),
        n_sharing=sum(row.n_members > 0 and row.p_value is not None and row.p_value <= LEVEL for row in of_seeds),
        energy=_mean([row.energy for row in of_seeds]),
        **nulls,
        p_value=max(candidate.p.values()),
        **{f"p_{name}": candidate.p.get(name) for name in NULL_SETS},
        found_again=sum(found.at(number, index)[0] >= 0 for index in tested),
        n_left_out=len(tested),
        stability=float(np.mean(again)),
        energy_share=float((shares * candidate.energy).sum() / max(len(tested), 1)),
        ev=None, ev_control=None, ev_control_sd=None, ev_whole=None, loss=None, loss_control=None,
    )  # fmt: skip


def _pairs(
    found: FoundSpans, number: int, candidate: Candidate, ensemble: str, seeds: Sequence[int]
) -> list[SharedSpanPair]:
    pool, members, rank = found.pool, candidate.span.members, candidate.span.rank
    own = {
        s: directions(pool.rows[members[pool.seed[members] == s]], rank) for s in np.unique(pool.seed[members]).tolist()
    }
    rows = []
    for other in range(len(seeds)):
        place, _ = found.at(number, other)
        for seed in range(len(seeds)):
            if seed == other:
                continue
            energy = pair_energy(found, number, seed, other)
            overlap = None
            if seed in own and other in own:
                smaller = min(own[seed].shape[1], own[other].shape[1])
                overlap = float(np.clip(((own[seed].T @ own[other]) ** 2).sum() / smaller, 0, 1))
            null: dict[str, float | None] = {"rotated_mean": None, "rotated_high": None}
            if energy is not None:
                tested = found.left_out[other].tested
                null = {
                    "rotated_mean": float(tested.means["rotated"][place].clip(0, 1)),
                    "rotated_high": float(tested.highs["rotated"][place].clip(0, 1)),
                }
            rows.append(
                SharedSpanPair(ensemble, candidate.id, seeds[seed], seeds[other], energy, overlap=overlap, **null)
            )
    return rows


def _features(
    found: FoundSpans, candidate: Candidate, ensemble: str, seeds: Sequence[int], shares: np.ndarray | None
) -> list[SharedSpanFeature]:
    pool, members = found.pool, candidate.span.members
    place = np.zeros((len(members), 2))
    axes = principal(found, candidate)[:, :2]
    place[:, : axes.shape[1]] = (pool.rows[members] @ axes).clip(-1, 1)
    return [
        SharedSpanFeature(
            ensemble, seeds[int(pool.seed[m])], int(pool.feature[m]), candidate.id, float(candidate.energy[m]),
            float(x), float(y), None if shares is None else float(shares[m]),
        )
        for m, (x, y) in zip(members.tolist(), place, strict=True)
    ]  # fmt: skip


def _directions(found: FoundSpans, candidate: Candidate, ensemble: str, n_seeds: int) -> list[SharedSpanDirection]:
    pool, members = found.pool, candidate.span.members
    bases = {-1: (members, principal(found, candidate))}
    for seed in range(n_seeds):
        mine = members[pool.seed[members] == seed]
        if len(mine):
            bases[seed] = (mine, directions(pool.rows[mine], candidate.span.rank))
    return [
        SharedSpanDirection(
            ensemble, candidate.id, basis, axis, vectors[:, axis].tolist(),
            float(((pool.rows[of] @ vectors[:, axis]) ** 2).mean()), [], [], [], [],
        )
        for basis, (of, vectors) in bases.items()
        for axis in range(vectors.shape[1])
    ]  # fmt: skip


def _empty(ensemble: str, remark: str | None) -> SharedSpanSummary:
    return SharedSpanSummary(
        ensemble, remark, n_features=0, n_edges=0, k_max=K_MAX, n_draws=0, level=LEVEL, n_candidates=0, n_kept=0, failures=[],
        failure_counts=[], n_members=0, stability=None, weighted=False, shared=None, shared_low=None, shared_high=None,
        member_share=None, chance_share=None,
    )  # fmt: skip


def _summary(
    found: FoundSpans, ensemble: str, spans: list[SharedSpan], shares: np.ndarray, weighted: bool
) -> SharedSpanSummary:
    pool, kept = found.pool, found.kept
    inside, member, chance = np.zeros((3, len(pool.rows)))
    for candidate in kept:
        inside += candidate.energy
        member[candidate.span.members] = 1
        chance[candidate.span.members] = candidate.span.rank / pool.rows.shape[1]
    failed = [each.failed for each in found.candidates if each.failed]
    names = [name for name in SPAN_FAILURES if name in failed]
    filled = [seed for seed in range(pool.n_seeds) if shares[pool.of(seed)].sum() > 0]
    by_seed = np.array([(shares * inside)[pool.of(seed)].sum() for seed in filled])
    n = len(filled)
    draws = np.random.default_rng(0).integers(0, n, (N_BOOTSTRAP, n)) if n else np.zeros((1, 0), int)
    low, high = np.quantile(by_seed[draws].mean(1), (0.025, 0.975)).tolist() if n else (None, None)
    return SharedSpanSummary(
        ensemble=ensemble,
        remark=None,
        n_features=len(pool.rows),
        n_edges=found.n_links,
        k_max=K_MAX,
        n_draws=found.n_draws,
        level=LEVEL,
        n_candidates=len(spans),
        n_kept=len(kept),
        failures=names,
        failure_counts=[failed.count(name) for name in names],
        n_members=int(member.sum()),
        stability=_mean([span.stability for span in spans if span.kept]),
        weighted=weighted,
        shared=float(by_seed.mean()) if n else None,
        shared_low=low,
        shared_high=high,
        member_share=float((shares * member).sum() / n) if n else None,
        chance_share=float((shares * chance).sum() / n) if n else None,
    )


def as_arrays(rows: Rows) -> dict[str, np.ndarray]:
    """Rows without the ensemble as arrays of a part, `Table.column`; of lists the entries in one array, and `Table.column.ends`.

    None is "" where text is optional, and NaN elsewhere.
    """
    arrays: dict[str, np.ndarray] = {}
    for table, of_table in rows.items():
        for name, (kind, is_list, _) in schema.columns(table).items():
            if name == "ensemble" or not of_table:
                continue
            values, key = [getattr(row, name) for row in of_table], f"{table.__name__}.{name}"
            if is_list:
                arrays[f"{key}.ends"] = np.cumsum([len(value) for value in values])
                kinds = {int: np.int64, float: np.float32, str: str}
                arrays[key] = np.array([entry for value in values for entry in value], kinds[kind])
            elif kind is str:
                arrays[key] = np.array([value or "" for value in values], str)
            else:
                arrays[key] = np.array([np.nan if value is None else value for value in values])
    return arrays


def add_shared_spans(writer: Writer, ensemble: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Add the rows that `as_arrays` made arrays of."""
    for table in SORT_KEYS:
        columns: dict[str, Any] = {"ensemble": ensemble}
        for name, column in schema.columns(table).items():
            values = arrays.get(f"{table.__name__}.{name}")
            if values is None:
                continue
            if column.is_list:
                columns[name] = np.split(values, arrays[f"{table.__name__}.{name}.ends"][:-1])
            else:
                columns[name] = [_read(value, column) for value in values.tolist()]
        if len(columns) > 1:
            writer.add(table, columns)


def _read(value: Any, column: schema.Column) -> Any:
    if column.optional and (value == "" or value != value):  # NaN alone is not itself
        return None
    return column.kind(value)
