"""Tables of features: partners in other members, chance matches, activity, contexts, worth. Standard library only.

Comparisons are the other members of the ensemble in ascending order of their seeds. Activations are a_i * ||d_i||: the SAE's
activation times the norm of the feature's decoder row. Cosines are from -1 to 1.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One feature: its best cosines under every rule, its activity on the evaluation tokens, and what it is worth."""

    ensemble: str
    seed: int
    feature: int
    dead: bool | None  # active on no evaluation token; True for a row without a direction, None without activity
    cosines: list[float]  # argmax: best cosine per comparison
    live_cosines: list[float]  # the same among the comparison's living features; empty without activity
    mutual_cosines: list[float]  # the best cosine where each is the other's best
    hungarian_cosines: list[float]  # under the one-to-one matching; empty where that was not computed
    both_cosines: list[float]  # decoder and encoder matching agree: the smaller of the two cosines; may be empty
    # active: correlation of activations with the one of the nearest decoder rows that fires most alike; empty without function
    active_correlations: list[float]
    density: float | None  # n_active / n_tokens, 0 to 1
    n_active: int | None  # evaluation tokens that it is active on
    n_tokens: int | None  # evaluation tokens that count
    mean_activation: float | None  # over the tokens that it is active on
    max_activation: float | None
    decoder_norm: float  # ||d_i|| as stored
    worth_ev: float | None  # explained variance that is lost when this feature alone is masked
    quantiles: list[float]  # of its activations where it is active: median, 90 %, 99 %
    token_entropy: float | None  # bits, over the token types that it is active on
    top_token_share: float | None  # share of its firings on the most frequent token type, 0 to 1
    trigger: str | None  # one of TRIGGERS
    trigger_share: float | None  # share of its firings that the trigger covers, 0 to 1
    trigger_what: str | None  # the token, family or substring; empty where the trigger's class needs no more
    worth_loss: float | None  # next-token loss that masking this feature alone adds, nats per token, to first order
    explanation: str | None  # the one shown in lists: a language model's where there is one, else the token rule
    explainer: str | None  # that made the explanation
    # The explanation's detection score: balanced accuracy, 0 to 1; None where it was not scored or scoring failed.
    score: float | None
    # Correlation of activations with the nearest decoder row (argmax), mean over comparisons at any cosine; None for dead features.
    cofiring: float | None
    # Raw score of that counterpart, median over comparisons; None where it is undefined. See engine.contract.tables.function.
    substitution: float | None
    histogram: list[int]  # tokens per bin of activations; the bins are Member.histogram_edges
    top_token_ids: list[int]  # most frequent token types that it is active on, the most frequent first
    top_token_counts: list[int]  # firings on each of them


@dataclass(frozen=True)
class Match:
    """A feature's partners; every list has one entry per comparison. A partner is a feature index, -1: none."""

    ensemble: str
    seed: int
    feature: int
    partners: list[int]
    runner_up_cosines: list[float]
    mutuals: list[bool]
    encoder_cosines: list[float]  # of the feature's and the partner's encoder columns
    live_partners: list[int]  # empty without activity
    hungarian_partners: list[int]  # this and the next two are empty where one-to-one matching was not computed
    hungarian_encoder_cosines: list[float]
    encoder_partners: list[int]  # partner under the one-to-one matching of the encoders
    active_partners: list[int]  # the one of the nearest decoder rows that fires most alike; empty without function


@dataclass(frozen=True)
class Pair:
    """Matches of one member's features in another, under one rule; rows of a rule that was not computed are absent."""

    ensemble: str
    rule: str
    seed: int  # the anchor
    other: int
    n_anchors: int  # features with a direction
    n_living: int  # of those, features not known to be dead
    n_paired: int  # anchors for which the rule forms a pair
    mean_cosine: float  # over the paired: MMCS for argmax, MCC for hungarian; 0 where none is paired
    gap: float  # bound on how far a one-to-one matching is below the best one, relative; 0 for other rules
    matched: list[int]  # anchors whose cosine reaches theta, one entry per theta of the grid
    matched_living: list[int]  # the same among living anchors


@dataclass(frozen=True)
class NullMatch:
    """Best cosines of a feature in random dictionaries, one per comparison, under one null hypothesis."""

    ensemble: str
    kind: str  # haar, second_moment; see engine.matching.match.null_cosines
    seed: int
    feature: int
    cosines: list[float]


@dataclass(frozen=True)
class Context:
    """Tokens around one at which a feature is active, or silent, with its activation at each."""

    ensemble: str
    seed: int
    feature: int
    group: int  # 0: the strongest; 1 to 5: drawn from that fifth of (0, max], the strongest fifth first; 6: not active
    rank: int  # within the group, from 0
    document: int  # Document.id
    position: int  # of the peak in its document, in tokens
    peak: int  # index of the peak in token_ids
    token_ids: list[int]
    activations: list[float]


@dataclass(frozen=True)
class Ablation:
    """Explained variance and next-token loss of one member under one kind of mask of one size."""

    ensemble: str
    seed: int
    mask: str  # headline masks, and `stable`, `unstable`, `random`, `matched to ..`: the points of curves
    n_masked: int  # features
    n_draws: int  # random choices of them that the means and standard deviations are over; 1 where nothing is random
    ev: float  # explained variance, at most 1
    ev_sd: float
    loss: float | None  # next-token loss, nats per token
    loss_sd: float | None


@dataclass(frozen=True)
class Logit:
    """A next token whose logit a feature raises or lowers most by its direct effect."""

    ensemble: str
    seed: int
    feature: int
    sign: int  # 1: raised, -1: lowered
    rank: int  # 0: the strongest
    token: int  # Token.id
    logit: float  # the decoder row, scaled by the final norm's weights, times the unembedding
