"""How a feature is judged: its stability with interval and probabilities, its bucket, chance, and why it is in that bucket."""

from dataclasses import dataclass

from seedscope.app.formats import percent
from seedscope.app.routes.address import Filter
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.stability import ALONE_SENTENCE, is_match
from seedscope.engine.contract.tables.features import Feature


@dataclass(frozen=True)
class StabilityFacts:
    """A feature's stability under a judgement, and how often chance would match."""

    stability: float | None  # None, as the next four and the bucket, for one SAE alone
    stability_low: float | None
    stability_high: float | None
    p_stable: float | None
    p_unstable: float | None
    n_matched: int
    n_comparisons: int
    bucket: str | None
    theta: float
    epsilon: float
    rule: str
    null_rate: dict[str, float]
    null_p999: dict[str, float]

    @property
    def why(self) -> str:
        """Why it is in this bucket, with the numbers filled in."""
        if self.p_stable is None or self.p_unstable is None:
            return ALONE_SENTENCE
        x, n, epsilon = self.n_matched, self.n_comparisons, self.epsilon
        share, chance = f"{x} / {n} = {x / n:.2f}", "By chance: not known of correlations."
        if self.null_rate:
            rate = percent(self.null_rate["second_moment"])
            chance = f"Chance matches, at random directions with this SAE’s spread: {rate} of comparisons."
        if self.bucket == "dead":
            return "It never fired on the evaluation tokens, so its direction was never tested."
        if self.bucket == "stable":
            text, sure = f"{share} ≥ 1 − ε = {1 - epsilon:.2f}", self.p_stable
        elif self.bucket == "unstable":
            text, sure = f"{share} ≤ ε = {epsilon:.2f}", self.p_unstable
        else:
            return f"{share} lies between ε = {epsilon:.2f} and 1 − ε = {1 - epsilon:.2f}. {chance}"
        few = f"{n} seed is" if n == 1 else f"{n} seeds are"
        doubt = f"{few} too few to be sure" if sure < 0.95 else "Enough seeds to be sure"
        return f"{text}. {doubt} ({percent(sure, 0)}). {chance}"


def judge_feature(store: StudyStore, feature: Feature, filter: Filter) -> StabilityFacts:
    """A feature's stability as the filter judges it."""
    scored, cosines = filter.score(feature), filter.cosines(feature)
    return StabilityFacts(
        stability=scored and scored.p_hat,
        stability_low=scored and scored.low,
        stability_high=scored and scored.high,
        p_stable=scored and scored.p_stable,
        p_unstable=scored and scored.p_unstable,
        n_matched=int(is_match(cosines, filter.theta).sum()),
        n_comparisons=len(cosines),
        bucket=filter.bucket_of(feature),
        theta=filter.theta,
        epsilon=filter.epsilon,
        rule=filter.rule,
        null_rate=store.null_rates(feature.ensemble, filter.theta, filter.rule),
        null_p999=store.null_p999(feature.ensemble, filter.rule),
    )
