"""The feature permalink: what one feature is, what it does, and its counterparts in all other seeds."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends

from seedscope.app import render
from seedscope.app.formats import percent, recipe_remark
from seedscope.app.routes.address import RULE_SAYS, EnsembleName, Filter, OpenedFeature, StudyName, judged_feature
from seedscope.app.store.explanations import LabelAgreement, StoredExplanation
from seedscope.app.store.missing import Missing
from seedscope.app.store.spans import FeatureSubspace, feature_subspace
from seedscope.app.store.study import StudyStore
from seedscope.app.store.table import FeatureQuery, ListPosition
from seedscope.app.store.trajectory import FeatureTrajectory
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.features import Context, Feature
from seedscope.engine.contract.tables.study import Ensemble

router = APIRouter()
PARTNER_CONTEXTS = 2
SILENT = 6  # schema.Context.group of windows where the feature is not active
VIEWS = ("stacked", "snippet", "full")
# {result that may be missing: the fields of the twin that it would fill}
FIELDS = {
    "activity": ("dead", "top_tokens", "density", "n_active", "n_tokens", "mean_activation", "max_activation", "quantiles",
                 "trigger", "trigger_share", "trigger_what", "token_entropy", "top_token_share", "contexts", "histogram",
                 "histogram_edges", "matches.partner_dead", "matches.contexts"),
    "live": ("matches.live_partner", "matches.live_cosine"),
    "one-to-one": ("matches.hungarian_partner", "matches.hungarian_cosine", "matches.hungarian_encoder_cosine",
                   "matches.encoder_partner"),
    "ablate": ("ablation.marginal_ev", "ablation.rank"),
    "loss": ("ablation.marginal_loss_nats", "ablation.loss_rank"),
    "logits": ("positive_logits", "negative_logits"),
    "explanations": ("explanations", "matches.explanation", "matches.explainer", "matches.score", "label_agreement"),
    "subspaces": ("subspace",),
    "trajectory": ("trajectory",),
}  # fmt: skip


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
class ContextGroup:
    """Contexts that were chosen in the same way."""

    title: str
    how: str
    contexts: list[ShownContext]


@dataclass(frozen=True)
class ShownLogit:
    """A next token that a feature raises or lowers."""

    token: str
    logit: float


@dataclass(frozen=True)
class Counterpart:
    """One other seed's counterpart of the feature."""

    seed: int
    partner: int | None  # argmax; None where a side has no direction
    cosine: float
    runner_up_cosine: float
    matched: bool  # under the rule asked for
    mutual: bool
    encoder_cosine: float
    live_partner: int | None
    live_cosine: float | None
    rule_partner: int | None  # under the rule asked for
    rule_cosine: float
    partner_dead: bool | None  # this and the next: of that rule's partner
    partner_bucket: str | None
    hungarian_partner: int | None
    hungarian_cosine: float | None
    hungarian_encoder_cosine: float | None
    encoder_partner: int | None
    contexts: list[ShownContext] | None  # of the rule's partner, as are the next three
    explanation: str | None
    explainer: str | None
    score: float | None


@dataclass(frozen=True)
class Lack:
    """A field of the twin that is null because nothing was computed for it."""

    field: str
    needs: str
    command: str | None  # that computes it; None where none does


@dataclass(frozen=True)
class FeaturePage:
    """`/s/{study}/{ensemble}/{seed}/{feature}`: everything known about one feature; what is not is None and in `missing`."""

    study: str
    ensemble: str
    seed: int
    feature: int
    digest: str
    sae_digest: str
    library: str | None
    source: str | None
    trained_on: str | None
    remarks: list[str]
    anchor: (
        bool  # whether its member's recipe is not the others', as that of a public SAE among comparisons trained for it
    )
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
    rule: str
    null_rate: dict[str, float]
    null_p999: dict[str, float]
    dead: bool | None
    trigger: str | None
    trigger_share: float | None  # of its firings that the trigger covers; of `other`, its most frequent token's
    trigger_what: str | None
    token_entropy: float | None  # bits
    top_token_share: float | None
    top_tokens: list[tuple[str, int]] | None
    density: float | None
    n_active: int | None
    n_tokens: int | None
    mean_activation: float | None
    max_activation: float | None
    quantiles: list[float] | None  # of its activations where it is active: median, 90 %, 99 %
    decoder_norm: float
    matches: list[Counterpart]
    contexts: list[ShownContext] | None
    positive_logits: list[ShownLogit] | None
    negative_logits: list[ShownLogit] | None
    explanations: list[StoredExplanation] | None  # the one that lists show first
    label_agreement: LabelAgreement | None  # of that one with those of its counterparts
    ablation: dict[str, float | None] | None
    subspace: FeatureSubspace | None
    trajectory: FeatureTrajectory | None
    histogram: list[int] | None
    histogram_edges: list[float] | None
    hookpoint: str | None
    missing: list[Lack]
    asked_digest: str | None
    nav_lacks: list[Missing]
    nav_groups: list[ContextGroup]
    nav_views: dict[str, str]
    nav_counterpart: tuple[int, int, float] | None  # seed, feature, cosine of the nearest living one
    nav_exact: str | None  # where its loss is measured now; None where the model cannot be asked
    nav_projects: str | None  # where it is projected now; None for a row without a direction
    nav_try: bool  # whether a text of one's own can be run: activity, and a model that reads it
    nav_largest: float
    nav_cosines: tuple[float, ...]
    nav_place: ListPosition | None
    nav_filter: Filter
    nav_list: str
    nav_permalink: str
    nav_rules: dict[str, str]
    nav_why: str
    nav_differs: str | None  # what its stability means where one recipe did not make all members


@render.page(router, "/s/{study}/{ensemble}/{seed}/{feature}", "feature/permalink.html", "feature")
def feature(
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[OpenedFeature[Filter], Depends(judged_feature(Filter))],
) -> FeaturePage:
    """The permalink: a feature's stability and why, its contexts, its counterparts in all other seeds."""
    store, row, filter, member, found = opened
    listed = store.features(filter.query(ensemble))
    activity = store.has(ensemble, "activity")
    contexts = [_shown(store, c) for c in store.contexts(ensemble, member.seed, found.feature)] if activity else None
    comparisons = _comparisons(store, row, found, filter)
    n_matched = sum(c.matched for c in comparisons)
    scored = filter.score(found)
    base = f"/s/{study}/{ensemble}"
    null_rate = store.null_rates(ensemble, filter.theta)
    shown_maxima = [max(x.activations) for c in comparisons for x in c.contexts or []]
    lacking = store.missing(ensemble)
    differs = recipe_remark(row.anchor, row.n_comparisons, member.seed)
    return FeaturePage(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=found.feature,
        digest=row.digest,
        sae_digest=member.sae_digest,
        library=member.library,
        source=member.source,
        trained_on=member.trained_on,
        remarks=[*([differs] if differs else []), *member.remarks],
        anchor=member.seed == row.anchor,
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
        rule=filter.rule,
        null_rate=null_rate,
        null_p999=store.null_p999(ensemble),
        dead=found.dead,
        trigger=found.trigger,
        trigger_share=found.trigger_share,
        trigger_what=found.trigger_what,
        token_entropy=found.token_entropy,
        top_token_share=found.top_token_share,
        top_tokens=_top_tokens(store, found) if activity else None,
        density=found.density,
        n_active=found.n_active,
        n_tokens=found.n_tokens,
        mean_activation=found.mean_activation,
        max_activation=found.max_activation,
        quantiles=found.quantiles if activity else None,
        decoder_norm=found.decoder_norm,
        matches=comparisons,
        contexts=contexts,
        positive_logits=None if "logits" in lacking else _logits(store, found, 1),
        negative_logits=None if "logits" in lacking else _logits(store, found, -1),
        explanations=None if "explanations" in lacking else store.explanations.of(found),
        label_agreement=None
        if "explanations" in lacking
        else _label_agreement(store, found, scored.bucket, filter, comparisons),
        ablation=_ablation(store, row, found),
        subspace=feature_subspace(store, row, found),
        trajectory=store.trajectories.feature(found),
        histogram=found.histogram if activity else None,
        histogram_edges=member.histogram_edges if activity else None,
        hookpoint=row.hookpoint,
        missing=_lacks(lacking, found),
        asked_digest=filter.v,
        nav_lacks=list(lacking.values()),
        nav_groups=_groups(contexts or []),
        nav_views={
            view: render.url(f"{base}/{member.seed}/{found.feature}", **filter.parameters(view=view)) for view in VIEWS
        },
        nav_counterpart=_living_counterpart(store, row, found),
        nav_exact=f"{base}/{member.seed}/{found.feature}/loss"
        if activity and found.n_active and store.study.causal and row.control_of is None
        else None,
        nav_projects=render.url(f"{base}/{member.seed}/{found.feature}/project", **filter.judgement())
        if found.decoder_norm > 0 and row.n_members > 1
        else None,
        nav_try=activity and not store.study.synthetic,
        nav_largest=max([found.max_activation or 0, *shown_maxima]),
        nav_cosines=tuple(filter.cosines(found)),
        nav_place=listed.place(member.seed, found.feature),
        nav_filter=filter,
        nav_list=render.url(f"{base}/features", **filter.parameters()),
        nav_permalink=f"{base}/{member.seed}/{found.feature}?v={row.digest}",
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_why=_undirected(found)
        or _why(scored.bucket, n_matched, len(comparisons), filter, scored.p_stable, scored.p_unstable, null_rate),
        nav_differs=differs,
    )


def _lacks(lacking: dict[str, Missing], found: Feature) -> list[Lack]:
    """Every field that is null for want of a result; a row without a direction is known to be dead without any."""
    whole = {"ablate", "loss"} <= set(lacking)
    return [
        Lack(field, f"{missing.result}: {missing.reason}", missing.command)
        for result, missing in lacking.items()
        for field in (("ablation",) if whole and result == "ablate" else FIELDS[result])
        if not (field == "dead" and found.dead is not None)
    ]


def _top_tokens(store: StudyStore, found: Feature) -> list[tuple[str, int]]:
    counted = zip(found.top_token_ids, found.top_token_counts, strict=True)
    return [(store.tokens[i], n) for i, n in counted if i >= 0]


def _ablation(store: StudyStore, row: Ensemble, found: Feature) -> dict[str, float | None] | None:
    """What masking the feature alone costs; None where neither kind of worth was computed."""
    ranks = [
        None if getattr(found, column) is None else store.worth_rank(found, column)
        for column in ("worth_ev", "worth_loss")
    ]
    if ranks == [None, None]:
        return None
    return {"marginal_ev": found.worth_ev, "rank": ranks[0], "of": row.d_sae, "marginal_loss_nats": found.worth_loss,
            "loss_rank": ranks[1]}  # fmt: skip


def _logits(store: StudyStore, found: Feature, sign: int) -> list[ShownLogit]:
    """The next tokens that the feature raises (sign 1) or lowers (-1), the strongest first."""
    held = store.logits(found.ensemble, found.seed, found.feature)
    return [ShownLogit(store.tokens[row.token], row.logit) for row in held if row.sign == sign]


def _living_counterpart(store: StudyStore, row: Ensemble, found: Feature) -> tuple[int, int, float] | None:
    """(seed, feature, cosine) of the nearest living feature of all other seeds; None where none is known."""
    partners = store.matches(row.ensemble, found.seed, found.feature).live_partners
    seeds = store.other_seeds(row.ensemble, found.seed)
    places = zip(found.live_cosines, seeds, partners, strict=True) if len(partners) else ()
    cosine, seed, partner = max((place for place in places if place[2] >= 0), default=(NO_MATCH, 0, 0))
    return (seed, partner, cosine) if cosine > NO_MATCH else None


def _groups(contexts: list[ShownContext]) -> list[ContextGroup]:
    """Contexts as a page lists them: the strongest, each fifth of the activations, then where the feature is silent."""
    titles = {0: ("Strongest", "its highest activations, one per window")}
    titles |= {
        g: (f"Interval {6 - g} of 5", "drawn at random from this fifth of 0 to the maximum") for g in range(1, 6)
    }
    titles[SILENT] = ("Where it is not active", "drawn at random from windows in which it never fires")
    held = {group: [c for c in contexts if c.group == group] for group in titles}
    return [ContextGroup(*titles[group], shown) for group, shown in held.items() if shown]


def _shown(store: StudyStore, context: Context) -> ShownContext:
    texts = [store.tokens[i] for i in context.token_ids]
    document = store.documents[context.document]
    return ShownContext(context.group, texts, context.activations, document, context.position, context.peak)


def _comparisons(store: StudyStore, row: Ensemble, found: Feature, filter: Filter) -> list[Counterpart]:
    match = store.matches(row.ensemble, found.seed, found.feature)
    cosines = filter.cosines(found)
    matched = is_match(cosines, filter.theta)
    partners = filter.partners(found, match)
    seeds = store.other_seeds(row.ensemble, found.seed)
    places = [place for place in zip(seeds, partners, strict=True) if place[1] is not None]
    features = store.features_at(row.ensemble, places)
    activity = store.has(row.ensemble, "activity")
    contexts = store.contexts_at(row.ensemble, places, n=PARTNER_CONTEXTS) if activity else {}
    one_to_one, live = len(match.hungarian_partners) > 0, len(match.live_partners) > 0
    result = []
    for i, seed in enumerate(seeds):
        partner = features.get((seed, partners[i]))
        result.append(
            Counterpart(
                seed=seed,
                partner=_index(match.partners[i]),
                cosine=found.cosines[i],
                runner_up_cosine=match.runner_up_cosines[i],
                matched=bool(matched[i]),
                mutual=match.mutuals[i],
                encoder_cosine=match.encoder_cosines[i],
                live_partner=_index(match.live_partners[i]) if live else None,
                live_cosine=found.live_cosines[i] if live else None,
                rule_partner=partners[i],
                rule_cosine=cosines[i],
                partner_dead=partner.dead if partner else False if activity else None,
                partner_bucket=filter.score(partner).bucket if partner else None,
                hungarian_partner=_index(match.hungarian_partners[i]) if one_to_one else None,
                hungarian_cosine=found.hungarian_cosines[i] if one_to_one else None,
                hungarian_encoder_cosine=match.hungarian_encoder_cosines[i] if one_to_one else None,
                encoder_partner=_index(match.encoder_partners[i]) if one_to_one else None,
                contexts=[_shown(store, c) for c in contexts.get((seed, partners[i]), [])] if activity else None,
                explanation=partner.explanation if partner else None,
                explainer=partner.explainer if partner else None,
                score=partner.score if partner else None,
            )
        )
    return result


def _label_agreement(
    store: StudyStore, found: Feature, bucket: str, filter: Filter, comparisons: list[Counterpart]
) -> LabelAgreement:
    """How alike the labels of the feature and its matches are, beside chance."""
    matched = [(c.seed, c.rule_partner) for c in comparisons if c.matched and c.rule_partner is not None]
    own = FeatureQuery(found.ensemble, filter.theta, filter.epsilon, filter.rule, dead=filter.judgement().get("dead"))
    return store.explanations.agreement(found, bucket, own, matched)


def _index(partner: int) -> int | None:
    return partner if partner >= 0 else None


def _undirected(found: Feature) -> str | None:
    """Why a feature whose row has no direction is what it is; None for all others."""
    if found.decoder_norm > 0:
        return None
    return "Its decoder row is zero or not finite: it has no direction, so no feature of any seed can match it."


def _why(
    bucket: str, x: int, n: int, filter: Filter, p_stable: float, p_unstable: float, null_rate: dict[str, float]
) -> str:
    """Why this bucket, with the numbers filled in."""
    share, epsilon = f"{x} / {n} = {x / n:.2f}", filter.epsilon
    chance = f"Random dictionaries with the same second moment match in {percent(null_rate['second_moment'])} of comparisons."
    if bucket == "dead":
        return "It never fired on the evaluation tokens, so its direction was never tested."
    if bucket == "stable":
        text = f"{share} ≥ 1 − ε = {1 - epsilon:.2f}. P(p ≥ {1 - epsilon:.2f}) = {p_stable:.2f}"
        doubt = f": {n} comparisons cannot show it" if p_stable < 0.95 else ""
    elif bucket == "unstable":
        text = f"{share} ≤ ε = {epsilon:.2f}. P(p ≤ {epsilon:.2f}) = {p_unstable:.2f}"
        doubt = f": {n} comparisons cannot show it" if p_unstable < 0.95 else ""
    else:
        return f"{share} lies between ε = {epsilon:.2f} and 1 − ε = {1 - epsilon:.2f}. {chance}"
    return f"{text}{doubt}. {chance}"
