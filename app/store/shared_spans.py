"""Tables on small shared spans: the answer of an ensemble, its candidates by a filter, one span whole, and their downloads."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.errors import NotFound
from seedscope.engine.contract import schema
from seedscope.engine.contract.tables.shared_spans import (
    SharedSpan,
    SharedSpanContext,
    SharedSpanDirection,
    SharedSpanExplanation,
    SharedSpanFeature,
    SharedSpanPair,
    SharedSpanSeed,
    SharedSpanSummary,
    SharedSpanToken,
)
from seedscope.engine.contract.tables.study import Ensemble

PAGE = 50  # rows of the list on one page
TOKEN_RULE = "token rule"  # the explainer that comes last
N_TOP_TOKENS = 4  # of a kept span, in lists

SpanSort = Literal[
    "number", "rank", "features", "seeds", "sharing", "energy", "living", "density", "rotated", "second_moment", "p", "again",
    "stability", "share",
]  # fmt: skip
_COLUMN: dict[str, str] = {
    "number": "number", "rank": "rank", "features": "n_features", "seeds": "n_seeds", "sharing": "n_sharing",
    "energy": "energy", "living": "living_energy", "density": "density_energy", "rotated": "rotated_energy",
    "second_moment": "second_moment_energy", "p": "p_value", "again": "found_again", "stability": "stability",
    "share": "energy_share",
}  # fmt: skip
SPAN_SORTS: tuple[SpanSort, ...] = get_args(SpanSort)


@dataclass(frozen=True)
class SpanQuery:
    """Which candidates of an ensemble are listed, and in which order."""

    ensemble: str
    kept: bool | None = None  # None: all
    rank_min: int | None = None
    rank_max: int | None = None
    sharing_min: int | None = None  # seeds whose own test passes every null
    q: str | None = None  # part of a token that the span falls on most, or of its explanation
    sort: SpanSort = "number"
    descending: bool = False


@dataclass(frozen=True)
class ListedSpan:
    """A candidate as lists show it."""

    span: SharedSpan
    top_tokens: list[str]  # that its squared strength falls on most; empty for what is not kept, and without tokens
    explanation: SharedSpanExplanation | None  # of the span as a whole, the first that has a text; None without any


class WrittenDirection(NamedTuple):
    """A principal direction of a span, and the ids of the next tokens that it raises and lowers."""

    axis: int
    energy: float
    raised: list[int]
    lowered: list[int]


@dataclass(frozen=True)
class SpanTables:
    """Everything of one span but its own row; lists are empty where the span was not followed on tokens."""

    seeds: list[SharedSpanSeed]
    pairs: list[SharedSpanPair]
    features: list[SharedSpanFeature]
    directions: list[WrittenDirection]  # of all seeds together
    contexts: list[SharedSpanContext]
    tokens: list[SharedSpanToken]
    explanations: list[SharedSpanExplanation]  # of the span as a whole: others come before token rules


@dataclass(frozen=True)
class SearchedSide:
    """The ensemble or its control on random weights: what its search found."""

    ensemble: str
    is_control: bool
    summary: SharedSpanSummary


@dataclass(frozen=True)
class SpanMembership:
    """The span or candidate that a feature is in."""

    span: str
    number: int
    kept: bool
    failed: str | None
    rank: int
    n_sharing: int
    n_left_out: int  # seeds that were tested
    energy: float  # squared cosine of the feature with the span of the other seeds' members
    explanation: str | None  # of the span as a whole; None without any


def read_span_summary(store: Database, ensemble: str) -> SharedSpanSummary | None:
    """What the search of an ensemble found; None where it was not made."""
    return next(iter(store.rows(SharedSpanSummary, "ensemble = ?", [ensemble])), None)


def searched_sides(store: Database, row: Ensemble) -> list[SearchedSide]:
    """The ensemble beside its controls, or the control beside what it is of; those that were searched, none where it is one."""
    own = row.control_of or row.ensemble
    names = [own, *(each.ensemble for each in store.ensembles.values() if each.control_of == own)]
    if len(names) == 1:
        return []
    searched = [(name, read_span_summary(store, name)) for name in names if name in store.ensembles]
    sides = [SearchedSide(name, name != own, summary) for name, summary in searched if summary]
    return sides if len(sides) > 1 else []


def searched_control(row: Ensemble, sides: list[SearchedSide]) -> SharedSpanSummary | None:
    """What was found on the first control of an ensemble; None without one, and for a control."""
    return None if row.control_of else next((side.summary for side in sides if side.is_control), None)


def read_candidates(store: Database, ensemble: str, first: int) -> list[SharedSpan]:
    """All kept candidates of an ensemble and the `first` of the others, in the order of their numbers."""
    rows = store.rows(SharedSpan, "ensemble = ? AND (kept OR number <= ?)", [ensemble, first])
    return sorted(rows, key=lambda row: row.number)


def count_spans(store: Database, query: SpanQuery) -> int:
    """How many candidates a query finds."""
    where, parameters = _where(query)
    return int(store.fetch(f"SELECT count(*) FROM SharedSpan s WHERE {where}", parameters)[0][0])


def list_spans(store: Database, query: SpanQuery, first: int = 0, limit: int = PAGE) -> list[ListedSpan]:
    """The candidates that a query finds, from the `first` on; unknown values last in either direction."""
    where, parameters = _where(query)
    names = ", ".join(f"s.{field.name}" for field in fields(SharedSpan))
    direction = "DESC" if query.descending else "ASC"
    sql = (
        f"SELECT {names} FROM SharedSpan s WHERE {where} ORDER BY s.{_COLUMN[query.sort]} {direction} NULLS LAST, s.number "
        f"LIMIT {limit:d} OFFSET {first:d}"
    )
    spans = [SharedSpan(*row) for row in store.fetch(sql, parameters)]
    tokens = _top_tokens(store, query.ensemble, [span.span for span in spans])
    explanations = _explanations(store, query.ensemble, [span.span for span in spans])
    return [ListedSpan(span, tokens.get(span.span, []), explanations.get(span.span)) for span in spans]


def find_span(store: Database, ensemble: str, span: str) -> SharedSpan:
    """One candidate; raises NotFound with where they are listed."""
    found = store.rows(SharedSpan, "ensemble = ? AND span = ?", [ensemble, span])
    if not found:
        n = count_spans(store, SpanQuery(ensemble))
        digest = store.ensemble(ensemble).digest
        where = f"/s/{store.study.study}/{ensemble}/spans"
        raise NotFound(
            "span", span, f"{n} of digest {digest}, listed at {where}; other SAEs or settings give other ids"
        )
    return found[0]


def read_span_tables(store: Database, ensemble: str, span: str) -> SpanTables:
    """Everything of one span."""

    def of(table: type) -> list[Any]:
        return store.rows(table, "ensemble = ? AND span = ?", [ensemble, span])

    return SpanTables(
        seeds=of(SharedSpanSeed),
        pairs=of(SharedSpanPair),
        features=of(SharedSpanFeature),
        directions=_directions(store, ensemble, span),
        contexts=of(SharedSpanContext),
        tokens=of(SharedSpanToken),
        explanations=sorted(of(SharedSpanExplanation), key=_shown_first),
    )


def _directions(store: Database, ensemble: str, span: str) -> list[WrittenDirection]:
    """Without the vectors, which are most of the table."""
    names = ", ".join(WrittenDirection._fields)
    sql = f"SELECT {names} FROM {SharedSpanDirection.__name__} WHERE ensemble = ? AND span = ? AND basis = -1 ORDER BY axis"
    return [WrittenDirection(*row) for row in store.fetch(sql, [ensemble, span])]


def read_memberships(store: Database, ensemble: str, seed: int, feature: int) -> list[SpanMembership]:
    """The span or candidate that a feature is in, one at most; empty where it is in none."""
    sql = """SELECT s.span, s.number, s.kept, s.failed, s.rank, s.n_sharing, s.n_left_out, f.energy
        FROM SharedSpanFeature f JOIN SharedSpan s USING (ensemble, span)
        WHERE f.ensemble = ? AND f.seed = ? AND f.feature = ?"""
    found = store.fetch(sql, [ensemble, seed, feature])
    told = _explanations(store, ensemble, [row[0] for row in found])
    return [SpanMembership(*(*row, told[row[0]].text if row[0] in told else None)) for row in found]


def _where(query: SpanQuery) -> tuple[str, dict[str, Any]]:
    """The condition on SharedSpan, named `s`, and its parameters."""
    conditions, parameters = ["s.ensemble = $ensemble"], {"ensemble": query.ensemble}
    tests = {
        "kept": "s.kept = $kept",
        "rank_min": "s.rank >= $rank_min",
        "rank_max": "s.rank <= $rank_max",
        "sharing_min": "s.n_sharing >= $sharing_min",
        "q": "(s.span IN (SELECT t.span FROM SharedSpanToken t JOIN Token w ON w.id = t.token "
        "WHERE t.ensemble = $ensemble AND contains(lower(w.text), lower($q))) OR s.span IN (SELECT x.span FROM "
        "SharedSpanExplanation x WHERE x.ensemble = $ensemble AND contains(lower(x.text), lower($q))))",
    }
    for name, test in tests.items():
        if (value := getattr(query, name)) is not None:
            conditions.append(test)
            parameters[name] = value
    return " AND ".join(conditions), parameters


def _top_tokens(store: Database, ensemble: str, spans: list[str]) -> dict[str, list[str]]:
    where = f"ensemble = ? AND rank < {N_TOP_TOKENS:d} AND span IN (SELECT unnest(?::VARCHAR[]))"
    tokens: dict[str, list[str]] = {}
    for row in store.rows(SharedSpanToken, where, [ensemble, spans]):
        tokens.setdefault(row.span, []).append(store.tokens[row.token])
    return tokens


def _explanations(store: Database, ensemble: str, spans: list[str]) -> dict[str, SharedSpanExplanation]:
    """{span: the explanation that lists show}."""
    where = "ensemble = ? AND text IS NOT NULL AND span IN (SELECT unnest(?::VARCHAR[]))"
    rows = sorted(store.rows(SharedSpanExplanation, where, [ensemble, spans]), key=_shown_first, reverse=True)
    return {row.span: row for row in rows}


def _shown_first(row: SharedSpanExplanation) -> tuple[bool, str]:
    return row.explainer == TOKEN_RULE, row.explainer


# -- downloads ---------------------------------------------------------------------------------------------------

SPAN_TABLES: dict[str, type] = {
    "spans": SharedSpan,
    "seeds": SharedSpanSeed,
    "pairs": SharedSpanPair,
    "features": SharedSpanFeature,
    "explanations": SharedSpanExplanation,
}


def shared_span_table(store: Database, ensemble: str, name: str) -> pa.Table:
    """One of SPAN_TABLES whole, for downloads."""
    table = SPAN_TABLES[name]
    names = ", ".join(f'"{field.name}"' for field in fields(table))
    order = "number" if table is SharedSpan else ", ".join(schema.SORT_KEYS[table])
    sql = f"SELECT {names} FROM {table.__name__} WHERE ensemble = $ensemble ORDER BY {order}"
    return store.arrow(sql, {"ensemble": ensemble})
