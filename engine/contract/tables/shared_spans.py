"""Tables of small spans that features without counterparts share over seeds. Standard library only.

A candidate is a community of unstable features of several seeds that write each other with few features. Whether it is a shared
span is asked of every seed in turn: the discovery is repeated without that seed, the community that is then found gives a span of
`rank` directions, and its *captured energy* is the mean squared cosine with that span of those unstable features of the seed left
out that lie closest to it, as many as the community has per seed. So no span has seen the features that it is measured on, and a
null says what the same choice among as many features finds by chance. Nulls (NULL_SETS): `living` and `density` put spans of
random features in the span's place, as many per seed, drawn among the living and among the living of about the same density;
`rotated` and `second_moment` put a random dictionary in the left-out seed's place, the seed's own one rotated at random, and
Gaussian rows of the same second moment. Each p is corrected for the number of candidates (the largest statistic of a draw over
all of them). The control on the model with random weights is an ensemble of its own (Ensemble.control_of). Definitions of this
project.
"""

from dataclasses import dataclass

NULL_SETS = ("living", "density", "rotated", "second_moment")
# Why a candidate is unexplained: the null that explains it as well, or that it was not found again without a seed.
SPAN_FAILURES = (*NULL_SETS, "not_found_again")


@dataclass(frozen=True)
class SharedSpan:
    """A candidate: a small span that unstable features of several seeds may share; `kept` where it beats all nulls."""

    ensemble: str
    span: str  # id: 12 hex digits over its members and the digests of their SAEs
    number: int  # from 1: kept ones first, then by the energy that they carry; "#12"
    kept: bool
    failed: str | None  # one of SPAN_FAILURES: what speaks most against it; None where kept
    rank: int  # directions
    n_features: int  # members of all seeds together
    n_seeds: int  # seeds with members
    n_sharing: int  # seeds whose own test passes every null: "7 of 8 seeds share it"
    energy: float | None  # captured, mean over the seeds left out, 0 to 1; None where it was never found again
    living_energy: float | None  # what each null captures, mean over draws and seeds; None: not computed
    density_energy: float | None
    rotated_energy: float | None
    second_moment_energy: float | None
    p_value: float  # the largest of the nulls', corrected for the number of candidates, 0 to 1; 1 where not found again
    p_living: float | None
    p_density: float | None
    p_rotated: float | None
    p_second_moment: float | None
    found_again: int  # seeds without which the discovery finds it again
    n_left_out: int  # seeds that were left out in turn
    stability: float  # Jaccard index of its members with those found again, mean over the seeds left out, 0 to 1
    energy_share: float | None  # of the activation energy of all unstable features, what lies in this span; 0 to 1
    ev: float | None  # explained variance with all its members masked, mean over seeds; None without activity
    ev_control: float | None  # with as many living features of about the same density masked
    ev_control_sd: float | None  # over draws
    ev_whole: float | None  # with nothing masked, mean over seeds
    # Next-token loss with all its members masked, nats per token, mean over the seeds that have members; None: not computed.
    loss: float | None
    loss_control: (
        float | None
    )  # with as many living features of about the same density masked, the sets of `ev_control`
    loss_control_sd: float | None = None  # over draws
    loss_whole: float | None = None  # with nothing masked: the reconstruction in place of the activations


@dataclass(frozen=True)
class SharedSpanSeed:
    """One seed's part in a span, and its own test: the span as found without it, measured on its features."""

    ensemble: str
    span: str
    seed: int
    n_members: int  # of this seed; 0: none
    rank: int  # directions of its own members' span, at most the span's rank
    left_out_rank: int | None  # directions of the span as found without this seed; None: not found again
    energy: float | None  # captured by that span, 0 to 1
    n_measured: int | None  # features that the energy is a mean over
    p_value: float | None  # the largest over the nulls, corrected for the number of candidates
    overlap: float  # Jaccard index of the members found again without this seed, 0 to 1
    living_mean: float | None  # the null's mean and 99 % quantile over draws, of this seed and candidate alone
    living_high: float | None
    density_mean: float | None
    density_high: float | None
    rotated_mean: float | None
    rotated_high: float | None
    second_moment_mean: float | None
    second_moment_high: float | None


@dataclass(frozen=True)
class SharedSpanPair:
    """Energy that one seed's members capture of another seed: a span fitted on `seed` alone, as found without `other`."""

    ensemble: str
    span: str
    seed: int  # whose members the span is of
    other: int  # on whose features it is measured
    energy: float | None  # captured, 0 to 1; None where not found again without `other`, or without members of `seed`
    rotated_mean: float | None  # what a rotated dictionary in `other`'s place gives, and its 99 % quantile
    rotated_high: float | None
    overlap: float | None  # of the two seeds' spans, all members fitted: ||V^T W||^2 / the smaller rank, 0 to 1


@dataclass(frozen=True)
class SharedSpanFeature:
    """A member of a candidate, and how it lies in the span."""

    ensemble: str
    seed: int
    feature: int
    span: str
    energy: float  # squared cosine with the span of the other seeds' members, 0 to 1
    x: float  # coordinates of its unit decoder row on the span's first two principal directions, -1 to 1
    y: float  # 0 for a span of one direction
    activation_energy: float | None  # share of the activation energy of all its seed's unstable features, 0 to 1


@dataclass(frozen=True)
class SharedSpanDirection:
    """A principal direction of a span, of all seeds' members together or of one seed's, and what it does to the logits."""

    ensemble: str
    span: str
    basis: int  # -1: of all seeds together; else the seed's index in ascending order of seeds
    axis: int  # from 0, the strongest
    vector: list[float]  # unit, d_out; axes of a basis are orthogonal
    energy: float  # share of the members' energy along it, 0 to 1
    raised: list[int]  # Token.id of the next tokens it raises most, best first; empty for one seed's and without logits
    raised_logits: list[float]
    lowered: list[int]  # and lowers most; the sign of an axis is that of most of its members
    lowered_logits: list[float]


@dataclass(frozen=True)
class SharedSpanContext:
    """Tokens around one at which a span is strongly active.

    A token's strength is the norm of sum_i a_i P d_i over the span's members i in one seed, a_i the activation and P d_i the unit
    decoder row projected on the span (all seeds together); in units of activation.
    """

    ensemble: str
    span: str
    seed: int
    rank: int  # from 0, the strongest
    document: int  # Document.id
    position: int  # of the peak in its document, in tokens
    peak: int  # index of the peak in token_ids
    token_ids: list[int]
    norms: list[float]  # strength at each


@dataclass(frozen=True)
class SharedSpanToken:
    """A token that a span is active on, ranked by how much of the span's squared strength falls on it."""

    ensemble: str
    span: str
    rank: int  # from 0
    token: int  # Token.id
    share: float  # of the squared strength over all tokens and seeds, 0 to 1
    n_active: int  # occurrences on which any member fires, all seeds together


@dataclass(frozen=True)
class SharedSpanExplanation:
    """One explainer's description of a kept span as a whole, and how well it tells contexts apart that the explainer did not see.

    The span's activation on a token is the root mean square of its strengths over the seeds in which it is ever active.
    """

    ensemble: str
    span: str
    explainer: str  # "token rule"
    text: str | None  # None where explaining failed
    # Activation from which a token counts as active; 0: wherever it is active at all. Above 0 a quarter of all contexts are active.
    active_from: float
    value: float | None  # balanced accuracy of which contexts are active (detection), 0 to 1; None where scoring failed
    shuffled: float | None  # the same with shuffled labels, mean over draws
    shuffled_p95: float | None  # 95th percentile of these draws
    n_active: int  # contexts that were scored
    n_silent: int
    failure: str | None  # why there is no text, or no value


@dataclass(frozen=True)
class SharedSpanSummary:
    """What the discovery found in an ensemble, and which share of unstable features' energy lies in shared spans."""

    ensemble: str
    remark: str | None  # why nothing was searched: fewer than three seeds, or too few unstable features; None else
    n_features: int  # unstable living features of all seeds that were searched
    n_edges: int  # pairs of features of different seeds that are in each other's expansions
    k_max: int  # most features of another seed in an expansion
    n_draws: int  # of every null
    level: float  # corrected p at or below which a candidate is kept
    n_candidates: int
    n_kept: int
    failures: list[str]  # of SPAN_FAILURES, those that any candidate failed by
    failure_counts: list[int]
    n_members: int  # features inside kept spans
    stability: float | None  # mean of SharedSpan.stability over the kept
    weighted: bool  # whether shares weigh features by activation energy; else all alike, as activity is not known
    # Share of the unstable features' energy that lies inside kept spans, as fitted without the feature's own seed; 95 % interval
    # from a bootstrap over seeds. The rest is in nothing shared.
    shared: float | None
    shared_low: float | None
    shared_high: float | None
    member_share: float | None  # share of the energy that members of kept spans carry, inside the span or not
    # What random spans of the same ranks would hold of the members' energy: rank / d_out of it.
    chance_share: float | None
    n_loss_tokens: int | None = None  # whose prediction SharedSpan.loss is a mean over; None: not computed


SORT_KEYS: dict[type, tuple[str, ...]] = {
    SharedSpan: ("ensemble", "span"),
    SharedSpanSeed: ("ensemble", "span", "seed"),
    SharedSpanPair: ("ensemble", "span", "seed", "other"),
    SharedSpanFeature: ("ensemble", "seed", "feature"),
    SharedSpanDirection: ("ensemble", "span", "basis", "axis"),
    SharedSpanContext: ("ensemble", "span", "seed", "rank"),
    SharedSpanToken: ("ensemble", "span", "rank"),
    SharedSpanExplanation: ("ensemble", "span", "explainer"),
    SharedSpanSummary: ("ensemble",),
}
