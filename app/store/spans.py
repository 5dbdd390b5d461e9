"""What was found on the spans of an ensemble's unstable features."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import schema

if TYPE_CHECKING:
    from app.store.study import StudyStore


@dataclass(frozen=True)
class FeatureSubspace:
    """How much of a feature, its squared cosine, lies in the spans of unstable features; lists run over `ranks`.

    A curve stops where a span has no more directions, and is empty for members that are left out of what compares spans.
    """

    ranks: list[int]
    own: list[float]  # in its own seed's span, fitted without it
    others: list[float]  # mean over the other seeds' spans
    random: list[float]  # in a random span: rank / d_in
    rank: int | None  # that pages show first, and both energies at it
    own_energy: float | None
    others_energy: float | None
    x: float | None  # on the map of directions
    y: float | None


def feature_subspace(store: "StudyStore", ensemble: schema.Ensemble, found: schema.Feature) -> FeatureSubspace | None:
    """A living feature's energies; None where there are none."""
    spans = store.rows(
        schema.FeatureSpan, "ensemble = ? AND seed = ? AND feature = ?", [found.ensemble, found.seed, found.feature]
    )
    if not spans:
        return None
    (span,), ranks = spans, span_ranks(store, ensemble.ensemble)
    at = ranks.index(ensemble.span_rank) if ensemble.span_rank else len(ranks)
    own, others = (energies[at] if at < len(energies) else None for energies in (span.own, span.others))
    random = [rank / ensemble.d_in for rank in ranks]
    return FeatureSubspace(ranks, span.own, span.others, random, ensemble.span_rank, own, others, span.x, span.y)


def span_ranks(store: "StudyStore", ensemble: str) -> list[int]:
    """The ranks that curves and lists run over."""
    sql = "SELECT DISTINCT rank FROM SpanCurve WHERE ensemble = ? ORDER BY rank"
    return [rank for (rank,) in store.fetch(sql, [ensemble])]
