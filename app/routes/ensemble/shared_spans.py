"""Small spans that unstable features share over seeds: the answer with its candidates, and one span whole."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.shared_spans import (
    MOST_DRAWN,
    NULLS,
    DrawnSpan,
    PairCell,
    TestedSeed,
    TiledFeature,
    captured_beside_nulls,
    seeds_beside_nulls,
    span_pairs,
    span_tiles,
)
from seedscope.app.findings.shared_span_claim import (
    FAILURE_SAYS,
    ablation_sentence,
    control_sentence,
    question_sentence,
    span_sentence,
    spans_sentence,
)
from seedscope.app.lens import read_lens
from seedscope.app.routes.address import MAX_INDEX, MAX_LISTED, EnsembleName, Plain, StudyName, open_ensemble
from seedscope.app.routes.feature.contexts import ShownContext
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.missing import Missing
from seedscope.app.store.shared_spans import (
    PAGE,
    SPAN_TABLES,
    ListedSpan,
    SearchedSide,
    SpanQuery,
    SpanSort,
    SpanTables,
    count_spans,
    find_span,
    list_spans,
    read_candidates,
    read_span_summary,
    read_span_tables,
    searched_control,
    searched_sides,
    shared_span_table,
)
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.shared_spans import (
    SharedSpan,
    SharedSpanExplanation,
    SharedSpanFeature,
    SharedSpanPair,
    SharedSpanSeed,
    SharedSpanSummary,
)
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
SpanId = Annotated[str, Path(description="id of a span")]
MOST_CONTEXTS = 24  # on a span's page, of all seeds: of many seeds each has fewer
N_EXPLAINED = 12  # members whose explanations are shown
_UPWARDS = ("number", "p")  # sorted upwards where the address does not say; all else downwards
_Count = Annotated[int, Field(ge=0, le=MAX_INDEX)]


class SpansFilter(Plain):
    """The list's state as it stands in the address; empty values of a form count as absent."""

    show: Annotated[Literal["kept", "unexplained"] | None, Field(description="without it: all candidates")] = None
    rank_min: _Count | None = None
    rank_max: _Count | None = None
    sharing_min: Annotated[_Count, Field(description="seeds whose own test passes every null")] | None = None
    q: (
        Annotated[str, Field(max_length=100, description="part of a top token, or of the explanation, of a kept span")]
        | None
    ) = None
    sort: SpanSort = "number"
    dir: Literal["asc", "desc"] | None = None
    first: Annotated[_Count, Field(description="rows of the list that are left out before")] = 0

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v != ""} if isinstance(values, dict) else values

    @property
    def descending(self) -> bool:
        """Whether the list falls."""
        return self.dir == "desc" if self.dir else self.sort not in _UPWARDS

    @property
    def is_filtered(self) -> bool:
        """Whether candidates are left out."""
        return any(value is not None for value in (self.show, self.rank_min, self.rank_max, self.sharing_min, self.q))

    def parameters(self, **changes: Any) -> dict[str, Any]:
        """What a link must carry to mean this state with `changes`; other changes than of `first` begin the list anew."""
        state = self.model_dump(exclude={"embed"}) | ({} if "first" in changes else {"first": 0}) | changes
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in state.items() if value is not None and value != defaults.get(name)}

    def query(self, ensemble: str) -> SpanQuery:
        """The filter as the store understands it."""
        kept = None if self.show is None else self.show == "kept"
        return SpanQuery(
            ensemble, kept, self.rank_min, self.rank_max, self.sharing_min, self.q, self.sort, self.descending
        )


class SpanAddress(Plain):
    """A span's permalink."""

    v: (
        Annotated[str, Field(pattern="^[0-9a-f]{4,16}$", description="digest of the ensemble it was copied from")]
        | None
    ) = None


@dataclass(frozen=True)
class SharedSpansPage:
    """`/s/{study}/{ensemble}/spans`: whether small shared spans exist, which share of the energy they hold, and all candidates."""

    study: Study
    ensemble: Ensemble
    theta: float  # that features were judged unstable by
    epsilon: float
    digest: str
    sentence: str
    question: str | None  # which share of unstable features' energy lies in shared spans, in words
    summary: SharedSpanSummary | None
    failures: dict[str, int]  # {why candidates are unexplained, in words: how many}
    total: int  # candidates that the filter finds
    spans: list[ListedSpan]
    sides: list[SearchedSide]  # empty without a control
    control: str | None  # what the same search finds on the control, in words; None without one, and of a control
    missing: list[Missing]
    figure_captured: Figure | None
    nav_query: SpansFilter
    nav_failures: dict[str, str]
    nav_before: int | None  # first rows of the pages before and after
    nav_after: int | None
    nav_push: str


@dataclass(frozen=True)
class SpanMembers:
    """One seed's part in a span."""

    seed: int
    features: list[int]
    test: SharedSpanSeed


@dataclass(frozen=True)
class ExplainedMember:
    """A member with the explanation that lists show of it."""

    seed: int
    feature: int
    explanation: str
    explainer: str | None
    score: float | None
    activation_energy: float | None  # share of what all its seed's unstable features carry


@dataclass(frozen=True)
class ShownToken:
    """A token that a span falls on."""

    token: str
    share: float
    n_active: int


@dataclass(frozen=True)
class ShownDirection:
    """A principal direction and the next tokens that it raises and lowers; both empty without direct logits."""

    axis: int
    energy: float
    raised: list[str]
    lowered: list[str]


@dataclass(frozen=True)
class SpanContexts:
    """Where a span is strongest in one seed; activations are norms of the projection."""

    seed: int
    contexts: list[ShownContext]


@dataclass(frozen=True)
class SharedSpanPage:
    """`/s/{study}/{ensemble}/spans/{span}`: one candidate with its tests, members and what it does."""

    study: Study
    ensemble: Ensemble
    digest: str
    span: SharedSpan
    sentence: str
    why: str | None  # what speaks against it; None where it is kept
    explanations: list[SharedSpanExplanation]  # of the span as a whole
    ablation: str | None  # in words; None where it was not measured
    n_loss_tokens: int | None  # that the loss is a mean over
    no_loss: str | None  # why the loss was not measured; None where it was, and of what is not kept
    members: list[SpanMembers]
    pairs: list[SharedSpanPair]
    features: list[SharedSpanFeature]
    explained: list[ExplainedMember]  # the members that carry most among those with an explanation
    directions: list[ShownDirection]
    tokens: list[ShownToken]
    contexts: list[SpanContexts]
    asked_digest: str | None
    figure_list: list[Figure]
    nav_largest: float  # strength at which highlights are strongest
    nav_list: str | None  # its members, as the list of features reads them; None where they are too many
    nav_permalink: str


@render.page(router, "/s/{study}/{ensemble}/spans", "ensemble/shared_spans.html", "spans")
def spans(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[SpansFilter, Query()]
) -> SharedSpansPage:
    """Small spans that unstable features share over seeds: what was kept, what it holds, and why the rest is unexplained."""
    store, row = open_ensemble(request, study, ensemble)
    lacking = store.missing(ensemble)
    summary = None if "shared_spans" in lacking else read_span_summary(store, ensemble)
    every = read_candidates(store, ensemble, MOST_DRAWN) if summary else []
    query = asked.query(ensemble)
    total = count_spans(store, query) if every and asked.is_filtered else summary.n_candidates if summary else 0
    lens = read_lens(request.query_params, row.theta, row.epsilon).parameters
    sides = searched_sides(store, row) if summary else []
    control = searched_control(row, sides)
    return SharedSpansPage(
        study=store.study,
        ensemble=row,
        theta=row.theta,
        epsilon=row.epsilon,
        digest=row.digest,
        sentence=spans_sentence(summary, every)
        if summary
        else str(lacking.get("shared_spans", "Nothing was searched.")),
        question=question_sentence(summary) if summary else None,
        summary=summary,
        failures={FAILURE_SAYS[name]: n for name, n in zip(summary.failures, summary.failure_counts, strict=True)}
        if summary
        else {},
        total=total,
        spans=list_spans(store, query, asked.first) if every else [],
        sides=sides,
        control=control_sentence(control) if control else None,
        missing=[lacking["shared_spans"]] if "shared_spans" in lacking else [],
        figure_captured=_captured(every, summary, f"/s/{study}/{ensemble}/spans") if every and summary else None,
        nav_query=asked,
        nav_failures=FAILURE_SAYS,
        nav_before=max(asked.first - PAGE, 0) if asked.first else None,
        nav_after=asked.first + PAGE if asked.first + PAGE < total else None,
        nav_push=render.url(f"/s/{study}/{ensemble}/spans", **asked.parameters(first=asked.first) | lens),
    )


def _download(name: str, table: str) -> None:
    """Register one table's downloads."""

    def spans_download(
        request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
    ) -> Response:
        store, _ = open_ensemble(request, study, ensemble)
        return render.download(request, shared_span_table(store, ensemble, table), f"{study}-{ensemble}-shared-{table}")

    for kind in ("csv", "parquet"):
        path = f"/s/{{study}}/{{ensemble}}/{name}.{kind}"
        description = f"Shared spans: the table of {table}, as CSV or Parquet."
        router.get(path, name=f"{name}.{kind}", description=description)(spans_download)


_download("spans", "spans")
for _table in [name for name in SPAN_TABLES if name != "spans"]:
    _download(f"spans/{_table}", _table)


@render.page(router, "/s/{study}/{ensemble}/spans/{span}", "ensemble/shared_span.html", "span")
def span(
    request: Request, study: StudyName, ensemble: EnsembleName, span: SpanId, asked: Annotated[SpanAddress, Query()]
) -> SharedSpanPage:
    """One small span: rank, members, tests seed by seed, contexts, tokens, logits, and what masking it costs."""
    store, row = open_ensemble(request, study, ensemble)
    found = find_span(store, ensemble, span)
    tables = read_span_tables(store, ensemble, span)
    summary = read_span_summary(store, ensemble)
    n_loss_tokens = summary.n_loss_tokens if summary else None
    base = f"/s/{study}/{ensemble}"
    members = ",".join(f"{each.seed}/{each.feature}" for each in tables.features)
    return SharedSpanPage(
        study=store.study,
        ensemble=row,
        digest=row.digest,
        span=found,
        sentence=span_sentence(found),
        why=None if found.kept else FAILURE_SAYS.get(found.failed or "", "it does not beat every null"),
        explanations=tables.explanations,
        ablation=ablation_sentence(found, n_loss_tokens),
        n_loss_tokens=n_loss_tokens,
        no_loss=_no_loss(store, row, found),
        members=_members(tables),
        pairs=tables.pairs,
        features=tables.features,
        explained=_explained(store, row, tables),
        directions=_directions(store, tables),
        tokens=[ShownToken(store.tokens[each.token], each.share, each.n_active) for each in tables.tokens],
        contexts=_contexts(store, tables),
        asked_digest=asked.v,
        figure_list=_figures(found, tables, base),
        nav_largest=max((max(each.norms) for each in tables.contexts), default=0),
        nav_list=members if len(tables.features) <= MAX_LISTED else None,
        nav_permalink=render.url(f"{base}/spans/{span}", v=row.digest),
    )


# -- what is shown -----------------------------------------------------------------------------------------------


def _members(tables: SpanTables) -> list[SpanMembers]:
    of_seed: dict[int, list[int]] = {}
    for each in tables.features:
        of_seed.setdefault(each.seed, []).append(each.feature)
    return [SpanMembers(test.seed, of_seed.get(test.seed, []), test) for test in tables.seeds]


def _no_loss(store: StudyStore, row: Ensemble, found: SharedSpan) -> str | None:
    """Why a kept span has no loss: it means nothing, or what it takes is not there; else the command that measures it."""
    if not found.kept or found.loss is not None:
        return None
    lack = store.missing(row.ensemble).get("loss")
    if lack and lack.job is None:
        return f"Next-token loss: {lack}."
    command = f"seedscope analyze {store.study.study} --only shared_spans,loss"
    return f"Next-token loss was not measured; run `{command}`."


def _explained(store: StudyStore, row: Ensemble, tables: SpanTables) -> list[ExplainedMember]:
    """Those of the members that carry most of the energy, or lie furthest in the span where that is not known."""
    if not store.has(row.ensemble, "explain"):
        return []
    by_weight = sorted(tables.features, key=lambda each: (-(each.activation_energy or 0), -each.energy))[:N_EXPLAINED]
    places = [(each.seed, each.feature) for each in by_weight]
    briefs = store.briefs_at(FeatureQuery(row.ensemble, row.theta, row.epsilon), places)
    return [
        ExplainedMember(each.seed, each.feature, text, brief.explainer, brief.score, each.activation_energy)
        for each in by_weight
        for brief in [briefs[each.seed, each.feature]]
        if (text := brief.explanation) is not None
    ]


def _directions(store: StudyStore, tables: SpanTables) -> list[ShownDirection]:
    return [
        ShownDirection(
            each.axis, each.energy, [store.tokens[i] for i in each.raised], [store.tokens[i] for i in each.lowered]
        )
        for each in tables.directions
    ]


def _contexts(store: StudyStore, tables: SpanTables) -> list[SpanContexts]:
    """The strongest of every seed, MOST_CONTEXTS in all."""
    of_seed: dict[int, list[ShownContext]] = {}
    n_seeds = len({each.seed for each in tables.contexts})
    for each in tables.contexts:
        if each.rank >= max(MOST_CONTEXTS // n_seeds, 1):
            continue
        texts = [store.tokens[i] for i in each.token_ids]
        document = store.documents[each.document]
        of_seed.setdefault(each.seed, []).append(ShownContext(0, texts, each.norms, document, each.position, each.peak))
    strongest = sorted(of_seed, key=lambda seed: -max(of_seed[seed][0].activations))[:MOST_CONTEXTS]
    return [SpanContexts(seed, contexts) for seed, contexts in of_seed.items() if seed in strongest]


def _captured(every: list[SharedSpan], summary: SharedSpanSummary, base: str) -> Figure:
    drawn = [
        DrawnSpan(
            each.number, each.kept, f"rank {each.rank}, {each.n_features} members, shared by {each.n_sharing} of {each.n_left_out}",
            f"{base}/{each.span}", each.energy, {name: getattr(each, f"{name}_energy") for name in NULLS},
        )
        for each in every[:MOST_DRAWN]
    ]  # fmt: skip
    return captured_beside_nulls(drawn, summary.n_candidates, "What does each candidate capture, beside its nulls?")


def _figures(found: SharedSpan, tables: SpanTables, base: str) -> list[Figure]:
    tested = [
        TestedSeed(
            each.seed,
            each.energy,
            {name: (getattr(each, f"{name}_mean"), getattr(each, f"{name}_high")) for name in NULLS},
        )
        for each in tables.seeds
    ]
    figures = []
    if any(each.energy is not None for each in tested):
        passed = f"{found.n_sharing} of {found.n_left_out} seeds"
        figures.append(seeds_beside_nulls(tested, f"What it captures of each seed: {passed} pass their own test"))
    if any(each.energy is not None for each in tables.pairs):
        cells = [PairCell(*(getattr(each, name) for name in PairCell._fields)) for each in tables.pairs]
        figures.append(
            span_pairs(cells, [each.seed for each in tables.seeds], "Does one seed’s part capture another’s?")
        )
    tiles = [
        TiledFeature(each.seed, each.feature, each.x, each.y, each.energy, f"{base}/{each.seed}/{each.feature}")
        for each in tables.features
    ]
    figures.append(span_tiles(tiles, found.rank, "How do its features tile it in each seed?"))
    return figures
