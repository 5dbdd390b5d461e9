"""The record of a feature pool, `pool.json` in its folder: how it was made, where each feature came from, and its curves.

Reads and writes that file, and turns a record into rows of the contract. The SAE itself lies beside it, in SAELens' layout.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from seedscope.engine.contract.tables.pools import FeaturePool, PooledFeature, PoolPoint
from seedscope.engine.saes.importers.saelens import CONFIG, WEIGHTS
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.evaluation import Evaluation, measured_from
from seedscope.engine.store.rows import add_row

FORMAT: Final = "seedscope.pool"
FORMAT_VERSION: Final = 2
FOLDER, RECORD, SAE_FOLDER = "pool", "pool.json", "sae"


@dataclass(frozen=True)
class PooledMember:
    """One SAE of the ensemble that was pooled."""

    seed: int
    digest: str


@dataclass(frozen=True)
class PooledFrom:
    """Where one feature of a pool came from."""

    seed: int
    feature: int
    """Index in that SAE."""
    holders: int
    """Members with a feature that reaches theta with this one, its own among them."""
    density: float | None = None
    """Share of the evaluation rows on which that SAE's feature is active; None, and not in the file, without activations."""


@dataclass(frozen=True)
class PoolCurvePoint:
    """What one kind of SAE reaches after one training length; lists have a value per SAE."""

    kind: str
    """`pool`, `halves`, `members`, `subset` or `fresh`."""
    tokens: int
    """Of post-training; 0 before any."""
    ev: tuple[float, ...]
    """Explained variance."""
    l0: tuple[float, ...]
    """Active features per token."""
    dead: tuple[float, ...]
    """Share of features that are active on no evaluation row."""
    n_living: tuple[int, ...]
    loss: tuple[float, ...] | None
    """Next-token loss with the reconstruction in place, nats per token."""
    shares: tuple[float, ...] | None
    """Of each of two SAEs, the share of living features with a partner at theta in the other."""
    shared: float | None
    """Share of the living features of both with a partner at theta in the other."""
    mmcs: float | None
    """Mean of the largest cosines."""


@dataclass(frozen=True)
class PoolEvaluation:
    """What curves and densities were measured on."""

    rows: int
    tokens: str
    """Digest of the evaluation tokens."""
    model: str
    """Digest of the model."""
    hookpoint: str
    loss_tokens: int
    """Tokens of the loss; 0 where it was not measured."""


@dataclass(frozen=True)
class PoolTraining:
    """What post-training read."""

    text: str
    """Its source, in words."""
    tokens: str
    """Digest of its tokens or samples."""
    rows: int


@dataclass(frozen=True)
class PoolRecord:
    """Everything that `pool.json` says, in its order."""

    format: Literal["seedscope.pool"]
    version: Literal[2]
    study: str
    ensemble: str
    theta: float
    members: tuple[PooledMember, ...]
    halves: tuple[tuple[int, ...], ...]
    """Seeds of the two disjoint pools; empty below four members."""
    d_sae: int
    d_in: int
    k: int | None
    tokens: int
    """Of post-training, whole batches; 0 without."""
    recipe: dict[str, Any] | None
    """Of post-training: the settings of a TrainConfig, without seeds and length."""
    unique_by_holders: tuple[int, ...]
    """Unique features that 1, 2, .. members hold."""
    features: tuple[PooledFrom, ...]
    curves: tuple[PoolCurvePoint, ...]
    evaluation: PoolEvaluation | None
    training: PoolTraining | None
    fresh: dict[str, Any] | None
    """The settings of a TrainConfig that fresh seeds were trained with, `seeds` among them; None without fresh seeds."""
    remarks: tuple[str, ...]
    made_from: str
    """Digest of all that the pool depends on."""
    digest: str
    """Of the SAE beside the record."""

    def __post_init__(self) -> None:
        seeds = (self.fresh or {}).get("seeds", ())
        if not isinstance(seeds, list | tuple) or not all(type(seed) is int for seed in seeds):
            raise ValueError(f"seeds of fresh are {seeds!r:.80}, expected whole numbers")

    @property
    def fresh_seeds(self) -> list[int]:
        """Seeds of the SAEs that were trained for comparison; none where there are none."""
        return list((self.fresh or {}).get("seeds", ()))

    def to_json(self) -> dict[str, Any]:
        """The content of `pool.json` as plain values; raises ValueError for a number that is not finite."""
        content = asdict(self)
        for feature in content["features"]:
            if feature["density"] is None:
                del feature["density"]
        return json.loads(json.dumps(content, allow_nan=False))


_RECORD = TypeAdapter(PoolRecord)


def pool_folder(study: Path, ensemble: str) -> Path:
    """Where a study keeps the pool of an ensemble."""
    return study / FOLDER / ensemble


def read(folder: Path) -> PoolRecord | None:
    """The record of a pool's folder; None where there is none, or none of this version with its SAE beside it."""
    try:
        record = _RECORD.validate_json((folder / RECORD).read_bytes(), strict=True)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return record if all((folder / SAE_FOLDER / name).is_file() for name in (CONFIG, WEIGHTS)) else None


def current(
    study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, evaluation: Evaluation | None
) -> PoolRecord | None:
    """The record of the study's pool of an ensemble; None where that is of former members, another theta or other tokens."""
    record = read(pool_folder(study, ensemble.name))
    if record is None or record.members != members_of(ensemble) or record.theta != plan.theta:
        return None
    if record.evaluation and evaluation:
        now = measured_from(ensemble, evaluation)
        if any(getattr(record.evaluation, name) != now[name] for name in ("tokens", "model", "hookpoint")):
            return None
    return record


def members_of(ensemble: catalogue.EnsemblePlan) -> tuple[PooledMember, ...]:
    """What a record says of the members that were pooled."""
    return tuple(PooledMember(member.seed, member.digest) for member in ensemble.members)


def add_pool(writer: Writer, record: PoolRecord | None) -> None:
    """The rows of a pool, none where there is no record."""
    if record is None:
        return
    name, evaluation, training = record.ensemble, record.evaluation, record.training
    add_row(
        writer,
        FeaturePool(
            ensemble=name,
            theta=record.theta,
            d_sae=record.d_sae,
            k=record.k,
            unique_by_holders=list(record.unique_by_holders),
            halves=[seed for half in record.halves for seed in half],
            fresh=record.fresh_seeds,
            tokens=record.tokens,
            text=training.text if training else None,
            recipe=json.dumps(record.recipe) if record.recipe else None,
            n_evaluated=evaluation.rows if evaluation else None,
            n_loss_tokens=(evaluation.loss_tokens or None) if evaluation else None,
            sae_digest=record.digest,
            folder=f"{FOLDER}/{name}/{SAE_FOLDER}",
            remarks=list(record.remarks),
        ),
    )
    columns = {
        column: [getattr(feature, column) for feature in record.features]
        for column in ("seed", "feature", "holders", "density")
    }
    writer.add(PooledFeature, {"ensemble": name, "id": list(range(len(record.features)))} | columns)
    for point in record.curves:
        add_row(
            writer,
            PoolPoint(
                ensemble=name,
                curve=point.kind,
                tokens=point.tokens,
                evs=list(point.ev),
                l0s=list(point.l0),
                deads=list(point.dead),
                n_living=list(point.n_living),
                losses=list(point.loss or ()),
                shares=list(point.shares or ()),
                shared=point.shared,
                best_cosine=point.mmcs,
            ),
        )
