"""The schema of a store: its tables, their sort keys, and the columns that the Writer derives. Standard library only.

A table is a dataclass of `engine.contract.tables`, a column one of its fields.

Best cosines. Matching gives members x d_sae x comparisons best cosines. They are stored as one row per anchor feature, with
a list that has one entry per comparison (the ensemble's other members, by ascending seed), rather than one row per pair of
features: the keys are not repeated for each of up to 95 comparisons, and a feature's page reads one row. Every matching rule
has a list of its own. An entry is the cosine that theta is compared with (under `active` the correlation of activations),
or NO_MATCH where the rule forms no pair. The lists that list pages read are in Feature, everything else about partners is in Match.

Beside the store. What list pages read of 3 million features does not come from these tables but from an index of narrow arrays,
which is derived from them: `engine.contract.index.layout` says which and why.

Missing values. What was not computed is None, or an empty list, never zero; Ensemble.computed names the analyses that were
made. A study without a model has no tokens, so all its activity columns are None: matching and stability need decoders alone.
"""

from dataclasses import fields
from types import NoneType
from typing import NamedTuple, get_args, get_origin

from seedscope.engine.contract.tables import function, pools, predictions, shared_spans, synthetic, training
from seedscope.engine.contract.tables.explanations import Explanation, Score, Scored, Word
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Logit, Match, NullMatch, Pair
from seedscope.engine.contract.tables.spans import (
    FeatureSpan,
    SpanCurve,
    SpanMember,
    SpanPair,
    SpanPrediction,
    SpanResidual,
)
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token, TokenWindow

SCHEMA_VERSION = 10
READABLE = range(
    6, SCHEMA_VERSION + 1
)  # schemas of stores and exports that are read; see engine.contract.former_stores
RULES = ("argmax", "live", "mutual", "hungarian", "both", "active")
ACTIVITY_RULES = ("live", "active")  # that need to know what fires
PAIR_RULES = tuple(rule for rule in RULES if rule not in ACTIVITY_RULES)  # for two SAEs without a study
# Under these theta cuts cosines of decoder or encoder rows; under `active`, correlations of activations.
DECODER_RULES = tuple(rule for rule in RULES if rule != "active")
TRIGGERS = ("single token", "family", "number", "punctuation", "substring", "position", "previous token", "other")
LARGEST_SEED = 2**63 - 1  # what the columns of seeds hold
# Columns of whole numbers that hold seeds or count tokens, in every table: 64 bits wide. Stores written before had 32 bits; they
# are read as well.
SEED_COLUMNS = frozenset({"seed", "other", "anchor", "halves", "fresh"})
TOKEN_COLUMNS = frozenset({
    "tokens", "n_tokens", "n_eval_tokens", "n_train_tokens", "train_tokens", "n_loss_tokens", "n_outliers", "n_evaluated",
    "n_active",
})  # fmt: skip
WIDE_COLUMNS = SEED_COLUMNS | TOKEN_COLUMNS
NO_MATCH = -1.0  # cosine where there is no pair: below every theta but -1 itself
N_THETAS = 101  # the grid: 0.00, 0.01 .. 1.00
# What `seedscope analyze` computes, in the order of the columns that hold it.
ANALYSES = (
    "match",
    "activity",
    "ablate",
    "explain",
    "loss",
    "subspaces",
    "trajectory",
    "predictor",
    "function",
    "shared_spans",
)

# Tables without whose rows no page can be drawn.
REQUIRED: tuple[type, ...] = (Study, Ensemble, Member, Feature, Match, Pair, NullMatch)
TABLES: tuple[type, ...] = (
    Study, Ensemble, Member, Feature, Match, Pair, NullMatch, Context, Ablation, SpanCurve, SpanPair,
    SpanMember, SpanResidual, SpanPrediction, FeatureSpan, Logit, Explanation, Score, Scored, Word,
    TokenWindow, Token, Document, *synthetic.SORT_KEYS, *training.SORT_KEYS, *pools.SORT_KEYS,
    *predictions.SORT_KEYS, *function.SORT_KEYS, *shared_spans.SORT_KEYS,
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
    **predictions.SORT_KEYS,
    **function.SORT_KEYS,
    **shared_spans.SORT_KEYS,
}
# {rule: column of Feature that holds its cosines, or correlations}.
RULE_COLUMN = {
    "argmax": "cosines", "live": "live_cosines", "mutual": "mutual_cosines", "hungarian": "hungarian_cosines",
    "both": "both_cosines", "active": "active_correlations",
}  # fmt: skip


def theta_index(theta: float) -> int | None:
    """Index of theta on the grid, None for a theta that is not on it."""
    index = round(theta * (N_THETAS - 1))
    return index if 0 <= index < N_THETAS and abs(index / (N_THETAS - 1) - theta) < 1e-9 else None


class Column(NamedTuple):
    """Type of a column's values."""

    kind: type  # int, float, bool or str; of a list column, that of its entries
    is_list: bool
    optional: bool  # whether values may be None, which says that they were not computed


def columns(table: type) -> dict[str, Column]:
    """{column: its type} of a table."""
    types = {}
    for f in fields(table):
        kinds = [kind for kind in get_args(f.type) or (f.type,) if kind is not NoneType]
        is_list = get_origin(f.type) is list
        types[f.name] = Column(kinds[0], is_list, not is_list and NoneType in get_args(f.type))
    return types
