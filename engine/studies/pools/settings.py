"""Settings of a feature pool, the recipe of its post-training, and what every step of pooling reads."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.progress import Progress
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.pools.posttrain import recipe_of
from seedscope.engine.studies.pools.record import FORMAT_VERSION, members_of

TOKENS = 2_000_000  # of post-training at most unasked; the ensemble's own length where that is shorter


@dataclass(frozen=True)
class PoolSettings:
    """What a pool is made with."""

    tokens: int | None = None
    """Of post-training; TOKENS or the ensemble's own if not given, 0 for none."""
    texts: tuple[str, ...] = ()
    """What to train on; see engine.activations.documents.documents. The study's training text where it is known."""
    theta: float | None = None
    """The study's if not given."""
    loss_tokens: int | None = None
    """That the loss is measured on; LOSS_TOKENS where that is cheap if not given, 0 for no loss."""
    device: str = "auto"
    replaced: bool = False
    """Whether a pool of other members or settings that lies in the folder gives way."""


@dataclass(frozen=True)
class PoolRun:
    """One ensemble while it is pooled: what every step reads."""

    study: Path
    plan: catalogue.StudyPlan
    entry: catalogue.EnsemblePlan
    members: SAE
    theta: float
    settings: PoolSettings
    recipe: TrainConfig | None
    """Of post-training; None without."""
    device: torch.device
    progress: Progress
    executor: Executor = HERE
    """Where harvests and trainings run."""

    @property
    def name(self) -> str:
        """The ensemble's."""
        return self.entry.name


def post_training_recipe(entry: catalogue.EnsemblePlan, members: SAE, settings: PoolSettings) -> TrainConfig | None:
    """The recipe of post-training; None where none is asked for. Raises ValueError for members that cannot be trained on."""
    tokens = min(TOKENS, entry.train_tokens or TOKENS) if settings.tokens is None else settings.tokens
    if tokens == 0:
        return None
    set_by_study = {name: value for name in ("batch", "lr") if (value := getattr(entry, name)) is not None}
    try:
        return recipe_of(members, entry.recipe, tokens, variant=entry.variant, **set_by_study)
    except ValueError as error:
        raise ValueError(
            f"ensemble {entry.name} cannot be trained on: {error}; pass --tokens 0 for the pool without post-training"
        ) from None


def settings_digest(
    plan: catalogue.StudyPlan,
    entry: catalogue.EnsemblePlan,
    settings: PoolSettings,
    recipe: TrainConfig | None,
    theta: float,
) -> str:
    """16 hex digits over all that a pool depends on, but the content of files that are named."""
    recorded = plan.activations and plan.activations.digest  # in place of tokens
    tokens, members = plan.tokens and asdict(plan.tokens), [asdict(member) for member in members_of(entry)]
    content = [FORMAT_VERSION, members, theta, recipe and as_parameters(recipe), entry.train_tokens, entry.recipe,
               settings.texts, settings.loss_tokens, plan.model, tokens or recorded, entry.hookpoint]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
