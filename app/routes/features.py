"""The feature table and the feature permalink."""

import re
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal

import pyarrow.csv
import pyarrow.parquet
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app import render
from app.formats import percent
from app.store import FeatureQuery, FeatureRow, Place, Studies, StudyStore
from engine import schema
from engine.stability import BUCKETS, EPSILON, THETA, is_match, score

router = APIRouter()
StudyName = Annotated[str, Path(description="study name")]
EnsembleName = Annotated[str, Path(description="ensemble name")]
Share = Annotated[float, Field(ge=0, le=1)]
PARTNER_CONTEXTS = 2
MAX_INDEX = 2**31 - 1  # what the store's integer columns hold
# What later analyses add; the twin says so instead of leaving it out.
MISSING = {
    "trigger": "trigger classes", "positive_logits": "logit effects", "negative_logits": "logit effects",
    "explanations": "auto-interpretation", "subspace": "geometry",
}  # fmt: skip


class Filter(BaseModel):
    """The feature table's state as it stands in the URL; empty values count as absent."""

    model_config = ConfigDict(extra="forbid")
    theta: Annotated[float, Field(ge=-1, le=1)] = THETA
    epsilon: Annotated[float, Field(ge=0, lt=0.5)] = EPSILON
    seed: Annotated[int, Field(ge=0, le=MAX_INDEX)] | None = None
    bucket: Literal["stable", "middle", "unstable", "dead"] | None = None
    dead: Literal["exclude", "only"] | None = None
    stability_min: Share | None = None
    stability_max: Share | None = None
    density_min: Share | None = None
    density_max: Share | None = None
    id: Annotated[int, Field(ge=0, le=MAX_INDEX)] | None = None
    q: Annotated[str, Field(max_length=100)] | None = None
    sort: Literal["stability", "density", "worth", "max", "feature"] = "stability"
    dir: Literal["asc", "desc"] | None = None
    v: Annotated[str, Field(pattern="^[0-9a-f]{4,16}$")] | None = None
    embed: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v != ""} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _id_in_search(self) -> "Filter":
        """`#117` in the search box means the feature of that index."""
        if self.q and (match := re.fullmatch(r"#\s*(\d{1,9})", self.q.strip())):
            self.id, self.q = int(match[1]), None
        return self

    @property
    def descending(self) -> bool:
        """Without `dir`: by index upwards, by anything else downwards."""
        return self.dir == "desc" if self.dir else self.sort != "feature"

    def query(self, ensemble: str) -> FeatureQuery:
        """The filter as the store understands it."""
        values = self.model_dump(exclude={"dir", "v", "embed", "limit", "after", "before"})
        return FeatureQuery(ensemble, descending=self.descending, **values)

    def parameters(self, **changes: Any) -> dict[str, Any]:
        """What a link must carry to mean this filter with `changes`; defaults are left out."""
        held = self.model_dump(exclude={"v", "embed", "limit", "after", "before"}) | changes
        return {k: v for k, v in held.items() if k not in Filter.model_fields or v != Filter.model_fields[k].default}


class TableFilter(Filter):
    """A page of the table: a filter and a keyset position."""

    after: str | None = None
    before: str | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


@dataclass(frozen=True)
class TablePage:
    """`/s/{study}/{ensemble}/features`: one page of the filtered features with facet counts and exact total."""

    study: schema.Study
    ensemble: schema.Ensemble
    filter: dict[str, Any]
    theta: float
    epsilon: float
    total: int
    rows: list[FeatureRow]
    buckets: dict[str, int]
    seeds: dict[int, int]
    null_rates: dict[str, float]
    null_p999: dict[str, float]
    after: str | None
    before: str | None
    nav_filter: Filter
    nav_push: str


@dataclass(frozen=True)
class ShownContext:
    """A context as pages and JSON show it."""

    group: int
    tokens: list[str]
    activations: list[float]
    document: str
    position: int
    peak: int


@dataclass(frozen=True)
class Comparison:
    """One other seed's counterpart of the feature."""

    seed: int
    partner: int
    cosine: float
    runner_up_cosine: float
    matched: bool
    mutual: bool
    encoder_cosine: float
    live_partner: int
    live_cosine: float
    partner_dead: bool
    partner_bucket: str
    hungarian_partner: int | None
    hungarian_cosine: float | None
    hungarian_encoder_cosine: float | None
    encoder_partner: int | None
    contexts: list[ShownContext]


@dataclass(frozen=True)
class FeaturePage:
    """`/s/{study}/{ensemble}/{seed}/{feature}`: everything known about one feature."""

    study: str
    ensemble: str
    seed: int
    feature: int
    digest: str
    sae_digest: str
    shared_start: str
    data_order: str
    stability: float
    stability_low: float
    stability_high: float
    p_stable: float
    p_unstable: float
    n_matched: int
    n_comparisons: int
    bucket: str
    theta: float
    epsilon: float
    null_rate: dict[str, float]
    null_p999: dict[str, float]
    dead: bool
    trigger: str | None
    top_tokens: list[tuple[str, int]]
    density: float
    n_active: int
    n_tokens: int
    mean_activation: float
    max_activation: float
    matches: list[Comparison]
    contexts: list[ShownContext]
    positive_logits: list[Any] | None
    negative_logits: list[Any] | None
    explanations: list[Any] | None
    ablation: dict[str, float]
    subspace: dict[str, float] | None
    histogram: list[int]
    histogram_edges: list[float]
    hookpoint: str
    missing: list[dict[str, str]]
    asked_digest: str | None
    nav_largest: float
    nav_cosines: tuple[float, ...]
    nav_place: Place | None
    nav_filter: Filter
    nav_list: str
    nav_permalink: str
    nav_why: str


def _open(request: Request, study: str, ensemble: str) -> tuple[StudyStore, schema.Ensemble]:
    studies: Studies = request.app.state.studies
    store = studies.get(study)
    return store, store.ensemble(ensemble)


@render.page(router, "/s/{study}/{ensemble}/features", "features.html", "features")
def feature_table(
    request: Request, study: StudyName, ensemble: EnsembleName, filter: Annotated[TableFilter, Query()]
) -> TablePage:
    """Features of all members, filtered and sorted, page by page."""
    store, row = _open(request, study, ensemble)
    if filter.seed is not None:
        store.member(ensemble, filter.seed)
    query = filter.query(ensemble)
    rows = store.list_features(query, limit=filter.limit + 1, after=filter.after, before=filter.before)
    more = len(rows) > filter.limit
    if filter.before:
        rows = rows[-filter.limit :]
        has_after, has_before = True, more
    else:
        rows = rows[: filter.limit]
        has_after, has_before = more, filter.after is not None
    facets = store.facets(query)
    base = f"/s/{study}/{ensemble}/features"
    position = {"limit": filter.limit if filter.limit != 50 else None, "after": filter.after, "before": filter.before}
    return TablePage(
        study=store.study,
        ensemble=row,
        filter=filter.model_dump(exclude={"v", "embed"}),
        theta=filter.theta,
        epsilon=filter.epsilon,
        total=store.count(query),
        rows=rows,
        buckets={b: facets["bucket"].get(b, 0) for b in BUCKETS},
        seeds={m.seed: facets["seed"].get(m.seed, 0) for m in store.members(ensemble)},
        null_rates=store.null_rates(ensemble, filter.theta),
        null_p999=store.null_p999(ensemble),
        after=store.key(query, rows[-1]) if rows and has_after else None,
        before=store.key(query, rows[0]) if rows and has_before else None,
        nav_filter=filter,
        nav_push=render.url(base, **filter.parameters(), **position),
    )


@router.get("/s/{study}/{ensemble}/features.csv", name="features.csv")
@router.get("/s/{study}/{ensemble}/features.parquet", name="features.parquet")
def feature_download(
    request: Request, study: StudyName, ensemble: EnsembleName, filter: Annotated[Filter, Query()]
) -> Response:
    """All features that the filter finds, as CSV or Parquet."""
    store, _ = _open(request, study, ensemble)
    if filter.seed is not None:
        store.member(ensemble, filter.seed)
    table = store.table(filter.query(ensemble))
    kind = request.url.path.rsplit(".", 1)[1]
    buffer = BytesIO()
    if kind == "csv":
        pyarrow.csv.write_csv(table, buffer)
    else:
        pyarrow.parquet.write_table(table, buffer)
    media = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}[kind]
    headers = {"Content-Disposition": f'attachment; filename="{study}-{ensemble}-features.{kind}"'}
    return Response(buffer.getvalue(), media_type=media, headers=headers)


@router.get("/s/{study}/{ensemble}/random", name="random")
def random_feature(request: Request, study: StudyName, ensemble: EnsembleName) -> RedirectResponse:
    """Any living feature."""
    store, _ = _open(request, study, ensemble)
    seed, feature = store.random_feature(ensemble)
    return RedirectResponse(f"/s/{study}/{ensemble}/{seed}/{feature}", 303)


@render.page(router, "/s/{study}/{ensemble}/{seed}/{feature}", "feature.html", "feature")
def feature(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    seed: str,
    feature: str,
    filter: Annotated[Filter, Query()],
) -> FeaturePage:
    """The permalink: a feature's stability and why, its contexts, its counterparts in all other seeds."""
    store, row = _open(request, study, ensemble)
    member = store.member(ensemble, seed)
    found = store.feature(ensemble, member.seed, feature)
    contexts = [_shown(store, c) for c in store.contexts(ensemble, member.seed, found.feature)]
    comparisons = _comparisons(store, row, found, filter)
    n_matched = sum(c.matched for c in comparisons)
    scored = score(n_matched, len(comparisons), dead=found.dead, epsilon=filter.epsilon)
    query = filter.query(ensemble)
    base = f"/s/{study}/{ensemble}"
    null_rate = store.null_rates(ensemble, filter.theta)
    shown_maxima = [max(x.activations) for c in comparisons for x in c.contexts]
    return FeaturePage(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=found.feature,
        digest=row.digest,
        sae_digest=member.sae_digest,
        shared_start=row.shared_start,
        data_order=row.data_order,
        stability=scored.p_hat,
        stability_low=scored.low,
        stability_high=scored.high,
        p_stable=scored.p_stable,
        p_unstable=scored.p_unstable,
        n_matched=n_matched,
        n_comparisons=len(comparisons),
        bucket=scored.bucket,
        theta=filter.theta,
        epsilon=filter.epsilon,
        null_rate=null_rate,
        null_p999=store.null_p999(ensemble),
        dead=found.dead,
        trigger=None,
        top_tokens=[
            (store.tokens[i], n) for i, n in zip(found.top_token_ids, found.top_token_counts, strict=True) if i >= 0
        ],
        density=found.density,
        n_active=found.n_active,
        n_tokens=found.n_tokens,
        mean_activation=found.mean_activation,
        max_activation=found.max_activation,
        matches=comparisons,
        contexts=contexts,
        positive_logits=None,
        negative_logits=None,
        explanations=None,
        ablation={
            "marginal_ev": found.worth_ev,
            "rank": store.worth_rank(ensemble, member.seed, found.worth_ev),
            "of": row.d_sae,
        },
        subspace=None,
        histogram=found.histogram,
        histogram_edges=member.histogram_edges,
        hookpoint=store.study.hookpoint,
        missing=[{"field": field, "needs": f"{what}: not computed by this version"} for field, what in MISSING.items()],
        asked_digest=filter.v,
        nav_largest=max([found.max_activation, *shown_maxima]),
        nav_cosines=tuple(found.cosines),
        nav_place=store.place(query, member.seed, found.feature),
        nav_filter=filter,
        nav_list=render.url(f"{base}/features", **filter.parameters()),
        nav_permalink=f"{base}/{member.seed}/{found.feature}?v={row.digest}",
        nav_why=_why(scored.bucket, n_matched, len(comparisons), filter, scored.p_stable, scored.p_unstable, null_rate),
    )


def _shown(store: StudyStore, context: schema.Context) -> ShownContext:
    texts = [store.tokens[i] for i in context.token_ids]
    document = store.documents[context.document]
    return ShownContext(context.group, texts, context.activations, document, context.position, context.peak)


def _comparisons(store: StudyStore, row: schema.Ensemble, found: schema.Feature, filter: Filter) -> list[Comparison]:
    match = store.matches(row.ensemble, found.seed, found.feature)
    matched = is_match(found.cosines, filter.theta)
    result = []
    for i, seed in enumerate(store.other_seeds(row.ensemble, found.seed)):
        partner = store.feature(row.ensemble, seed, match.partners[i])
        one_to_one = match.hungarian_partners[i]
        x = int(is_match(partner.cosines, filter.theta).sum())
        result.append(
            Comparison(
                seed=seed,
                partner=match.partners[i],
                cosine=found.cosines[i],
                runner_up_cosine=match.runner_up_cosines[i],
                matched=bool(matched[i]),
                mutual=match.mutuals[i],
                encoder_cosine=match.encoder_cosines[i],
                live_partner=match.live_partners[i],
                live_cosine=found.live_cosines[i],
                partner_dead=partner.dead,
                partner_bucket=score(x, row.n_comparisons, dead=partner.dead, epsilon=filter.epsilon).bucket,
                hungarian_partner=one_to_one if one_to_one >= 0 else None,
                hungarian_cosine=match.hungarian_cosines[i] if one_to_one >= 0 else None,
                hungarian_encoder_cosine=match.hungarian_encoder_cosines[i] if one_to_one >= 0 else None,
                encoder_partner=match.encoder_partners[i] if match.encoder_partners[i] >= 0 else None,
                contexts=[
                    _shown(store, c)
                    for c in store.contexts(row.ensemble, seed, match.partners[i], limit=PARTNER_CONTEXTS)
                ],
            )
        )
    return result


def _why(
    bucket: str, x: int, n: int, filter: Filter, p_stable: float, p_unstable: float, null_rate: dict[str, float]
) -> str:
    """Why this bucket, with the numbers filled in."""
    share, epsilon = f"{x} / {n} = {x / n:.2f}", filter.epsilon
    chance = f"Random dictionaries with the same second moment match in {percent(null_rate['second_moment'])} of comparisons."
    if bucket == "dead":
        return "It never fired on the held-out tokens, so its direction was never tested."
    if bucket == "stable":
        text = f"{share} ≥ 1 − ε = {1 - epsilon:.2f}. P(p ≥ {1 - epsilon:.2f}) = {p_stable:.2f}"
        doubt = f": {n} comparisons cannot show it" if p_stable < 0.95 else ""
    elif bucket == "unstable":
        text = f"{share} ≤ ε = {epsilon:.2f}. P(p ≤ {epsilon:.2f}) = {p_unstable:.2f}"
        doubt = f": {n} comparisons cannot show it" if p_unstable < 0.95 else ""
    else:
        return f"{share} lies between ε = {epsilon:.2f} and 1 − ε = {1 - epsilon:.2f}. {chance}"
    return f"{text}{doubt}. {chance}"
