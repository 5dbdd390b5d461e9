"""Two features beside each other: whether one is the other's counterpart, their cosines, and what they fire on in common."""

from dataclasses import dataclass

from seedscope.app.routes.address import Filter, JudgedFeature
from seedscope.app.routes.feature.permalink import FeaturePage
from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.features import Match


@dataclass(frozen=True)
class Counterpartship:
    """What one feature's counterpart in the other's seed is, and whether it is that other."""

    counterpart: int | None  # None where the rule forms no pair
    cosine: float | None  # what theta is compared with; under `active` a correlation
    matched: bool
    is_the_other: bool


@dataclass(frozen=True)
class FeaturePair:
    """What holds between two features; None where it is not stored or not defined, and `_says` in words why, or from where."""

    same_feature: bool
    decoder_cosine: float | None
    encoder_cosine: float | None
    cosine_says: str
    b_of_a: Counterpartship | None  # a's counterpart in b's seed
    a_of_b: Counterpartship | None
    counterpart_says: str | None  # why neither is defined
    top_tokens_jaccard: float | None  # of the sets of token texts
    shared_tokens: list[str] | None
    n_top_tokens: int | None  # in the union
    n_shared_contexts: int | None  # strongest contexts whose peaks are the same token of the same document
    n_contexts: tuple[int, int] | None
    one_scale: bool  # whether activations of both have one unit
    scale_says: str


def pair_features(
    a: JudgedFeature[Filter], b: JudgedFeature[Filter], page_a: FeaturePage, page_b: FeaturePage
) -> FeaturePair:
    """What the stores hold of two features together; no weights are read."""
    same_study = a.store.study.study == b.store.study.study
    same_ensemble = same_study and a.row.ensemble == b.row.ensemble
    same_feature = same_ensemble and (a.member.seed, a.feature.feature) == (b.member.seed, b.feature.feature)
    matched = same_ensemble and a.member.seed != b.member.seed
    decoder, encoder, says = _cosines(a, b) if matched else (None, None, "")
    if same_feature:
        decoder = encoder = 1.0 if a.feature.decoder_norm > 0 else None
        says = "they are one feature"
    elif not same_ensemble:
        says = "not stored: features are matched within one ensemble"
    elif not matched:
        says = "not stored: features of one SAE are not matched with each other"
    tokens_a, tokens_b = ({text for text, _ in page.top_tokens or []} for page in (page_a, page_b))
    with_tokens = bool(page_a.top_tokens and page_b.top_tokens)
    shared = [text for text, _ in page_a.top_tokens or [] if text in tokens_b] if with_tokens else None
    peaks_a, peaks_b = _peaks(page_a), _peaks(page_b)
    with_contexts = same_study and peaks_a is not None and peaks_b is not None
    one_scale, scale_says = _scale(a, b)
    return FeaturePair(
        same_feature=same_feature,
        decoder_cosine=decoder,
        encoder_cosine=encoder,
        cosine_says=says,
        b_of_a=_counterpart(a, b) if matched else None,
        a_of_b=_counterpart(b, a) if matched else None,
        counterpart_says=None if matched or same_feature else says.removeprefix("not stored: "),
        top_tokens_jaccard=len(shared) / len(tokens_a | tokens_b) if shared is not None else None,
        shared_tokens=shared,
        n_top_tokens=len(tokens_a | tokens_b) if with_tokens else None,
        n_shared_contexts=len(peaks_a & peaks_b)
        if with_contexts and peaks_a and peaks_b
        else 0
        if with_contexts
        else None,
        n_contexts=(len(peaks_a or ()), len(peaks_b or ())) if with_contexts else None,
        one_scale=one_scale,
        scale_says=scale_says,
    )


def _cosines(a: JudgedFeature[Filter], b: JudgedFeature[Filter]) -> tuple[float | None, float | None, str]:
    """(decoder cosine, encoder cosine, where they stand): stored for partners under any rule, in either direction."""
    for one, other in ((a, b), (b, a)):
        match, slot = _match(one), _slot(one, other)
        index, feature = other.feature.feature, one.feature
        name = f"#{feature.feature} of seed {one.member.seed}"
        if match.partners[slot] == index:
            says = f"stored: the nearest to {name}"
            return feature.cosines[slot], match.encoder_cosines[slot], says
        if match.hungarian_partners and match.hungarian_partners[slot] == index:
            cosines = feature.hungarian_cosines[slot], match.hungarian_encoder_cosines[slot]
            return *cosines, f"stored: the one-to-one counterpart of {name}"
        if match.live_partners and match.live_partners[slot] == index:
            return feature.live_cosines[slot], None, f"stored: the nearest living feature to {name}"
    return None, None, "not stored: neither is the other’s counterpart under any rule"


def _counterpart(one: JudgedFeature[Filter], other: JudgedFeature[Filter]) -> Counterpartship:
    slot = _slot(one, other)
    partner = one.query.partners(one.feature, _match(one))[slot]
    cosine = one.query.cosines(one.feature)[slot]
    return Counterpartship(
        counterpart=partner,
        cosine=None if partner is None else cosine,
        matched=partner is not None and bool(is_match([cosine], one.query.theta)[0]),
        is_the_other=partner == other.feature.feature,
    )


def _match(one: JudgedFeature[Filter]) -> Match:
    return one.store.matches(one.row.ensemble, one.member.seed, one.feature.feature)


def _slot(one: JudgedFeature[Filter], other: JudgedFeature[Filter]) -> int:
    """Where the other's seed stands in the lists of one's comparisons."""
    return one.store.other_seeds(one.row.ensemble, one.member.seed).index(other.member.seed)


def _peaks(page: FeaturePage) -> set[tuple[str, int]] | None:
    """(document, token) of the strongest contexts; None without activity."""
    if page.contexts is None:
        return None
    return {(context.document, context.position) for context in page.contexts if context.group == 0}


def _scale(a: JudgedFeature[Filter], b: JudgedFeature[Filter]) -> tuple[bool, str]:
    """Whether activations, which are norms of what is added to the model's activations, have one unit in both; and why."""
    study_a, study_b = a.store.study, b.store.study
    if study_a.study != study_b.study and (study_a.model is None or study_a.model_digest != study_b.model_digest):
        return False, "different models, so different units: each is highlighted up to its own maximum"
    if a.row.place != b.row.place or (a.row.control_of is None) != (b.row.control_of is None):
        return False, "different places in the model, so different units: each is highlighted up to its own maximum"
    return True, "one scale for both"
