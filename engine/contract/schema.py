"""THE CONTRACT between engine and dashboard: one dataclass per table, one field per column. Standard library only.

Layout. The all-pairs result is members x d_sae x comparisons best cosines. It is kept as one row per anchor feature
with arrays in comparison order (the ensemble's seeds, ascending, without the anchor's own), not as one row per pair:
keys are not repeated 95 times and a feature page reads one row. Counting `cosines >= theta` over 96 x 16,384 such rows takes
a second, so the Writer also derives, for every theta on a grid of hundredths, how many entries reach it (THETA_COUNTED): one
byte per feature, theta and rule, and moving theta reads one column of bytes. Off the grid the lists themselves are counted.
The columns that every list page needs stand in Feature; the rest in Match. One cosine list per rule: its entry is the cosine
that theta is compared with, and NO_MATCH where the rule forms no pair.

What was not computed is None (a list column: empty), never zero; Ensemble.computed names what was. A study without a model
has no tokens, so its activity columns are None throughout: matching and stability need the decoders alone.
"""

import re
from dataclasses import dataclass, fields
from types import NoneType
from typing import NamedTuple, get_args, get_origin

from seedscope.engine.contract.tables import pools, synthetic, training
from seedscope.engine.contract.tables.spans import (
    FeatureSpan,
    SpanCurve,
    SpanMember,
    SpanPair,
    SpanPrediction,
    SpanResidual,
)

SCHEMA_VERSION = 7
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
# What addresses already mean; a study or ensemble of such a name could not be opened.
PAGE_NAMES = frozenset(
    {"features", "members", "subspaces", "ablation", "trajectory", "variants", "starts", "synthetic", "pool", "compare",
     "neighbours", "match", "project", "try", "random", "methods", "jobs", "healthz", "metrics", "docs", "static", "index"}
)  # fmt: skip
PAGE_SUFFIXES = (".json", ".csv", ".parquet")
RULES = ("argmax", "live", "mutual", "hungarian", "both")
PAIR_RULES = tuple(rule for rule in RULES if rule != "live")  # that need no activity: for two SAEs without a study
TRIGGERS = ("single token", "family", "number", "punctuation", "substring", "position", "previous token", "other")
NO_MATCH = -1.0  # cosine where there is no pair; no theta but -1 itself reaches it
N_THETAS = 101  # the grid: 0.00, 0.01 .. 1.00
ANALYSES = (
    "match",
    "activity",
    "ablate",
    "explain",
    "loss",
    "subspaces",
    "trajectory",
)  # what `seedscope analyze` computes, in the order of their columns
PROGRESS_VARIABLE = (
    "SEEDSCOPE_PROGRESS"  # environment: a file in which running commands keep their StageProgress, as JSON
)
CURRENT = "CURRENT"  # file beside the stores: line 1 names the published store, line 2 what it was built from


@dataclass(frozen=True)
class Study:
    """One row: what the study stands on; without a model, the fields from `model` to `corpus_remark` are None."""

    study: str
    schema_version: int
    seedscope_version: str
    model: str | None
    model_digest: str | None
    causal: bool | None  # False: every token sees all others, so there is no next-token loss
    n_ctx: int | None
    token_policy: str | None
    eval_token_digest: str | None
    n_eval_tokens: int | None
    corpus_remark: str | None
    device: str
    precision: str
    synthetic: bool = False  # made of known true features: there is activity, and no language model


@dataclass(frozen=True)
class Ensemble:
    """Members that differ only in their seed, and how they are matched; what an import cannot know is None."""

    ensemble: str
    origin: str  # trained: by SeedScope; imported: by another library or elsewhere
    hookpoint: str | None
    variant: str  # the architecture, as people call it: topk, relu, jumprelu, gated, groupmax
    convention: str  # the forward pass: the fields of engine.saes.convention.Convention as JSON
    d_in: int
    d_sae: int
    k: int | None  # active features per token where that is fixed
    n_members: int
    n_comparisons: int  # per anchor: n_members - 1
    shared_start: str  # yes, no, unknown
    data_order: str  # shared, independent, unknown
    train_token_digest: str | None
    n_train_tokens: int | None  # distinct tokens that activations were harvested from
    train_tokens: int | None  # per member
    batch: int | None
    lr: float | None
    recipe: (
        str | None
    )  # how it was trained here: the fields of engine.contract.recipe.TrainConfig that its variant uses, as JSON
    anchor: int | None  # the member whose recipe differs from the others', such as a public SAE; None where none does
    rule: str
    theta: float
    epsilon: float
    n_tokens: int | None  # evaluation tokens that count at its hook point; None without activity, as is n_outliers
    n_outliers: int | None  # further ones, left out because their activations are far longer than the others'
    span_rank: int | None  # the rank that pages on subspaces show first; None where they were not computed
    span_remarks: list[str]  # what a reader of the subspaces should know
    n_clusters: (
        int | None
    )  # connected components of matches, which predictability is split by; None where it was not told
    largest_cluster: float | None  # its share of the rows: near 1, a split by clusters says little
    digest: str  # over the members' SAE digests and the matching settings: a permalink's v
    folder: str  # of the members' files, relative to the study's folder
    control_of: str | None  # the ensemble whose recipe this one repeats on the model with random weights
    computed: list[str]  # of ANALYSES
    remarks: list[str]  # what a reader of its numbers should know


@dataclass(frozen=True)
class Member:
    """One SAE and where it comes from."""

    ensemble: str
    seed: int
    sae_digest: str
    source: str | None  # the path that it was imported from, as given
    library: str | None  # that wrote it, with its version where it is recorded
    trained_on: str | None  # the model and hook point that the file itself names
    remarks: list[str]
    ev: float | None
    l0: float | None
    n_dead: int | None
    loss_own: float | None  # nats per token of the model itself, on the tokens that loss is measured on
    loss_spliced: float | None  # with the reconstruction in place of the activations
    loss_zero: float | None  # with zeros in their place
    n_loss_tokens: int | None
    n_undirected: int  # decoder rows that are zero or not finite: they match nothing and count as dead
    histogram_edges: list[float]  # of its features' activation histograms


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


@dataclass(frozen=True)
class Explanation:
    """What one explainer says of a feature."""

    ensemble: str
    seed: int
    feature: int
    explainer: str  # "token rule", "openai:" and the model's name, or what an import names
    text: str | None  # None where explaining failed
    failure: str | None  # why there is no text


@dataclass(frozen=True)
class Score:
    """How well an explanation tells contexts that hold the feature from others, on documents that its explainer did not see."""

    ensemble: str
    seed: int
    feature: int
    explainer: str
    kind: str  # detection, fuzzing
    value: float | None  # balanced accuracy; None where scoring failed
    shuffled: float | None  # the same with shuffled labels, mean over draws
    shuffled_p95: float | None  # what 95 % of the draws stay below, or reach
    n_active: int
    n_silent: int
    said: list[
        int
    ]  # per context of Scored: 1 said active, 0 said silent, -1 no answer; empty where these are not known
    failure: str | None  # why there is no value


@dataclass(frozen=True)
class Scored:
    """The contexts that a feature's explanations are scored on; lists have one entry per context."""

    ensemble: str
    seed: int
    feature: int
    kinds: list[
        int
    ]  # 0: active, 1: near miss (silent, but it holds tokens that set the feature off elsewhere), 2: silent
    windows: list[int]
    offsets: list[int]  # of the first token in its window
    lengths: list[int]
    masks: list[int]  # bit i is set where the feature is active on token i


@dataclass(frozen=True)
class Word:
    """A word of a feature's explanations, for search: the inverted table."""

    ensemble: str
    word: str  # lower case
    seed: int
    feature: int


@dataclass(frozen=True)
class TokenWindow:
    """A window of the evaluation tokens as the model reads it."""

    id: int
    document: int
    start: int  # position in the document of the first token that is not BOS
    token_ids: list[int]  # BOS in front where there is one; without padding


@dataclass(frozen=True)
class Token:
    """How a token id is shown."""

    id: int
    text: str


@dataclass(frozen=True)
class Document:
    """A document of the evaluation tokens."""

    id: int
    name: str


REQUIRED = (Study, Ensemble, Member, Feature, Match, Pair, NullMatch)  # without their rows no page can be drawn
TABLES = (
    Study, Ensemble, Member, Feature, Match, Pair, NullMatch, Context, Ablation, SpanCurve, SpanPair,
    SpanMember, SpanResidual, SpanPrediction, FeatureSpan, Logit, Explanation, Score, Scored, Word,
    TokenWindow, Token, Document, *synthetic.SORT_KEYS, *training.SORT_KEYS, *pools.SORT_KEYS,
)  # fmt: skip
SORT_KEYS: dict[type, tuple[str, ...]] = {
    Study: ("study",),
    Ensemble: ("ensemble",),
    Member: ("ensemble", "seed"),
    Feature: ("ensemble", "seed", "feature"),
    Match: ("ensemble", "seed", "feature"),
    Pair: ("ensemble", "rule", "seed", "other"),
    NullMatch: ("ensemble", "kind", "seed", "feature"),
    Context: ("ensemble", "seed", "feature", "group", "rank"),
    Ablation: ("ensemble", "seed", "mask", "n_masked"),
    SpanCurve: ("ensemble", "curve", "rank"),
    SpanPair: ("ensemble", "seed", "other"),
    SpanMember: ("ensemble", "seed"),
    SpanResidual: ("ensemble", "bucket", "k"),
    SpanPrediction: ("ensemble", "setting"),
    FeatureSpan: ("ensemble", "seed", "feature"),
    Logit: ("ensemble", "seed", "feature", "sign", "rank"),
    Explanation: ("ensemble", "seed", "feature", "explainer"),
    Score: ("ensemble", "seed", "feature", "explainer", "kind"),
    Scored: ("ensemble", "seed", "feature"),
    Word: ("ensemble", "word", "seed", "feature"),
    TokenWindow: ("id",),
    Token: ("id",),
    Document: ("id",),
    **synthetic.SORT_KEYS,
    **training.SORT_KEYS,
    **pools.SORT_KEYS,
}
# {table: {list column: rule}}: the Writer counts these lists at every theta of the grid.
RULE_COLUMN = {
    "argmax": "cosines", "live": "live_cosines", "mutual": "mutual_cosines", "hungarian": "hungarian_cosines",
    "both": "both_cosines",
}  # fmt: skip
THETA_COUNTED: dict[type, dict[str, str]] = {
    Feature: {column: rule for rule, column in RULE_COLUMN.items()},
    NullMatch: {"cosines": "argmax"},
}


@dataclass(frozen=True)
class StageProgress:
    """How far the stage is that a command works on."""

    stage: str
    unit: str  # of done and total
    done: int
    total: int | None  # None before the first report
    rate: float  # units per second since the stage began


def count_column(rule: str, index: int) -> str:
    """Name of the derived column that counts a rule's matches at theta = index / 100."""
    return f"n_{rule}_{index:03d}"


def theta_index(theta: float) -> int | None:
    """Where theta stands on the grid, None where it stands beside it."""
    index = round(theta * (N_THETAS - 1))
    return index if 0 <= index < N_THETAS and abs(index / (N_THETAS - 1) - theta) < 1e-9 else None


def name_problem(name: str) -> str | None:
    """What is wrong with a study's or ensemble's name; None for one that addresses can hold."""
    if not re.fullmatch(NAME_PATTERN, name):
        return f"expected {NAME_PATTERN}"
    if name in PAGE_NAMES:
        return "expected another name: this one is a page"
    if name.endswith(PAGE_SUFFIXES):
        return f"expected a name that does not end in {', '.join(PAGE_SUFFIXES)}: these are other forms of a page"
    return None


class Column(NamedTuple):
    """What a column holds."""

    kind: type  # int, float, bool or str
    is_list: bool
    optional: bool  # None says that it was not computed


def columns(table: type) -> dict[str, Column]:
    """{column: what it holds} of a table."""
    found = {}
    for f in fields(table):
        kinds = [kind for kind in get_args(f.type) or (f.type,) if kind is not NoneType]
        is_list = get_origin(f.type) is list
        found[f.name] = Column(kinds[0], is_list, not is_list and NoneType in get_args(f.type))
    return found
