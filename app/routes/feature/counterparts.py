"""A feature's counterparts in the other seeds: partners under every rule, what they are, and how alike labels are."""

from dataclasses import dataclass

from seedscope.app.routes.address import Filter
from seedscope.app.routes.feature.contexts import ShownContext, show_context
from seedscope.app.store.explanations import LabelAgreement
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.function import read_substitute
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.features import Feature, Match
from seedscope.engine.contract.tables.function import Substitute
from seedscope.engine.contract.tables.study import Ensemble

PARTNER_CONTEXTS = 2


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
    rule_cosine: float  # what theta is compared with; under `active` a correlation
    partner_dead: bool | None  # this and the next: of that rule's partner
    partner_bucket: str | None
    hungarian_partner: int | None
    hungarian_cosine: float | None
    hungarian_encoder_cosine: float | None
    encoder_partner: int | None
    active_partner: int | None
    active_correlation: float | None
    correlation: (
        float | None
    )  # of activations, with that rule's partner; this and the next three: None without the analysis
    jaccard: float | None  # of firing
    substitution: float | None  # score of that partner in the feature's place; None where it is undefined
    scaled_substitution: float | None
    contexts: list[ShownContext] | None  # of the rule's partner, as are the next three
    explanation: str | None
    explainer: str | None
    score: float | None


def find_counterparts(
    store: StudyStore, row: Ensemble, feature: Feature, match: Match, filter: Filter, *, contexts_of: int | None = None
) -> list[Counterpart]:
    """One counterpart per other seed, in seed order, judged as the filter says; contexts of the first, or of all."""
    cosines = filter.cosines(feature)
    matched = is_match(cosines, filter.theta)
    partners = filter.partners(feature, match)
    seeds = store.other_seeds(row.ensemble, feature.seed)
    places = [(seed, partner) for seed, partner in zip(seeds, partners, strict=True) if partner is not None]
    judged = FeatureQuery(row.ensemble, filter.theta, filter.epsilon, filter.rule, dead=filter.dead)
    features = store.briefs_at(judged, places)
    activity = store.has_tokens(row.ensemble)
    contexts = store.contexts_at(row.ensemble, places[:contexts_of], n=PARTNER_CONTEXTS) if activity else {}
    left_out = set() if contexts_of is None else set(places[contexts_of:])
    one_to_one, live = len(match.hungarian_partners) > 0, len(match.live_partners) > 0
    active = len(match.active_partners) > 0
    does = read_substitute(store, row.ensemble, filter.rule, feature.seed, feature.feature)
    counterparts = []
    for i, (seed, rule_partner) in enumerate(zip(seeds, partners, strict=True)):
        place = None if rule_partner is None else (seed, rule_partner)
        partner = None if place is None else features.get(place)
        shown = [] if place is None else [show_context(store, context) for context in contexts.get(place, [])]
        counterparts.append(
            Counterpart(
                seed=seed,
                partner=_index(match.partners[i]),
                cosine=feature.cosines[i],
                runner_up_cosine=match.runner_up_cosines[i],
                matched=bool(matched[i]),
                mutual=match.mutuals[i],
                encoder_cosine=match.encoder_cosines[i],
                live_partner=_index(match.live_partners[i]) if live else None,
                live_cosine=feature.live_cosines[i] if live else None,
                rule_partner=rule_partner,
                rule_cosine=cosines[i],
                partner_dead=partner.dead if partner else False if activity else None,
                partner_bucket=partner.bucket if partner else None,
                hungarian_partner=_index(match.hungarian_partners[i]) if one_to_one else None,
                hungarian_cosine=feature.hungarian_cosines[i] if one_to_one else None,
                hungarian_encoder_cosine=match.hungarian_encoder_cosines[i] if one_to_one else None,
                encoder_partner=_index(match.encoder_partners[i]) if one_to_one else None,
                active_partner=_index(match.active_partners[i]) if active else None,
                active_correlation=feature.active_correlations[i] if active else None,
                **_function(does, i, rule_partner),
                contexts=shown if activity and place not in left_out else None,
                explanation=partner.explanation if partner else None,
                explainer=partner.explainer if partner else None,
                score=partner.score if partner else None,
            )
        )
    return counterparts


def _function(does: Substitute | None, i: int, partner: int | None) -> dict[str, float | None]:
    """What the counterpart in comparison i does; nothing where there is no counterpart, or it is not known."""
    if does is None or partner is None:
        return dict.fromkeys(("correlation", "jaccard", "substitution", "scaled_substitution"))
    scored = bool(does.substitutions)
    return {
        "correlation": does.correlations[i],
        "jaccard": does.jaccards[i],
        "substitution": does.substitutions[i] if scored else None,
        "scaled_substitution": does.scaled_substitutions[i] if scored else None,
    }


def nearest_living(store: StudyStore, row: Ensemble, feature: Feature, match: Match) -> tuple[int, int, float] | None:
    """(seed, feature, cosine) of the nearest living feature of all other seeds; None where none is known."""
    partners = match.live_partners
    seeds = store.other_seeds(row.ensemble, feature.seed)
    candidates = zip(feature.live_cosines, seeds, partners, strict=True) if len(partners) else ()
    cosine, seed, partner = max((each for each in candidates if each[2] >= 0), default=(NO_MATCH, 0, 0))
    return (seed, partner, cosine) if cosine > NO_MATCH else None


def agree_labels(
    store: StudyStore, feature: Feature, bucket: str, filter: Filter, counterparts: list[Counterpart]
) -> LabelAgreement:
    """How alike the labels of the feature and its matches are, beside chance."""
    matched = [(c.seed, c.rule_partner) for c in counterparts if c.matched and c.rule_partner is not None]
    dead = filter.judgement().get("dead")
    judged = FeatureQuery(feature.ensemble, filter.theta, filter.epsilon, filter.rule, dead=dead)
    return store.explanations.agreement(feature, bucket, judged, matched)


def _index(partner: int) -> int | None:
    return partner if partner >= 0 else None
