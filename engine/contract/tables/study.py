"""Tables of a study, its ensembles, their members, and the evaluation tokens. Standard library only."""

from dataclasses import dataclass
from typing import Any

from seedscope.engine.contract.directions import NO_OUTPUT, OUTPUT_DIRECTIONS, UNPREDICTABLE

NO_LOGITS = "no direct logits: "  # how the remark on an ensemble begins whose model's head reads no norm's output
NO_TOKENS = "activations without tokens"  # why what needs tokens is undefined in a study of recorded activations


@dataclass(frozen=True)
class Study:
    """One row: the model and the evaluation tokens; without a model, the fields from `model` to `corpus_remark` are None."""

    study: str
    schema_version: int
    seedscope_version: str
    model: str | None
    model_digest: str | None
    causal: bool | None  # False: every token sees all others, so there is no next-token loss
    n_ctx: int | None  # tokens per window, BOS included
    token_policy: str | None  # which tokens count, in words
    eval_token_digest: str | None
    n_eval_tokens: int | None  # that count
    corpus_remark: str | None  # what text they are from, in words
    device: str
    precision: str
    synthetic: bool = (
        False  # activations are samples of known true features: activity is known, there is no language model
    )

    @property
    def recorded(self) -> bool:
        """Whether activity is measured on activations that were recorded elsewhere and came without tokens."""
        return self.model is None and not self.synthetic and self.eval_token_digest is not None


@dataclass(frozen=True)
class Ensemble:
    """Members that differ only in their seed, and how they are matched; what an import does not record is None."""

    ensemble: str
    origin: str  # trained: by SeedScope; imported: by another library or elsewhere
    hookpoint: str | None  # that members read
    variant: str  # name of the architecture, such as topk, relu, jumprelu, gated, groupmax
    # The forward pass: the fields of engine.saes.convention.Convention as JSON; of transcoders `d_out` and `hookpoint_out` as well.
    convention: str
    d_in: int
    d_sae: int
    k: int | None  # active features per token where that is fixed
    n_members: int
    n_comparisons: int  # per anchor: n_members - 1
    shared_start: str  # yes, no, unknown
    data_order: str  # shared, independent, unknown
    train_token_digest: str | None
    n_train_tokens: int | None  # distinct tokens that activations were harvested from
    train_tokens: int | None  # that each member saw, repeats included
    batch: int | None  # tokens per optimiser step
    lr: float | None  # peak learning rate
    # How SeedScope trained it: the fields of engine.contract.recipe.TrainConfig that its variant uses, as JSON.
    recipe: str | None
    anchor: int | None  # the member whose recipe differs from the others', such as a public SAE; None where none does
    rule: str  # one of RULES of engine.contract.schema, the default of its pages
    theta: float  # smallest cosine that is a match, -1 to 1
    epsilon: float  # stable: p_hat >= 1 - epsilon; unstable: p_hat <= epsilon; 0 to below 0.5
    n_tokens: int | None  # evaluation tokens that count at its hook point; None without activity, as is n_outliers
    n_outliers: int | None  # further tokens, left out because the norm of their activations is far above the others'
    span_rank: int | None  # the rank that pages on subspaces show first; None where they were not computed
    span_remarks: list[str]  # what a reader of the subspaces should know
    # Connected components of the graph of matches, by which predictability is split; None where that was not computed.
    n_clusters: int | None
    largest_cluster: float | None  # share of the rows that it has, 0 to 1; near 1 a split by clusters says little
    digest: str  # over the members' SAE digests and the matching settings; the parameter v of permalinks
    folder: str  # of the members' files, relative to the study's folder
    control_of: str | None  # the ensemble whose recipe this one repeats on the model with random weights
    computed: list[str]  # those of ANALYSES (engine.contract.schema) that were made
    remarks: list[str]  # what a reader of its numbers should know

    @property
    def transcoder(self) -> bool:
        """Whether members predict activations at another hook point than they read."""
        return bool(self._forward().get("transcoder"))

    @property
    def directions(self) -> str | None:
        """What decoder rows are where they are not directions of what is read: OUTPUT_DIRECTIONS of transcoders."""
        return OUTPUT_DIRECTIONS if self.transcoder else None

    @property
    def hookpoint_out(self) -> str | None:
        """What transcoders predict; None where that is not known, and for SAEs."""
        return self._forward().get("hookpoint_out")

    @property
    def d_out(self) -> int:
        """Numbers per decoder row; d_in except in transcoders."""
        return int(self._forward().get("d_out", self.d_in))

    @property
    def undefined(self) -> str | None:
        """Why nothing that compares the output of transcoders with activations is defined; None where it is, and for SAEs."""
        if not self.transcoder:
            return None
        reasons = [remark.removeprefix(UNPREDICTABLE) for remark in self.remarks if remark.startswith(UNPREDICTABLE)]
        return f"undefined: {reasons[0]}" if reasons else None if self.hookpoint_out else NO_OUTPUT

    @property
    def place(self) -> str | None:
        """Where it reads the model, and for transcoders what it predicts."""
        if not self.transcoder:
            return self.hookpoint
        return f"{self.hookpoint or 'input hook point unknown'} → {self.hookpoint_out or 'output hook point unknown'}"

    def _forward(self) -> dict[str, Any]:
        import json  # here, because whoever reads the schema alone should not load it

        settings: dict[str, Any] = json.loads(self.convention)
        return settings


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
    ev: float | None  # explained variance on the evaluation tokens: 1 is perfect, it may be negative
    l0: float | None  # mean number of active features per token
    n_dead: int | None  # features that are active on no evaluation token
    loss_own: float | None  # next-token cross-entropy of the model itself, nats per token
    loss_spliced: float | None  # the same with the reconstruction in place of the activations
    loss_zero: float | None  # the same with zeros in their place
    n_loss_tokens: int | None  # tokens on which the three losses are means
    n_undirected: int  # decoder rows that are zero or not finite: they match nothing and count as dead
    histogram_edges: list[float]  # bin edges of its features' histograms, ascending, in units of a_i * ||d_i||


@dataclass(frozen=True)
class TokenWindow:
    """A window of the evaluation tokens as the model reads it."""

    id: int
    document: int
    start: int  # position in the document of its first token that is not BOS
    token_ids: list[int]  # with BOS in front if the model has one, without padding


@dataclass(frozen=True)
class Token:
    """The text that a token id is shown as."""

    id: int
    text: str


@dataclass(frozen=True)
class Document:
    """A document of the evaluation tokens."""

    id: int
    name: str
