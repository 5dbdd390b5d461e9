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

from dataclasses import fields
from types import NoneType
from typing import NamedTuple, get_args, get_origin

from seedscope.engine.contract.tables import pools, synthetic, training
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

SCHEMA_VERSION = 7
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


REQUIRED: tuple[type, ...] = (
    Study,
    Ensemble,
    Member,
    Feature,
    Match,
    Pair,
    NullMatch,
)  # without their rows no page can be drawn
TABLES: tuple[type, ...] = (
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


def count_column(rule: str, index: int) -> str:
    """Name of the derived column that counts a rule's matches at theta = index / 100."""
    return f"n_{rule}_{index:03d}"


def theta_index(theta: float) -> int | None:
    """Where theta stands on the grid, None where it stands beside it."""
    index = round(theta * (N_THETAS - 1))
    return index if 0 <= index < N_THETAS and abs(index / (N_THETAS - 1) - theta) < 1e-9 else None


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
