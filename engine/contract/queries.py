"""Questions to the live engine and its answers: what web process and engine process share. Standard library only.

On the wire a question is one line of JSON; an answer is one line of JSON that names arrays with dtype and shape, then
their bytes in that order. No pickle: neither side can make the other run anything.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_origin

KINDS = ("neighbours", "pair", "try", "loss", "project", "project_feature", "status")
SPACES = ("decoder", "encoder")
MAX_K = 1000  # neighbours per member that are given out at most
MAX_TEXT = 20_000  # characters of a text that is tried
WINDOWS = ("random", "contexts")  # that a feature's exact loss is taken on
MAX_LOSS_TOKENS = 2**16
MAX_CONTROLS = 1000  # features that one is projected beside
MAX_ACTIVE = 2**21  # active features that an answer names; a text that has more is cut

CAUSES = ("query", "busy", "late", "deadly", "fault")  # bad values; full queue; time limit; kills the engine; unknown
QUEUE_LIMIT = 256  # askers that wait at once; more are told that the engine is busy
TIME_LIMIT_S = 20.0


@dataclass(frozen=True)
class LiveQuery:
    """A question to the engine process. `folder` (under the study) and `seeds` say where the ensemble's SAEs lie."""

    kind: str  # one of KINDS
    study: str = ""
    ensemble: str = ""
    folder: str = ""
    seeds: tuple[int, ...] = ()  # of the whole ensemble
    seed: int = 0  # the anchor
    feature: int = 0  # neighbours, loss: the anchor feature
    by: str = "decoder"  # neighbours: or encoder
    k: int = 5  # neighbours: per member; fewer where a member has fewer that have a direction
    members: tuple[int, ...] = ()  # neighbours, project: seeds to look in; all, the anchor's own too, if empty
    absolute: bool = False  # the largest |cosine| instead of the largest cosine
    other: int = 0  # pair: the comparison's seed
    rule: str = "argmax"  # pair: one of schema.PAIR_RULES
    text: str = ""  # try: 1 to MAX_TEXT characters
    model: str = ""  # try, loss: digest of the model that the study was measured with; another is refused
    windows: str = "random"  # loss: one of WINDOWS
    n_tokens: int = 4096  # loss: about as many evaluation tokens, 1 to MAX_LOSS_TOKENS
    tokens: str = ""  # loss: digest of the evaluation tokens
    rank: int = 0  # project: that energies are taken at; 0: the usual one for the width
    rows: str = ""  # project, project_feature: the set whose spans are meant, as engine.contract.masks writes it, one per member
    living: str = ""  # project: the living features, likewise
    stable: str = ""  # project: the stable ones, likewise
    controls: tuple[int, ...] = ()  # project_feature: features of the anchor's member, at most MAX_CONTROLS

    def shared_key(self) -> tuple[object, ...]:
        """Queries with equal keys are answered together: by one product, or one pass through the model."""
        if self.kind == "neighbours":
            return (self.kind, self.study, self.folder, self.seeds, self.by)
        if self.kind == "try":
            return (self.kind, self.study, self.ensemble, self.folder, self.seeds, self.model)
        return (self,)


@dataclass(frozen=True)
class LiveAnswer:
    """What the engine says; either `error` is set, or what belongs to the query's kind.

    neighbours: arrays `seed`, `feature`, `cosine`, one entry per neighbour: member by member in the order asked for, the
    nearest first. pair: arrays `partner` (-1: none), `cosine` (under the rule; -1: no pair), `runner_up`, `mutual`, one
    entry per feature of the anchor; the runner-up is that of argmax; `gap` of a one-to-one matching. status: `status`.
    try: `texts` and arrays `id`, `counts` (False: as BOS, it never counts), one entry per token; `extent`, how many tokens of
    the text were read and how many it has; `count` (seeds, tokens) of active features; and, seed after seed, token after
    token, the strongest first, `feature` and `activation`, a_i * ||d_i|| as everywhere. loss: arrays `added`, `read`,
    `active` of engine.features.loss.ExactLoss, one entry per window. project: `ranks`, `rank`, `n_splits`; for
    the members `asked` for
    `n_rows` and `n_undirected`, left out as they have no direction; for those `compared` `n_fitted` and `effective_rank`;
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


def as_fields(query: LiveQuery) -> dict[str, Any]:
    """A query as JSON takes it."""
    return asdict(query)


def live_query(given: Any) -> LiveQuery:
    """A query as it arrives; raises ValueError where a field is unknown, missing or of the wrong type."""
    kinds = {f.name: f.type for f in fields(LiveQuery)}
    if not isinstance(given, dict) or not set(given) <= set(kinds) or given.get("kind") not in KINDS:
        raise ValueError(f"found no query, expected an object with kind one of {', '.join(KINDS)} and known fields")
    taken = {}
    for name, value in given.items():
        if get_origin(kinds[name]) is tuple:
            fits = isinstance(value, list | tuple) and all(type(entry) is int for entry in value)
            value = tuple(value) if fits else value
        else:
            fits = type(value) is kinds[name]
        if not fits:
            raise ValueError(f"{name} is {value!r:.80}, expected {kinds[name]}")
        taken[name] = value
    return LiveQuery(**taken)
