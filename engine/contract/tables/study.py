"""Tables of what a study stands on: its model, ensembles, members and evaluation tokens. Standard library only."""

from dataclasses import dataclass


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
