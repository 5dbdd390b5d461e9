"""The feature permalink: what one feature is, what it does, and its counterparts in all other seeds."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from seedscope.app import render
from seedscope.app.findings.shared_span_claim import membership_says
from seedscope.app.formats import recipe_remark
from seedscope.app.routes.address import RULE_SAYS, EnsembleName, Filter, JudgedFeature, StudyName, judged_feature
from seedscope.app.routes.feature.activity_facts import ActivityFacts, activity_of
from seedscope.app.routes.feature.contexts import ContextGroup, ShownContext, group_contexts, show_context
from seedscope.app.routes.feature.counterparts import Counterpart, agree_labels, find_counterparts, nearest_living
from seedscope.app.routes.feature.lacks import Lack, find_lacks
from seedscope.app.routes.feature.next_tokens import ShownLogit, can_compute, stored_logits
from seedscope.app.routes.feature.origin import Origin, origin_of
from seedscope.app.routes.feature.stability_facts import StabilityFacts, judge_feature
from seedscope.app.store import neuronpedia
from seedscope.app.store.explanations import LabelAgreement, StoredExplanation
from seedscope.app.store.missing import Missing
from seedscope.app.store.predictions import predictions_at
from seedscope.app.store.shared_spans import SpanMembership, read_memberships
from seedscope.app.store.spans import FeatureSubspace, feature_subspace
from seedscope.app.store.study import StudyStore
from seedscope.app.store.table import ListPosition
from seedscope.app.store.trajectory import FeatureTrajectory
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.predictions import Prediction
from seedscope.engine.contract.tables.study import Ensemble

router = APIRouter()
MOST_IN_FULL, FIRST_IN_FULL = 32, 12  # counterparts whose contexts are shown at once, and how many where there are more
VIEWS = ("stacked", "snippet", "full")


# Sections are base classes, for the JSON twin holds all fields flat, in this order: the last base's first.
@dataclass(frozen=True)
class FeaturePage(ActivityFacts, StabilityFacts, Origin):
    """`/s/{study}/{ensemble}/{seed}/{feature}`: everything known about one feature; what is not is None and in `missing`."""

    matches: list[Counterpart]
    contexts: list[ShownContext] | None
    positive_logits: list[ShownLogit] | None
    negative_logits: list[ShownLogit] | None
    explanations: list[StoredExplanation] | None  # the one that lists show first
    label_agreement: LabelAgreement | None  # of that one with those of its counterparts
    ablation: dict[str, float | None] | None
    subspace: FeatureSubspace | None
    shared_spans: (
        list[SpanMembership] | None
    )  # the small span, or candidate for one, that it is in, if any; None: not searched
    trajectory: FeatureTrajectory | None
    predicted: Prediction | None  # of one SAE: its p, predicted, not measured
    histogram: list[int] | None
    histogram_edges: list[float] | None
    hookpoint: str | None
    missing: list[Lack]
    asked_digest: str | None
    nav_lacks: list[Missing]
    nav_groups: list[ContextGroup]
    nav_views: dict[str, str]
    nav_n_brief: int  # counterparts that are shown without their contexts
    nav_all_contexts: str  # where they are shown
    nav_counterpart: tuple[int, int, float] | None  # seed, feature, cosine of the nearest living one
    nav_exact: str | None  # where its loss is measured now; None where the model cannot be asked
    nav_logits: str | None  # where its effect on all tokens is computed now; None where there are no direct logits
    nav_spans_say: list[str]
    nav_projects: str | None  # where it is projected now; None for a row without a direction
    nav_try: bool  # whether a text of one's own can be run: activity, and a model that reads it
    nav_largest: float  # activation at which highlights are strongest
    nav_axis: tuple[float, float] | None  # ends of the histogram's axis; None without activity
    nav_largest_logit: float
    nav_cosines: tuple[float, ...]
    nav_place: ListPosition | None
    nav_filter: Filter
    nav_list: str
    nav_permalink: str
    nav_neuronpedia: str | None  # its page there
    nav_preview: str  # address of its picture
    nav_shared: str  # what a shared link says below its title
    nav_rules: dict[str, str]
    nav_by_rule: dict[str, str]  # addresses of this page under each rule
    nav_why: str
    nav_differs: str | None  # what its stability means where one recipe did not make all members


class FeatureFilter(Filter):
    """A feature's page inside a filter."""

    counterparts: Annotated[
        Literal["full"] | None, Field(description="full: contexts of every counterpart, also of more than 32")
    ] = None


@render.page(router, "/s/{study}/{ensemble}/{seed}/{feature}", "feature/permalink.html", "feature")
def feature(
    study: StudyName,
    ensemble: EnsembleName,
    request: Request,
    opened: Annotated[JudgedFeature[FeatureFilter], Depends(judged_feature(FeatureFilter))],
) -> FeaturePage:
    """The permalink: a feature's stability and why, its contexts, its counterparts in all other seeds."""
    brief = not (opened.query.counterparts == "full" or request.url.path.endswith(".json"))
    brief &= opened.row.n_comparisons > MOST_IN_FULL
    return feature_page(opened, contexts_of=FIRST_IN_FULL if brief else None)


def feature_page(opened: JudgedFeature[Any], *, contexts_of: int | None = None) -> FeaturePage:
    """Everything known about one feature, judged as the filter says; raises BadValue for what was not computed.

    `contexts_of`: how many counterparts are shown with their contexts; None: all.
    """
    store, row, filter, member, feature = opened
    study, ensemble = store.study.study, row.ensemble
    listed = store.features(filter.query(ensemble))  # refuses what was not computed
    activity = store.has(ensemble, "activity")
    contexts = None
    if store.has_tokens(ensemble):
        contexts = [show_context(store, c) for c in store.contexts(ensemble, member.seed, feature.feature)]
    place = listed.place(member.seed, feature.feature)
    match = store.matches(ensemble, member.seed, feature.feature)
    counterparts = find_counterparts(store, row, feature, match, filter, contexts_of=contexts_of)
    stability = judge_feature(store, feature, filter)
    lacking = store.missing(ensemble)
    base = f"/s/{study}/{ensemble}"
    here = f"{base}/{member.seed}/{feature.feature}"
    shown_maxima = [max(x.activations) for c in counterparts for x in c.contexts or []]
    n_brief = sum(c.contexts is None for c in counterparts) if contexts is not None else 0
    can_run = activity and feature.n_active and store.study.causal and row.control_of is None
    positive, negative = (None, None) if "logits" in lacking else stored_logits(store, feature)
    memberships = None if "shared_spans" in lacking else read_memberships(store, ensemble, member.seed, feature.feature)
    can_project = feature.decoder_norm > 0 and row.n_members > 1
    return FeaturePage(
        **vars(origin_of(study, row, member, feature)),
        **vars(stability),
        **vars(activity_of(store, feature)),
        matches=counterparts,
        contexts=contexts,
        positive_logits=positive,
        negative_logits=negative,
        explanations=None if "explanations" in lacking else store.explanations.of(feature),
        label_agreement=None
        if "explanations" in lacking or stability.bucket is None or not row.n_comparisons
        else agree_labels(store, feature, stability.bucket, filter, counterparts),
        ablation=_ablation(store, row, feature),
        subspace=feature_subspace(store, row, feature),
        shared_spans=memberships,
        trajectory=store.trajectories.feature(feature),
        predicted=next(iter(predictions_at(store, ensemble, [(member.seed, feature.feature)])), None),
        histogram=feature.histogram if activity else None,
        histogram_edges=member.histogram_edges if activity else None,
        hookpoint=row.hookpoint,
        missing=find_lacks(lacking, feature),
        asked_digest=filter.v,
        nav_lacks=list(lacking.values()),
        nav_groups=group_contexts(contexts or []),
        nav_views={view: render.url(here, **filter.parameters(view=view)) for view in VIEWS},
        nav_n_brief=n_brief,
        nav_all_contexts=render.url(here, **filter.parameters(counterparts="full")),
        nav_counterpart=nearest_living(store, row, feature, match),
        nav_exact=render.url(f"{here}/loss", **filter.judgement()) if can_run else None,
        nav_logits=render.url(f"{here}/logits", **filter.judgement()) if can_compute(store, row, feature) else None,
        nav_spans_say=[membership_says(each) for each in memberships or []],
        nav_projects=render.url(f"{here}/project", **filter.judgement()) if can_project else None,
        nav_try=activity and store.study.model is not None,
        nav_largest=max([feature.max_activation or 0, *shown_maxima]),
        nav_axis=(member.histogram_edges[0], member.histogram_edges[-1]) if activity else None,
        nav_largest_logit=max([abs(each.logit) for each in [*(positive or []), *(negative or [])]], default=0),
        nav_cosines=tuple(filter.cosines(feature)),
        nav_place=place,
        nav_filter=filter,
        nav_list=render.url(
            f"{base}/{'list' if filter.sort == 'listed' else 'features'}",
            **filter.parameters(),
            at=f"{member.seed}/{feature.feature}" if place else None,
        ),
        nav_neuronpedia=_neuronpedia(store, row, feature),
        nav_preview=render.url(f"{here}/preview.png", **filter.judgement()),
        nav_shared=_shared(feature, stability),
        nav_permalink=render.url(here, v=row.digest, **filter.judgement()),
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_by_rule={
            rule: render.url(here, **filter.parameters(rule=rule if rule != "argmax" else None))
            for rule in store.rules(ensemble)
        },
        nav_why=_undirected(feature) or stability.why,
        nav_differs=recipe_remark(row.anchor, row.n_comparisons, member.seed),
    )


def _neuronpedia(store: StudyStore, row: Ensemble, feature: Feature) -> str | None:
    source = neuronpedia.sources(store.path.parent, row.ensemble, store.members(row.ensemble)).get(feature.seed)
    return neuronpedia.feature_address(source, feature.feature) if source else None


def _shared(feature: Feature, stability: StabilityFacts) -> str:
    """A feature in one sentence, for those who see a link to it: its matches, and its explanation where it has one."""
    matches = ""
    if stability.n_comparisons:
        matches = f"{stability.n_matched} of {stability.n_comparisons} other seeds match at θ = {stability.theta:.2f}"
    return ". ".join(part for part in (matches, feature.explanation) if part)


def _ablation(store: StudyStore, row: Ensemble, feature: Feature) -> dict[str, float | None] | None:
    """What masking the feature alone costs; None where neither kind of worth was computed."""
    ranks = [
        None if getattr(feature, column) is None else store.worth_rank(feature, column)
        for column in ("worth_ev", "worth_loss")
    ]
    if ranks == [None, None]:
        return None
    return {"marginal_ev": feature.worth_ev, "rank": ranks[0], "of": row.d_sae, "marginal_loss_nats": feature.worth_loss,
            "loss_rank": ranks[1]}  # fmt: skip


def _undirected(feature: Feature) -> str | None:
    """Why a feature whose row has no direction is what it is; None for all others."""
    if feature.decoder_norm > 0:
        return None
    return "Its decoder row is zero or not finite: it has no direction, so no feature of any seed can match it."
