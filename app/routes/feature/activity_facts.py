"""When a feature fires: its trigger, its density, and its activations in numbers."""

from dataclasses import dataclass

from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.features import Feature


@dataclass(frozen=True)
class ActivityFacts:
    """A feature's activity; None where none was measured, but `decoder_norm`, which the weights say."""

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


def activity_of(store: StudyStore, feature: Feature) -> ActivityFacts:
    """A feature's activity as the store holds it, with its top tokens as text."""
    activity = store.has(feature.ensemble, "activity")
    counts = zip(feature.top_token_ids, feature.top_token_counts, strict=True)
    return ActivityFacts(
        dead=feature.dead,
        trigger=feature.trigger,
        trigger_share=feature.trigger_share,
        trigger_what=feature.trigger_what,
        token_entropy=feature.token_entropy,
        top_token_share=feature.top_token_share,
        top_tokens=[(store.tokens[i], n) for i, n in counts if i >= 0] if store.has_tokens(feature.ensemble) else None,
        density=feature.density,
        n_active=feature.n_active,
        n_tokens=feature.n_tokens,
        mean_activation=feature.mean_activation,
        max_activation=feature.max_activation,
        quantiles=feature.quantiles if activity else None,
        decoder_norm=feature.decoder_norm,
    )
