"""Measure one ensemble's stable and unstable rows: subspaces, pursuit and predictability, as small arrays for pages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from seedscope.engine.contract.stability import EPSILON, THETA, buckets, count_matches
from seedscope.engine.geometry.predictability import (
    FEWEST,
    MOST_NUMBERS,
    Predictability,
    match_clusters,
    predictability,
    some_clusters,
)
from seedscope.engine.geometry.pursuit import Residuals, span_residuals
from seedscope.engine.geometry.row_sets import Device, MaskedRows, Rows, unit_sets
from seedscope.engine.geometry.subspaces import (
    FeatureEnergy,
    MatchedRank,
    Transfer,
    basis,
    effective_rank,
    log_ranks,
    matched_rank,
    overlaps,
    principal_angles,
    projected_energy,
    random_rank,
    spectrum,
    transfer,
)
from seedscope.engine.matching.best_matches import BestMatches
from seedscope.engine.matching.match import Matches

ANGLE_QUANTILES = (0.1, 0.5, 0.9)
FEWEST_ROWS = 2  # of a bucket; members with fewer are left out of what compares spans


class RankRow(NamedTuple):
    """Effective ranks of one member's stable and unstable rows, as they are and at equal counts."""

    member: int
    n_stable: int
    n_unstable: int
    stable: float  # effective rank of all of them; NaN where there are none
    unstable: float
    n: int  # the smaller of the two counts; the next three are of that many rows, None at 0
    stable_matched: MatchedRank | None
    unstable_matched: MatchedRank | None
    random_matched: MatchedRank | None
    spectra: "Spectra | None"


class SpanGeometry(NamedTuple):
    """How the members' unstable spans lie to each other, all unstable rows fitted; NaN where a member has fewer."""

    ranks: np.ndarray
    overlap: np.ndarray  # (members, members, ranks)
    angle: np.ndarray  # (members, members, ranks) radians, median of a pair's principal angles; 0 with itself
    angles: np.ndarray  # (ranks, ANGLE_QUANTILES) radians, quantiles over all angles of all pairs
    fewest: int  # rows that a span was fitted on

    @property
    def pairs(self) -> np.ndarray:
        """(unordered pairs, ranks) overlaps."""
        return self.overlap[np.triu_indices(len(self.overlap), 1)]


class Spectra(NamedTuple):
    """Singular values, descending, of as many rows each as the smaller bucket has; None where a bucket is empty."""

    stable: np.ndarray
    unstable: np.ndarray
    random: np.ndarray  # random unit rows


class Geometry(NamedTuple):
    """Everything of one ensemble at one theta and epsilon. None: too few members have the rows; `remarks` say why."""

    members: np.ndarray  # indices of the members that spans are compared among
    ranks: list[RankRow]
    transfer: Transfer | None
    spans: SpanGeometry | None
    energy: list[FeatureEnergy] | None  # per member of `members`, over its living rows, ascending
    residuals: dict[str, Residuals]  # of "stable" and "unstable" rows, written with the living rows of the others
    predictability: Predictability | None
    remarks: tuple[str, ...]


def measure(
    decoders: Sequence[Rows],
    matches: Matches | BestMatches,
    dead: np.ndarray,
    *,
    theta: float = THETA,
    epsilon: float = EPSILON,
    ranks: Sequence[int] | None = None,
    covariance: Float[np.ndarray, "d d"] | None = None,
    device: Device = "cpu",
    seeds: Sequence[int] | None = None,
    scratch: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Geometry:
    """Geometry of all members' decoder rows (d_sae, d_in) under the argmax rule.

    `dead` (members, d_sae) features count in no bucket; rows without a direction must be among them. `covariance` is of the
    activations that the SAEs read; `seeds` name the members in remarks. Members with fewer than FEWEST_ROWS unstable rows
    are left out of what compares spans, and a remark says so. Memory: what `UnitSets` holds, one member's rows, and some d x d
    numbers per member; large results lie in files of the folder `scratch`. Raises ValueError for fewer than two members.
    """
    if len(decoders) < 2:
        raise ValueError(f"found {len(decoders)} member, expected at least 2: geometry compares members")
    members = range(len(decoders))
    n_matched = np.stack([count_matches(matches.cosine[member], theta) for member in members])
    named = buckets(n_matched, matches.other.shape[1], dead, epsilon)
    living, stable, unstable = (
        MaskedRows(decoders, list(mask)) for mask in (named != "dead", named == "stable", named == "unstable")
    )
    ranks = log_ranks(decoders[0].shape[1]) if ranks is None else sorted(ranks)
    table = [_rank_row(member, stable[member], unstable[member], device) for member in members]
    report(1, 4)
    chosen = [m for m in members if unstable.counts[m] >= FEWEST_ROWS]
    remarks = [
        f"seed {m if seeds is None else seeds[m]} has {unstable.counts[m]} unstable rows and is left out of what compares spans"
        for m in members
        if m not in chosen
    ]
    captured = spans = energy = None
    if len(chosen) > 1:
        mine, alive, settled = (rows.of(chosen) for rows in (unstable, living, stable))
        baseline = settled if all(settled.counts) else None
        if baseline is None:
            remarks.append("a member has no stable rows: there is no baseline of stable rows")
        captured = transfer(mine, ranks, living=alive, stable=baseline, covariance=covariance, device=device)
        if (fewest := int(captured.cross.n_fitted.min())) < ranks[-1]:
            remarks.append(f"curves are fitted on {fewest} unstable rows or more: from that rank on some members stop")
        spans = _spans(mine, ranks, device)
        inside = [(names := named[m])[names != "dead"] == "unstable" for m in chosen]
        energy = projected_energy(alive, inside, ranks, device=device, scratch=scratch)
    report(2, 4)
    residuals = {}
    for name, rows in (("stable", stable), ("unstable", unstable)):
        if len(filled := [m for m in members if rows.counts[m]]) > 1:
            residuals[name] = span_residuals(rows.of(filled), living.of(filled), device=device)
    report(3, 4)
    predicted = _predicted(decoders, matches, named, theta, remarks)
    report(4, 4)
    return Geometry(np.array(chosen, int), table, captured, spans, energy, residuals, predicted, tuple(remarks))


def _predicted(
    decoders: Sequence[Rows], matches: Matches | BestMatches, named: np.ndarray, theta: float, remarks: list[str]
) -> Predictability | None:
    """How well stable and unstable rows are told apart, of whole clusters chosen at random where there are very many rows."""
    predictable = _with_both(named)
    if len(predictable) > 1:
        ids = match_clusters(matches.partner, matches.cosine, matches.other, theta)
        kept = np.isin(named, ("stable", "unstable")) & np.isin(np.arange(len(named)), predictable)[:, None]
        counts = np.bincount(ids[kept])
        n_rows, most = int(kept.sum()), MOST_NUMBERS // decoders[0].shape[1]
        if n_rows > most:
            masks = some_clusters([ids[m][kept[m]] for m in predictable], most)
            for member, mask in zip(predictable, masks, strict=True):
                kept[member, kept[member]] = mask
            remarks.append(f"predictability: {int(kept.sum()):,} of {n_rows:,} rows, in clusters chosen at random")
        predictable = _with_both(np.where(kept, named, ""))
    if len(predictable) < 2:
        remarks.append(f"fewer than two members have {FEWEST} stable and {FEWEST} unstable rows: nothing is predicted")
        return None
    found = predictability(
        [rows.cpu().numpy() for rows in MaskedRows(decoders, list(kept)).of(predictable)],
        [named[m][kept[m]] == "stable" for m in predictable],
        [ids[m][kept[m]] for m in predictable],
    )
    return found._replace(n_clusters=int((counts > 0).sum()), largest_cluster=float(counts.max() / n_rows))


def _with_both(named: np.ndarray) -> list[int]:
    """Members with FEWEST stable and FEWEST unstable features or more."""
    counts = [(named == name).sum(1) for name in ("stable", "unstable")]
    return np.flatnonzero(np.min(counts, 0) >= FEWEST).tolist()


def _rank_row(member: int, stable: torch.Tensor, unstable: torch.Tensor, device: Device) -> RankRow:
    n = min(len(stable), len(unstable))

    def whole(rows: torch.Tensor) -> float:
        return effective_rank(rows, device=device).rank if len(rows) else np.nan

    def matched(rows: torch.Tensor) -> MatchedRank | None:
        return matched_rank(rows, n, device=device) if n else None

    return RankRow(
        member,
        n_stable=len(stable),
        n_unstable=len(unstable),
        stable=whole(stable),
        unstable=whole(unstable),
        n=n,
        stable_matched=matched(stable),
        unstable_matched=matched(unstable),
        random_matched=random_rank(n, stable.shape[1], device=device) if n else None,
        spectra=_spectra(stable, unstable, n, device) if n else None,
    )


def _spectra(stable: torch.Tensor, unstable: torch.Tensor, n: int, device: Device) -> Spectra:
    generator = torch.Generator().manual_seed(0)
    drawn = [rows[torch.randperm(len(rows), generator=generator)[:n].to(rows.device)] for rows in (stable, unstable)]
    random = torch.randn(n, stable.shape[1], generator=generator)
    return Spectra(*(spectrum(rows, device=device) for rows in (*drawn, random)))


def _spans(sets: MaskedRows, ranks: list[int], device: Device) -> SpanGeometry:
    bases = [basis(rows, ranks[-1]) for rows in unit_sets(sets, device)]
    overlap = overlaps(bases, ranks)
    angle = np.zeros_like(overlap)
    angles = np.full((len(ranks), len(ANGLE_QUANTILES)), np.nan)
    first, second = np.triu_indices(len(bases), 1)
    for at, rank in enumerate(ranks):
        pair_angles = principal_angles(bases, rank)
        angle[first, second, at] = angle[second, first, at] = np.median(pair_angles, axis=1)
        if np.isfinite(pair_angles).any():
            angles[at] = np.nanquantile(pair_angles, ANGLE_QUANTILES)
    return SpanGeometry(np.array(ranks), overlap, angle, angles, min(sets.counts))
