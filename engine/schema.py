"""THE CONTRACT between engine and dashboard: one dataclass per table, one field per column. Standard library only.

Layout. The all-pairs result is members x d_sae x comparisons best cosines. It is kept as one row per anchor feature
with arrays in comparison order (the ensemble's seeds, ascending, without the anchor's own), not as one row per pair:
keys are not repeated 95 times, a feature page reads one row, and re-thresholding (`cosines >= theta`, counted) scans
one column. The columns that every list page needs, `cosines` among them, stand in Feature; the rest in Match.
"""

from dataclasses import dataclass, fields
from typing import get_args, get_origin

SCHEMA_VERSION = 1
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
CURRENT = "CURRENT"  # file beside the stores: line 1 names the published store, line 2 what it was built from


@dataclass(frozen=True)
class Study:
    """One row: what the study stands on."""

    study: str
    schema_version: int
    seedscope_version: str
    model: str
    model_digest: str
    hookpoint: str
    n_ctx: int
    token_policy: str
    eval_token_digest: str
    n_eval_tokens: int
    train_token_digest: str
    n_train_tokens: int  # distinct tokens that activations were harvested from
    corpus_remark: str
    device: str
    precision: str


@dataclass(frozen=True)
class Ensemble:
    """Members that differ only in their seed, and how they are matched."""

    ensemble: str
    variant: str
    d_in: int
    d_sae: int
    k: int
    n_members: int
    n_comparisons: int  # per anchor: n_members - 1
    shared_start: str  # yes, no, unknown
    data_order: str
    train_tokens: int  # per member
    batch: int
    lr: float
    rule: str
    theta: float
    epsilon: float
    digest: str  # over the members' SAE digests and the matching settings: a permalink's v


@dataclass(frozen=True)
class Member:
    """One SAE."""

    ensemble: str
    seed: int
    sae_digest: str
    ev: float
    l0: float
    n_dead: int
    histogram_edges: list[float]  # of its features' activation histograms


@dataclass(frozen=True)
class Feature:
    """One decoder row and what it does on the evaluation tokens."""

    ensemble: str
    seed: int
    feature: int
    dead: bool
    cosines: list[float]  # best cosine per comparison
    live_cosines: list[float]  # the same among the comparison's living features
    density: float  # n_active / n_tokens
    n_active: int
    n_tokens: int
    mean_activation: float
    max_activation: float
    decoder_norm: float
    worth_ev: float  # EV lost when this feature alone is masked
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
    encoder_cosines: list[float]
    live_partners: list[int]
    hungarian_partners: list[int]  # -1: stays alone, or one-to-one matching was not computed
    hungarian_cosines: list[float]
    hungarian_encoder_cosines: list[float]
    encoder_partners: list[int]  # partner under the assignment of the encoders


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
    group: int  # 0: the strongest; 1 to 5: drawn from that fifth of (0, max], the strongest fifth first
    rank: int
    document: int
    position: int  # of the peak in its document
    peak: int  # of the peak in token_ids
    token_ids: list[int]
    activations: list[float]


@dataclass(frozen=True)
class Ablation:
    """Explained variance of one member under one kind of mask."""

    ensemble: str
    seed: int
    mask: str
    n_masked: int
    n_draws: int
    ev: float
    ev_sd: float


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


TABLES = (Study, Ensemble, Member, Feature, Match, NullMatch, Context, Ablation, Token, Document)
SORT_KEYS: dict[type, tuple[str, ...]] = {
    Study: ("study",),
    Ensemble: ("ensemble",),
    Member: ("ensemble", "seed"),
    Feature: ("ensemble", "seed", "feature"),
    Match: ("ensemble", "seed", "feature"),
    NullMatch: ("ensemble", "kind", "seed", "feature"),
    Context: ("ensemble", "seed", "feature", "group", "rank"),
    Ablation: ("ensemble", "seed", "mask"),
    Token: ("id",),
    Document: ("id",),
}


def columns(table: type) -> dict[str, tuple[type, bool]]:
    """{column: (element type, is a list)} of a table."""
    return {
        f.name: (get_args(f.type)[0], True) if get_origin(f.type) is list else (f.type, False) for f in fields(table)
    }
