"""Settings of a study and of training, as frozen dataclasses; the field docstrings are shown by `--help` and in errors."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from seedscope.engine.contract.schema import LARGEST_SEED

DataOrder = Literal["shared", "independent"]
Centroids = Literal["shared", "independent", "random"]
DataSample = Literal["shared", "independent"]
Start = Literal["random", "random-shared", "kmeans-shared", "kmeans-independent", "mixtures"]
Preprocessing = Literal["raw", "centred", "standardised"]
DecoderBias = Literal["learned", "none"]
Variant = Literal["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated", "archetypal", "relaxed-archetypal"]
SHARED_STARTS: tuple[Start, ...] = ("random-shared", "kmeans-shared")
VARIANTS: tuple[Variant, ...] = get_args(Variant)
_FOR_ALL = (
    "d_sae", "seeds", "data_order", "data_sample", "data_samples", "n_tokens", "batch", "lr", "warmup_frac", "decay_frac",
    "encoder_scale",
)  # fmt: skip
# Fields added after the first release: `as_parameters` leaves them out at their defaults, so that older digests stay valid.
_LATER = ("start", "preprocessing", "decoder_bias", "data_sample", "data_samples", "encoder_scale")
_FREE = ("start", "preprocessing", "decoder_bias")
_AUXK = ("aux_coefficient", "aux_k", "silent_after")
_OWN: dict[Variant, tuple[str, ...]] = {
    "topk": ("k", *_AUXK, *_FREE),
    "batchtopk": ("k", *_AUXK, *_FREE),
    "matryoshka": ("k", "group_fracs", *_AUXK, *_FREE),
    "relu": ("l1", "sparsity_warmup_frac", *_FREE),
    "jumprelu": ("k", "l0_coefficient", "bandwidth", "sparsity_warmup_frac", *_FREE),
    "gated": ("l1", "sparsity_warmup_frac", *_FREE),
    "archetypal": ("k", "centroids", *_AUXK, "preprocessing", "decoder_bias"),
    "relaxed-archetypal": ("k", "centroids", "delta", *_AUXK, "preprocessing", "decoder_bias"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How an ensemble is trained. The defaults are the recipe of dictionary_learning, as Song et al. use it.

    Lengths (delta, bandwidth, l1) are those of inputs that were preprocessed and scaled to unit mean square norm. Fields that
    a variant does not use may have any value; `uses` says which it does.
    """

    d_sae: int = 512
    """Features per member."""
    k: int = 8
    """Active features per token: of every token (topk, archetypal), on average over a batch (batchtopk, matryoshka), or
    what the sparsity term aims at (jumprelu)."""
    seeds: tuple[int, ...] = tuple(range(8))
    """One member per seed; the seed draws the member's decoder rows."""
    data_order: DataOrder = "shared"
    """`shared`: all members see one stream, so they differ in their start alone; `independent`: each shuffles for itself."""
    data_sample: DataSample = "shared"
    """`shared`: all members train on the first of the samples that the rows are dealt into; `independent`: the one with seed s
    on sample s modulo `data_samples`."""
    data_samples: int = 1
    """Disjoint samples of equal size, consecutive rows each, that the training rows are dealt into."""
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
    variant: Variant = "topk"
    """What is trained; see engine.training.variants."""
    l1: float = 0.06
    """Weight of the summed activations (relu, gated)."""
    l0_coefficient: float = 1.0
    """Weight of (L0 / k - 1)^2 (jumprelu)."""
    bandwidth: float = 0.02
    """Width of the window around a threshold in which pre-activations move it (jumprelu)."""
    sparsity_warmup_frac: float = 0.05
    """Share of the steps in which l1 or l0_coefficient rises linearly (relu, gated, jumprelu)."""
    group_fracs: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Shares of the features in each nested group; every prefix of groups has to reconstruct by itself (matryoshka)."""
    centroids: Centroids = "shared"
    """`shared`: all members begin at, and stay in the hull of, one k-means of the activations; `independent`: each has its
    own; `random`: each has its own random choice of activations, and begins at random mixtures of them (archetypal,
    relaxed-archetypal)."""
    delta: float = 0.1
    """How far a row may leave the hull of the centroids (relaxed-archetypal)."""
    start: Start = "random"
    """Where decoder rows begin, each then of unit length: `random` directions, `random-shared` (those of seed 0 for all members,
    and its encoder), `kmeans-shared` at one k-means of the activations, `kmeans-independent` at one of the member's own, or
    `mixtures` of activations that the member chose at random, which is where an archetypal one begins whose centroids are
    `random` (variants with free rows)."""
    preprocessing: Preprocessing = "raw"
    """What is done to activations before they are scaled: nothing, `centred` (their mean is subtracted), or `standardised`
    (and every dimension divided by its standard deviation). The members take raw activations whatever it is."""
    decoder_bias: DecoderBias = "learned"
    """`learned`, from the geometric median on; `none`: members reconstruct preprocessed activations without one (as those of
    Fel et al. 2025 do)."""

    encoder_scale: float = 1.0
    """Length that encoder columns begin with; 1 is that of decoder rows. SAELens' TopK begins at 0.1. It changes how far short
    trainings come: see templates/manual/measured.md."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("variant", VARIANTS),
            ("data_order", get_args(DataOrder)),
            ("data_sample", get_args(DataSample)),
            ("centroids", get_args(Centroids)),
            ("start", get_args(Start)),
            ("preprocessing", get_args(Preprocessing)),
            ("decoder_bias", get_args(DecoderBias)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(repr, allowed))}")
        if self.d_sae < 1:
            raise ValueError(f"d_sae is {self.d_sae}, expected at least 1")
        if "k" in self.uses and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k is {self.k}, expected 1 to d_sae ({self.d_sae}); lower k or raise d_sae")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds are {list(self.seeds)}, expected at least one and no seed twice")
        if max(self.seeds) > LARGEST_SEED:
            raise ValueError(
                f"seeds are {list(self.seeds)}, expected at most {LARGEST_SEED}, which 64 bits hold: give other --seeds"
            )
        if self.data_samples < 1:
            raise ValueError(f"data_samples is {self.data_samples}, expected at least 1")
        if self.data_sample == "independent" and len({s % self.data_samples for s in self.seeds}) < len(self.seeds):
            raise ValueError(
                f"data_samples is {self.data_samples} for seeds {list(self.seeds)}, expected a sample for each: seed s takes "
                f"sample s modulo data_samples; set data_samples = {max(self.seeds) + 1} or leave data_sample out"
            )
        if self.n_tokens < self.batch:
            raise ValueError(f"n_tokens is {self.n_tokens}, expected at least one batch ({self.batch})")
        for name in ("lr", "bandwidth", "encoder_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        for name in ("l1", "l0_coefficient", "aux_coefficient", "delta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number of at least 0")
        if "group_fracs" in self.uses:
            if not self.group_fracs or min(self.group_fracs) <= 0 or not math.isclose(sum(self.group_fracs), 1):
                raise ValueError(
                    f"group_fracs are {list(self.group_fracs)} with the sum {sum(self.group_fracs):.6g}, expected positive "
                    "shares with the sum 1"
                )
            if min(self.group_sizes) < 1:
                raise ValueError(
                    f"group_fracs {list(self.group_fracs)} leave a group of {self.d_sae} features empty, expected at least "
                    "one feature in each; raise d_sae or take fewer groups"
                )
        object.__setattr__(self, "seeds", tuple(sorted(self.seeds)))

    @property
    def uses(self) -> tuple[str, ...]:
        """The fields that this variant's weights depend on."""
        return _FOR_ALL + _OWN[self.variant]

    @property
    def shares_start(self) -> bool:
        """Whether all members begin at the same decoder rows."""
        return self.centroids == "shared" if "centroids" in self.uses else self.start in SHARED_STARTS

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Features in each nested group; the last takes what rounding leaves."""
        sizes = [int(share * self.d_sae) for share in self.group_fracs[:-1]]
        return (*sizes, self.d_sae - sum(sizes))


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
    """The settings as plain JSON values, for digests and provenance; of a recipe, those that its variant uses.

    Digests of older studies must not change. So a recipe does not contain fields that its variant does not use, fields of
    _LATER at their defaults, or the variant `topk`, which was once the only one.
    """
    train = config if isinstance(config, TrainConfig) else config.train
    recipe = {name: getattr(train, name) for name in train.uses}
    recipe = {
        name: value for name, value in recipe.items() if name not in _LATER or value != getattr(TrainConfig, name)
    }
    recipe |= {} if train.variant == "topk" else {"variant": train.variant}
    return recipe if train is config else asdict(config) | {"train": recipe}
