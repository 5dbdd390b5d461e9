"""One feature under one rule, theta and epsilon: its cosines, its partners and its stability, for pages and notebooks alike."""

from seedscope.engine.contract.schema import NO_MATCH, RULE_COLUMN
from seedscope.engine.contract.stability import Stability, is_match, score
from seedscope.engine.contract.tables.features import Feature, Match


def rule_cosines(feature: Feature, rule: str) -> list[float]:
    """What theta is compared with, one per comparison: cosines, under `active` correlations; NO_MATCH without a pair."""
    cosines: list[float] = getattr(feature, RULE_COLUMN[rule])
    return cosines


def rule_partners(feature: Feature, match: Match, rule: str) -> list[int | None]:
    """The feature's partners, one per comparison; None where the rule forms no pair."""
    named = {
        "live": match.live_partners, "hungarian": match.hungarian_partners, "both": match.hungarian_partners,
        "active": match.active_partners,
    }  # fmt: skip
    pairs = zip(named.get(rule, match.partners), rule_cosines(feature, rule), strict=True)
    return [partner if cosine > NO_MATCH and partner >= 0 else None for partner, cosine in pairs]


def stability_of(
    feature: Feature, *, rule: str, theta: float, epsilon: float, count_dead: bool = False
) -> Stability | None:
    """The feature's stability; None where there is no comparison. With `count_dead` dead features are judged like others."""
    cosines = rule_cosines(feature, rule)
    if not cosines:
        return None
    n_matched, dead = int(is_match(cosines, theta).sum()), feature.dead is True and not count_dead
    return score(n_matched, len(cosines), dead=dead, epsilon=epsilon)
