"""Queries that the web process sends to the live engine, and the answers. Standard library only.

A query is sent as one line of JSON. An answer is one line of JSON that gives the dtype and shape of its arrays, followed by
their bytes in that order. Nothing is pickled, so neither process can make the other run code.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_origin

KINDS = ("neighbours", "pair", "try", "loss", "logits", "project", "project_feature", "status")
SPACES = ("decoder", "encoder")
MAX_K = 1000  # most neighbours per member in an answer
MAX_TEXT = 20_000  # most characters of a text
WINDOWS = ("random", "contexts")  # of evaluation tokens, on which a feature's exact loss is measured
MAX_LOSS_TOKENS = 2**16
LOGIT_BINS = 60  # of the histogram of a feature's direct logit effects
MAX_CONTROLS = 1000  # most control features that are projected beside one feature
ALL_SPANS = "all"  # in place of a span's id
MAX_TEXT_SPANS = 16  # most shared spans in an answer to a text: the strongest
MAX_ACTIVE = 2**21  # most active features in an answer to a text; a text that has more is cut

# Why a query fails: its values are wrong; the queue is full; the time limit is over; it crashed the engine before; any other.
CAUSES = ("query", "busy", "late", "deadly", "fault")
QUEUE_LIMIT = 256  # queries that wait at once; the next one is answered "busy"
TIME_LIMIT_S = 20.0  # seconds from a query's arrival to its answer


@dataclass(frozen=True)
class LiveQuery:
    """A query to the engine process; comments name the kinds that use a field.

    `folder`, relative to the study's folder, and `seeds` say where the files of the ensemble's SAEs are.
    """

    kind: str  # one of KINDS
    study: str = ""
    ensemble: str = ""
    folder: str = ""
    seeds: tuple[int, ...] = ()  # of the whole ensemble
    seed: int = 0  # the anchor
    feature: int = 0  # neighbours, loss, logits: the anchor feature
    by: str = "decoder"  # neighbours: or encoder
    k: int = 5  # neighbours: how many per member; fewer where a member has fewer features with a direction
    members: tuple[int, ...] = ()  # neighbours, project: seeds to search; if empty all, the anchor's own included
    absolute: bool = False  # the largest |cosine| instead of the largest cosine
    other: int = 0  # pair: the comparison's seed; loss: that of the stand-in
    stand_in: int = -1  # loss: a feature of `other` that takes the anchor's place; -1: none
    rule: str = "argmax"  # pair: one of schema.PAIR_RULES
    text: str = ""  # try: 1 to MAX_TEXT characters
    span: str = (
        ""  # try: the kept shared span whose strengths are wanted; ALL_SPANS: those of the strongest; if empty none
    )
    model: str = ""  # try, loss, logits: digest of the model that the study was measured with; any other is refused
    windows: str = "random"  # loss: one of WINDOWS
    n_tokens: int = 4096  # loss: about how many evaluation tokens are used, 1 to MAX_LOSS_TOKENS
    tokens: str = ""  # loss: digest of the evaluation tokens
    rank: int = 0  # project: rank at which energies are measured; 0: the default for the width
    rows: str = (
        ""  # project, project_feature: the features whose spans are measured, as engine.contract.masks packs them
    )
    living: str = ""  # project: the living features, packed likewise
    stable: str = ""  # project: the stable features, packed likewise
    controls: tuple[int, ...] = ()  # project_feature: features of the anchor's member, at most MAX_CONTROLS

    def shared_key(self) -> tuple[object, ...]:
        """Queries with equal keys are computed together, by one matrix product or one pass through the model."""
        if self.kind == "neighbours":
            return (self.kind, self.study, self.folder, self.seeds, self.by)
        if self.kind == "try":
            return (self.kind, self.study, self.ensemble, self.folder, self.seeds, self.model)
        return (self,)


@dataclass(frozen=True)
class LiveAnswer:
    """An answer of the engine: either `error` is set, or the fields that belong to the query's kind.

    neighbours: arrays `seed`, `feature`, `cosine`, one entry per neighbour: member by member in the order asked for, the
    nearest first. pair: arrays `partner` (-1: none), `cosine` (under the rule; -1: no pair), `runner_up`, `mutual`, one
    entry per feature of the anchor; the runner-up is that of argmax; `gap` of a one-to-one matching. status: `status`.
    try: `texts` and arrays `id`, `counts` (False: as BOS, it never counts), one entry per token; `extent`, how many tokens of
    the text were read and how many it has; `count` (seeds, tokens) of active features; and, seed after seed, token after
    token, the strongest first, `feature` and `activation`, a_i * ||d_i|| as everywhere. Where spans were asked for and are kept:
    `span`, their ids as numbers (`span_id`), at most MAX_TEXT_SPANS, the strongest on the text first, and `strength` (spans, seeds,
    tokens), as SharedSpanContext defines it; of one that was asked for by its id also `raw` (seeds, tokens), what
    `engine.live.text_spans` says, which transcoders do not have. loss: arrays `added`, `read`,
    `active` of engine.features.loss.ExactLoss, one entry per window, and with a stand-in `replaced`. logits: `counts` of the
    vocabulary's tokens in LOGIT_BINS bins between the `edges`; `moments`, their effects' mean, standard deviation, skewness and
    excess kurtosis (NaN: no spread). project: `ranks`, `rank`, `n_splits`; for the members
    `asked` for `n_rows` and `n_undirected`, the rows left out because they have no direction; for the members `compared`
    `n_fitted` and `effective_rank`;
    (3, ranks) mean, standard deviation and number of pairs as `within`, `cross`, `random_set`, `stable` (these two may be
    absent) and `overlap`; `seed`, `feature`, `own`, `others`, one entry per row; NaN: no span of that rank.
    project_feature: `ranks`, `rank`; per other member `seed`, `n_rank`, `energy` (members, ranks) and `control` (members,
    controls, ranks).
    """

    arrays: dict[str, Any] = field(default_factory=dict)  # NumPy arrays, read-only
    gap: float | None = None  # proven relative distance of the one-to-one matching to the optimum
    status: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)  # what the tokens look like
    error: str | None = None
    cause: str = ""  # of an error: one of CAUSES

    def rows(self) -> list[tuple[Any, ...]]:
        """The arrays as rows of Python numbers, e.g. (seed, feature, cosine)."""
        return list(zip(*(array.tolist() for array in self.arrays.values()), strict=True))


def span_id(number: int) -> str:
    """The id of a shared span, 12 hex digits, from its number in an answer."""
    return f"{number:012x}"


def as_fields(query: LiveQuery) -> dict[str, Any]:
    """A query as a dictionary for JSON."""
    return asdict(query)


def live_query(message: Any) -> LiveQuery:
    """The query in a decoded JSON message; raises ValueError where a field is unknown, missing or of the wrong type."""
    kinds = {f.name: f.type for f in fields(LiveQuery)}
    if not isinstance(message, dict) or not set(message) <= set(kinds) or message.get("kind") not in KINDS:
        raise ValueError(f"found no query, expected an object with kind one of {', '.join(KINDS)} and known fields")
    values = {}
    for name, value in message.items():
        if get_origin(kinds[name]) is tuple:
            fits = isinstance(value, list | tuple) and all(type(entry) is int for entry in value)
            value = tuple(value) if fits else value
        else:
            fits = type(value) is kinds[name]
        if not fits:
            raise ValueError(f"{name} is {value!r:.80}, expected {kinds[name]}")
        values[name] = value
    return LiveQuery(**values)
