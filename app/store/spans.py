"""Tables on spans of unstable features: curves, pairs of members, single features, and their downloads."""

import math
from dataclasses import dataclass, fields

import pyarrow as pa

from seedscope.app.findings.span_claim import EnergyAtRank
from seedscope.app.store.database import Database
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.spans import (
    FeatureSpan,
    SpanCurve,
    SpanMember,
    SpanPrediction,
    SpanResidual,
    first_energies,
)
from seedscope.engine.contract.tables.study import Ensemble

MAP = "map: "  # what the remark on the map begins with


@dataclass(frozen=True)
class FeatureSubspace:
    """How much of a feature, its squared cosine, lies in the spans of unstable features; lists run over `ranks`.

    A curve stops where a span has no more directions, and is empty for members that are left out of what compares spans.
    """

    ranks: list[int]
    own: list[float]  # in its own seed's span, fitted without it
    others: list[float]  # mean over the other seeds' spans
    random: list[float]  # in a random span: rank / d_in
    rank: int | None  # that pages show first, or the last that both reach, and both energies at it; None without any
    own_energy: float | None
    others_energy: float | None
    x: float | None  # on the map of directions
    y: float | None


@dataclass(frozen=True)
class EnsembleSpans:
    """Everything of one ensemble but what single features and pairs of members have."""

    ranks: list[int]
    curves: list[SpanCurve]
    members: list[SpanMember]
    residuals: list[SpanResidual]
    predictions: list[SpanPrediction]

    def levels(self, rank: int) -> dict[str, EnergyAtRank]:
        """{curve: its energy at a rank}, of the curves that reach it; overlap is none of them."""
        return {
            row.curve: EnergyAtRank(row.mean, row.spread, row.n_pairs)
            for row in self.curves
            if row.rank == rank and row.mean is not None and row.curve != "overlap"
        }


@dataclass(frozen=True)
class PairSpan:
    """Two members' unstable spans at one rank; None where one of them has fewer directions."""

    seed: int  # whose span
    other: int  # whose features; the same seed: fitted on one half of them, measured on the other
    energy: float | None
    overlap: float | None  # 1: the same span; rank / d_in on average for unrelated ones
    angle: float | None  # degrees, median of the principal angles


def feature_subspace(store: Database, ensemble: Ensemble, found: Feature) -> FeatureSubspace | None:
    """A living feature's energies; None where there are none."""
    spans = store.rows(
        FeatureSpan, "ensemble = ? AND seed = ? AND feature = ?", [found.ensemble, found.seed, found.feature]
    )
    if not spans:
        return None
    (span,), ranks = spans, span_ranks(store, ensemble.ensemble)
    random = [rank / ensemble.d_out for rank in ranks]
    rank, own, others = first_energies(span, ranks, ensemble.span_rank) or (None, None, None)
    return FeatureSubspace(ranks, span.own, span.others, random, rank, own, others, span.x, span.y)


def span_ranks(store: Database, ensemble: str) -> list[int]:
    """The ranks that curves and lists run over."""
    sql = "SELECT DISTINCT rank FROM SpanCurve WHERE ensemble = ? ORDER BY rank"
    return [rank for (rank,) in store.fetch(sql, [ensemble])]


def map_remark(ensemble: Ensemble) -> str | None:
    """How the map was drawn; None where there is none."""
    return next((told[len(MAP) :] for told in ensemble.span_remarks if told.startswith(MAP)), None)


def other_remarks(ensemble: Ensemble) -> list[str]:
    """What else was left out, and why."""
    return [told for told in ensemble.span_remarks if not told.startswith(MAP)]


def nearest_rank(ranks: list[int], asked: int) -> int:
    """The rank that is nearest in the logarithm."""
    return min(ranks, key=lambda rank: abs(math.log(rank / asked)))


def read_spans(store: Database, ensemble: str) -> EnsembleSpans:
    """All tables of an ensemble that have a row per curve, member, bucket or setting."""
    tables = (SpanCurve, SpanMember, SpanResidual, SpanPrediction)
    return EnsembleSpans(
        span_ranks(store, ensemble), *(store.rows(table, "ensemble = ?", [ensemble]) for table in tables)
    )


def pairs_at(store: Database, ensemble: str, rank: int) -> list[PairSpan]:
    """Every ordered pair of members at one of the ranks, and every member with itself."""
    at = span_ranks(store, ensemble).index(rank) + 1  # lists count from 1
    rows = store.fetch(
        'SELECT seed, other, energies[$at], "overlaps"[$at], degrees(angles[$at]) FROM SpanPair '
        "WHERE ensemble = $ensemble ORDER BY seed, other",
        {"ensemble": ensemble, "at": at},
    )
    return [PairSpan(*row) for row in rows]


# -- downloads: lists become rows --------------------------------------------------------------------------------

_MEMBER = ", ".join(f.name for f in fields(SpanMember) if not f.name.endswith("_values"))
# At most three lists of a row have entries at the same place; the shorter ones are then empty there.
_RANK = "(SELECT list(DISTINCT rank ORDER BY rank) FROM SpanCurve WHERE ensemble = $ensemble)[place] AS rank"
TABLES = {
    "curves": "SELECT * FROM SpanCurve WHERE ensemble = $ensemble ORDER BY curve, rank",
    "pairs": f'SELECT ensemble, seed, other, {_RANK}, energies[place] AS energy, "overlaps"[place] AS "overlap", '
    "degrees(angles[place]) AS angle FROM (SELECT *, unnest(range(1, greatest(len(energies), len(\"overlaps\")) + 1)) AS place "
    "FROM SpanPair WHERE ensemble = $ensemble) ORDER BY seed, other, place",
    "members": f"SELECT {_MEMBER} FROM SpanMember WHERE ensemble = $ensemble ORDER BY seed",
    "spectra": "SELECT ensemble, seed, place AS direction, stable_values[place] AS stable, unstable_values[place] AS unstable, "
    "random_values[place] AS random FROM (SELECT *, unnest(range(1, greatest(len(stable_values), len(unstable_values), "
    "len(random_values)) + 1)) AS place FROM SpanMember WHERE ensemble = $ensemble) ORDER BY seed, place",
    "residuals": "SELECT * FROM SpanResidual WHERE ensemble = $ensemble ORDER BY bucket, k",
    "predictability": "SELECT * FROM SpanPrediction WHERE ensemble = $ensemble ORDER BY setting",
    "features": f"SELECT ensemble, seed, feature, {_RANK}, own[place] AS own, others[place] AS others FROM (SELECT *, "
    "unnest(range(1, greatest(len(own), len(others)) + 1)) AS place FROM FeatureSpan WHERE ensemble = $ensemble) "
    "ORDER BY seed, feature, place",
}  # fmt: skip


def span_table(store: Database, ensemble: str, name: str) -> pa.Table:
    """One of TABLES whole, for downloads."""
    return store.arrow(TABLES[name], {"ensemble": ensemble})
