"""Tables of features: partners in other members, activity, contexts, worth. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One decoder row and what it does on the evaluation tokens."""

    ensemble: str
    seed: int
    feature: int
    dead: bool | None  # never fired on the evaluation tokens; True for a row without a direction, None if not known
    cosines: list[float]  # argmax: best cosine per comparison
    live_cosines: list[float]  # the same among the comparison's living features; empty without activity
    mutual_cosines: list[float]  # the best cosine where each is the other's best
    hungarian_cosines: list[float]  # under the one-to-one matching; empty where that was not computed
    both_cosines: list[float]  # decoder and encoder matching agree: the smaller of the two cosines; may be empty
    density: float | None  # n_active / n_tokens
    n_active: int | None
    n_tokens: int | None
    mean_activation: float | None
    max_activation: float | None
    decoder_norm: float
    worth_ev: float | None  # EV lost when this feature alone is masked
    quantiles: list[float]  # of its activations where it is active: median, 90 %, 99 %
    token_entropy: float | None  # bits, of the token types it fires on
    top_token_share: float | None  # of the most frequent of them
    trigger: str | None  # one of TRIGGERS
    trigger_share: float | None  # of its firings that the class covers
    trigger_what: str | None  # the token, family or substring; empty where the class says it all
    worth_loss: float | None  # nats per token that masking this feature alone adds, to first order
    explanation: str | None  # the one shown in lists: a language model's where there is one, else the token rule
    explainer: str | None  # that made it
    score: float | None  # its detection score: balanced accuracy; None where it was not scored or scoring failed
    histogram: list[int]
    top_token_ids: list[int]
    top_token_counts: list[int]


@dataclass(frozen=True)
class Match:
    """A feature's partners; every list has one entry per comparison."""

    ensemble: str
    seed: int
    feature: int
    partners: list[int]
    runner_up_cosines: list[float]
    mutuals: list[bool]
    encoder_cosines: list[float]  # of the two encoder columns, at the partner
    live_partners: list[int]  # empty without activity
    hungarian_partners: list[int]  # -1: stays alone; this and the next two are empty where one-to-one was not computed
    hungarian_encoder_cosines: list[float]
    encoder_partners: list[int]  # partner under the one-to-one matching of the encoders


@dataclass(frozen=True)
class Pair:
    """One member's features in another, under one rule; rows of a rule that was not computed are absent."""

    ensemble: str
    rule: str
    seed: int  # the anchor
    other: int
    n_anchors: int  # features with a direction
    n_living: int  # those not known to be dead
    n_paired: int  # anchors for which the rule forms a pair
    mean_cosine: float  # over the paired: MMCS for argmax, MCC for hungarian; 0 where none is
    gap: float  # proven relative distance of a one-to-one matching to the best one; 0 for other rules
    matched: list[int]  # anchors that reach theta, by theta on the grid
    matched_living: list[int]  # the same among living anchors


@dataclass(frozen=True)
class NullMatch:
    """Best cosines of the same feature in random dictionaries; kind is haar or second_moment."""

    ensemble: str
    kind: str
    seed: int
    feature: int
    cosines: list[float]


@dataclass(frozen=True)
class Context:
    """A token window around an activation peak."""

    ensemble: str
    seed: int
    feature: int
    group: int  # 0: the strongest; 1 to 5: drawn from that fifth of (0, max], the strongest fifth first; 6: not active
    rank: int
    document: int
    position: int  # of the peak in its document
    peak: int  # of the peak in token_ids
    token_ids: list[int]
    activations: list[float]


@dataclass(frozen=True)
class Ablation:
    """Explained variance and next-token loss of one member under one kind of mask of one size."""

    ensemble: str
    seed: int
    mask: str  # headline masks, and `stable`, `unstable`, `random`, `matched to ..`: the points of curves
    n_masked: int
    n_draws: int
    ev: float
    ev_sd: float
    loss: float | None  # nats per token
    loss_sd: float | None


@dataclass(frozen=True)
class Logit:
    """A next token that a feature raises or lowers by itself; rank 0 is the strongest."""

    ensemble: str
    seed: int
    feature: int
    sign: int  # 1: raised, -1: lowered
    rank: int
    token: int
    logit: float
