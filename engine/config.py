"""Frozen settings of a study; the field docstrings are what `--help` and error messages say."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

DataOrder = Literal["shared", "independent"]


@dataclass(frozen=True)
class TrainConfig:
    """How an ensemble is trained. The defaults are the recipe of dictionary_learning, as Song et al. use it."""

    d_sae: int = 512
    """Features per member."""
    k: int = 8
    """Active features per token (TopK)."""
    seeds: tuple[int, ...] = tuple(range(8))
    """One member per seed; the seed draws the member's decoder rows."""
    data_order: DataOrder = "shared"
    """`shared`: all members see one stream, so they differ in their start alone; `independent`: each shuffles for itself."""
    n_tokens: int = 1_500_000
    """Training tokens per member."""
    batch: int = 1024
    """Tokens per step."""
    lr: float = 3e-3
    """Peak learning rate of Adam."""
    warmup_frac: float = 0.03
    """Share of the steps in which the rate rises linearly."""
    decay_frac: float = 0.2
    """Share of the steps, at the end, in which it falls linearly to zero."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK: silent features are asked to explain what the others leave."""
    aux_k: int = 32
    """Silent features that share in AuxK, per token."""
    silent_after: int = 100_000
    """Tokens without firing after which a feature counts as silent during training."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k is {self.k}, expected 1 to d_sae ({self.d_sae}); lower k or raise d_sae")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds are {list(self.seeds)}, expected at least one and no seed twice")
        if self.data_order not in ("shared", "independent"):
            raise ValueError(f"data_order is {self.data_order!r}, expected 'shared' or 'independent'")
        if self.n_tokens < self.batch:
            raise ValueError(f"n_tokens is {self.n_tokens}, expected at least one batch ({self.batch})")
        object.__setattr__(self, "seeds", tuple(sorted(self.seeds)))


@dataclass(frozen=True)
class StudyConfig:
    """What a study is made of: model, hook point, tokens and one trained ensemble."""

    name: str
    """Study name, `[a-z0-9][a-z0-9._-]{0,63}`."""
    ensemble: str
    """Ensemble name, same rule."""
    model: str
    """Folder or hub id of a transformers causal language model."""
    hookpoint: str
    """Where activations are read, e.g. `blocks.2.hook_resid_post`."""
    train: TrainConfig
    """The ensemble's recipe."""
    theta: float = 0.7
    """A best cosine of at least theta is a match."""
    epsilon: float = 0.05
    """Stable: p_hat >= 1 - epsilon; unstable: p_hat <= epsilon."""
    n_ctx: int = 256
    """Tokens per window, BOS included."""


def as_parameters(config: StudyConfig | TrainConfig) -> dict[str, Any]:
    """The settings as plain JSON values, for digests and provenance."""
    return asdict(config)
