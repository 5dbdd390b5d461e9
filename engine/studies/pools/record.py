"""A feature pool as its folder keeps it, `pool.json` beside an SAE, and as tables of the contract."""

import json
from pathlib import Path
from typing import Any

from seedscope.engine.contract.tables.pools import FeaturePool, PooledFeature, PoolPoint
from seedscope.engine.saes.importers.saelens import CONFIG, WEIGHTS
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.evaluation import Evaluation, measured_from
from seedscope.engine.store.rows import add_row

FORMAT, FORMAT_VERSION = "seedscope.pool", 2
FOLDER, RECORD, SAE_FOLDER = "pool", "pool.json", "sae"


def place(study: Path, ensemble: str) -> Path:
    """Where a study keeps the pool of an ensemble."""
    return study / FOLDER / ensemble


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a pool's folder; None where there is none, or none of this version with its SAE beside it."""
    try:
        told = json.loads((folder / RECORD).read_text())
        if (told["format"], told["version"]) != (FORMAT, FORMAT_VERSION):
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return told if all((folder / SAE_FOLDER / name).is_file() for name in (CONFIG, WEIGHTS)) else None


def current(
    study: Path, plan: catalogue.StudyPlan, ensemble: catalogue.EnsemblePlan, evaluation: Evaluation | None
) -> dict[str, Any] | None:
    """The record of the study's pool of an ensemble; None where that is of former members, another theta or other tokens."""
    told = read(place(study, ensemble.name))
    if told is None or told["members"] != members_of(ensemble) or told["theta"] != plan.theta:
        return None
    if told["evaluation"] and evaluation:
        now = measured_from(ensemble, evaluation)
        if any(told["evaluation"][name] != now[name] for name in ("tokens", "model", "hookpoint")):
            return None
    return told


def members_of(ensemble: catalogue.EnsemblePlan) -> list[dict[str, Any]]:
    """What a record says of the members that were pooled."""
    return [{"seed": member.seed, "digest": member.digest} for member in ensemble.members]


def add_pool(writer: Writer, told: dict[str, Any] | None) -> None:
    """The rows of a pool, none where there is no record."""
    if told is None:
        return
    name, evaluation, training = told["ensemble"], told["evaluation"] or {}, told["training"] or {}
    add_row(
        writer,
        FeaturePool(
            ensemble=name,
            theta=told["theta"],
            d_sae=told["d_sae"],
            k=told["k"],
            unique_by_holders=told["unique_by_holders"],
            halves=[seed for each in told["halves"] for seed in each],
            fresh=(told["fresh"] or {}).get("seeds", []),
            tokens=told["tokens"],
            text=training.get("text"),
            recipe=told["recipe"] and json.dumps(told["recipe"]),
            n_evaluated=evaluation.get("rows"),
            n_loss_tokens=evaluation.get("loss_tokens") or None,
            sae_digest=told["digest"],
            folder=f"{FOLDER}/{name}/{SAE_FOLDER}",
            remarks=told["remarks"],
        ),
    )
    rows = told["features"]
    columns = {field: [each.get(field) for each in rows] for field in ("seed", "feature", "holders", "density")}
    writer.add(PooledFeature, {"ensemble": name, "id": list(range(len(rows)))} | columns)
    for each in told["curves"]:
        add_row(
            writer,
            PoolPoint(
                ensemble=name,
                curve=each["kind"],
                tokens=each["tokens"],
                evs=each["ev"],
                l0s=each["l0"],
                deads=each["dead"],
                n_living=each["n_living"],
                losses=each["loss"] or [],
                shares=each["shares"] or [],
                shared=each["shared"],
                best_cosine=each["mmcs"],
            ),
        )
