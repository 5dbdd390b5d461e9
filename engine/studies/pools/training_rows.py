"""Post-training of a pool: the text or samples it reads, their activations, and the fresh seeds trained on the same rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from seedscope.engine.activations.documents import Document, documents, split
from seedscope.engine.activations.harvest import harvest, tokenize
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.demo import stdlib
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.evaluator import Evaluator
from seedscope.engine.studies.pools.posttrain import DATA_SAMPLES, lengths
from seedscope.engine.studies.pools.record import PoolTraining
from seedscope.engine.studies.pools.settings import PoolRun
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.studies.synthetic.generator import TRAINING
from seedscope.engine.studies.synthetic.samples import draw_rows
from seedscope.engine.studies.train import checkpoints_of, enough
from seedscope.engine.training.batches import Rows
from seedscope.engine.training.ensemble import train_ensemble

N_FRESH = 2


class TrainingText(NamedTuple):
    """Documents to train on, and where they come from in words."""

    documents: Iterable[Document]
    source: str
    n_ctx: int | None  # tokens per window


@dataclass(frozen=True)
class PostTraining:
    """What SAEs are trained further with."""

    recipe: TrainConfig
    rows: Rows
    about: PoolTraining
    """What a record says of the rows."""
    rows_at: Path | None = None
    """Where a harvest left the rows; None for samples."""

    @property
    def lengths(self) -> list[int]:
        """Lengths that curves are measured at, in tokens, from 0 on."""
        return lengths(self.recipe.n_tokens, self.recipe.batch)

    @property
    def length(self) -> int:
        """The length that was asked for, in tokens, whole batches."""
        return whole_batches(self.recipe)


def whole_batches(recipe: TrainConfig) -> int:
    """Tokens that a training by a recipe reads: its length without an incomplete batch."""
    return recipe.n_tokens // recipe.batch * recipe.batch


def training_text(run: PoolRun) -> TrainingText | None:
    """The text to train on; None for a synthetic study. Raises ValueError where the study names none to train on."""
    plan, texts = run.plan, run.settings.texts
    if synthetic.read(run.study):
        if texts:
            raise ValueError(f"{plan.name} is a synthetic study, trained on samples of its own; leave out --text")
        return None
    if plan.activations:
        raise ValueError(
            f"{plan.name} is measured on recorded activations, and no model is there that further ones could be taken from; pass "
            "--tokens 0 for the pool without post-training"
        )
    tokens = plan.tokens or catalogue.Tokens(())
    if texts:
        return TrainingText(documents(texts), ", ".join(texts), tokens.n_ctx)
    if tokens.source == (stdlib.SOURCE,):
        return TrainingText(stdlib.load_corpus().train, stdlib.SOURCE, tokens.n_ctx)
    if tokens.part == "held-out":
        return TrainingText(
            split(documents(tokens.source), "train"),
            f"{', '.join(tokens.source)}, without what is held out",
            tokens.n_ctx,
        )
    raise ValueError(
        f"found no text to train {run.name} on: study {plan.name} names text to measure on alone; name some that it does not "
        "measure on with --text FILES, or pass --tokens 0 for the pool without post-training"
    )


def post_training(
    run: PoolRun, recipe: TrainConfig, text: TrainingText | None, evaluator: Evaluator, hookpoint: str
) -> PostTraining:
    """Rows to train on by a recipe, as many as the longest training reads if there are.

    They are activations of `text` at the hook point, or samples where the study is synthetic and `text` None.
    """
    wanted = max(lengths(recipe.n_tokens, recipe.batch)[-1], run.entry.train_tokens or 0)
    if text is None:
        return _samples(run, recipe, wanted)
    tokens = enough(tokenize(text.documents, evaluator.model, n_ctx=text.n_ctx), wanted)
    if int(tokens.counted.sum()) < recipe.batch:
        raise ValueError(
            f"found {int(tokens.counted.sum())} tokens in {text.source}, expected a batch ({recipe.batch}) at least"
        )
    rows_at = run.study / "scratch" / f"pool-{run.name}"
    with run.progress.stage(f"training activations at {hookpoint}", "tokens") as report:
        rows = harvest(evaluator.model, tokens, hookpoint, rows_at, executor=run.executor, report=report)
    return PostTraining(recipe, rows, PoolTraining(text.source, tokens.digest, len(rows)), rows_at)


def _samples(run: PoolRun, recipe: TrainConfig, wanted: int) -> PostTraining:
    made = synthetic.read(run.study)
    if made is None:
        raise ValueError(f"{run.plan.name} is no synthetic study any more, and no text was named to train on")
    with run.progress.stage("training samples", "samples") as report:
        rows = draw_rows(made.samples, wanted, stream=TRAINING)
        report(wanted, wanted)
    return PostTraining(recipe, rows, PoolTraining("samples of known true features", made.samples.digest, wanted))


def fresh_recipe(run: PoolRun, recipe: TrainConfig) -> TrainConfig | None:
    """The members' own recipe with seeds that the ensemble does not have; None where their training length is not known."""
    if not run.entry.train_tokens:
        return None
    seeds = tuple(max(run.entry.seeds) + 1 + i for i in range(N_FRESH))
    # A recipe may hold an `l0` as well, which is no field of TrainConfig.
    kept = {
        name: value
        for name, value in (run.entry.recipe or {}).items()
        if name in vars(recipe) and name not in DATA_SAMPLES
    }
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    length = max(run.entry.train_tokens, recipe.batch)
    return TrainConfig(**as_parameters(recipe) | own | {"seeds": seeds, "n_tokens": length})


def train_fresh(run: PoolRun, recipe: TrainConfig, on: PostTraining) -> list[SAE]:
    """SAEs of fresh seeds, an ensemble of one each."""
    with run.progress.stage(f"{run.name}: fresh seeds", "tokens") as report:
        fresh = train_ensemble(
            on.rows, recipe, device=run.device, checkpoints=checkpoints_of(run.study, run.name) / "fresh", report=report,
            executor=run.executor, rows_at=on.rows_at,
        )  # fmt: skip
    return [fresh.only(member) for member in range(N_FRESH)]
