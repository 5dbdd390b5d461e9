"""Stability of SAEs of SAELens that are in memory: the same reading, checks and matching as an import, without a study or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedscope.engine.contract import stability
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.machine import named_device
from seedscope.engine.matching.match import NULL_KINDS, match_ensemble, null_cosines, rule_cosine
from seedscope.engine.progress import Progress
from seedscope.engine.saes.importers.ensemble import as_members
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.importers.saelens import from_object
from seedscope.engine.saes.sae import SAE, assemble, directed, unit_rows
from seedscope.engine.studies.import_ensemble import described, refuse_copies, start_of, with_zero_rows
from seedscope.engine.training.trajectory import common, compared

RULES_IN_MEMORY = ("argmax", "mutual", "hungarian", "both")  # the others need activations
# What the checks of an import advise, in the words of a function's caller.
_ADVICE = {"give --force": "give force=True", "--seeds 0,1": "{0: sae, 1: sae}", "--shared-start ": "shared_start="}


@dataclass(frozen=True)
class InMemoryStability:
    """Stability of every feature of every SAE, in the order that they were given in."""

    columns: dict[str, np.ndarray]  # one entry per feature; NaN: no pair, not known, or the SAE's own column of cosines
    about: dict[str, Any]  # how it was measured, as plain JSON values


def measure(
    saes: Sequence[Any] | Mapping[int, Any],
    *,
    theta: float = stability.THETA,
    epsilon: float = stability.EPSILON,
    rule: str = "argmax",
    shared_start: str | None = None,
    force: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> InMemoryStability:
    """Match every SAE with every other, and random dictionaries with all: (member, feature) rows in the order given.

    `shared_start` is what is known of their starts: yes or no. Activity is not measured: a feature is dead only where its
    decoder row has no direction. Cost: as `match_ensemble` and `null_cosines`. Memory: a second copy of all SAEs. Raises
    ValueError for fewer than two, for an object that is no SAE of SAELens, for SAEs that are not members of one ensemble (other
    shapes, convention, or, without `force`, another model, hook point or training setting), for the same SAE twice, and for
    values out of range.
    """
    _require_settings(theta, epsilon, rule, shared_start)
    try:
        members = _members(saes, force=force)
        kept = [described(member) for member in members]
        refuse_copies(kept)
        start, evidence = start_of(members, "yes" if shared_start == "yes" else "no" if shared_start == "no" else None)
    except ValueError as error:
        message = str(error)
        for option, argument in _ADVICE.items():
            message = message.replace(option, argument)
        raise ValueError(message) from None
    together = _together(members)
    place = named_device(device)
    progress = Progress(quiet=quiet)
    with progress.stage("matching", "pairs") as report:
        matches = match_ensemble(together, None, assign=rule in ("hungarian", "both"), device=place, report=report)
    cosines = rule_cosine(rule, matches)
    chance: dict[str, dict[str, float]] = {}
    with progress.stage("chance", "nulls") as report:
        for done, kind in enumerate(NULL_KINDS):
            null = null_cosines(together, kind, device=place)
            hits = stability.is_match(null.cosine, theta)
            chance[kind] = {"rate": float(hits.mean()), "p999": float(np.quantile(null.cosine, 0.999))}
            report(done + 1, len(NULL_KINDS))
    undirected = np.stack([~directed(together.decoder_rows(i).float()).numpy() for i in range(len(members))])
    first = members[0]
    about = {
        "theta": theta,
        "epsilon": epsilon,
        "rule": rule,
        "sign": "signed cosine",
        "ties": "lowest index",
        "interval": "95 %, Clopper-Pearson",
        "dead": "known of decoder rows without a direction alone: activity was not measured",
        "seeds": list(together.seeds),
        "seeds_from": first.facts.get("seed", ("", ""))[1] if "seed" in first.facts else None,
        "digests": {str(member.seed): plan.digest for member, plan in zip(members, kept, strict=True)},
        "model": first.source.get("model"),
        "hook_name": first.source.get("hookpoint"),
        "convention": first.convention.as_json(),
        "shared_start": start,
        "remarks": [*evidence, *dict.fromkeys(remark for member in members for remark in member.remarks)],
        "chance": chance | {"rule": "argmax"},
        "mean_direction": _mean_direction(together),
    }
    return InMemoryStability(_columns(together, matches.other, cosines, undirected, theta, epsilon, chance), about)


def _require_settings(theta: float, epsilon: float, rule: str, shared_start: str | None) -> None:
    if rule not in RULES_IN_MEMORY:
        raise ValueError(
            f"rule is {rule!r}, expected one of {', '.join(RULES_IN_MEMORY)}: other rules need activations, which a study has "
            "(seedscope import, then analyze)"
        )
    if not -1 <= theta <= 1:
        raise ValueError(f"theta is {theta}, expected a cosine from -1 to 1")
    if shared_start not in (None, "yes", "no", "unknown"):
        raise ValueError(f"shared_start is {shared_start!r}, expected yes, no or unknown")
    stability.bucket_bounds(1, epsilon)


def _members(saes: Sequence[Any] | Mapping[int, Any], *, force: bool) -> list[Imported]:
    """The SAEs in the order given, read as an import reads their files and checked as members of one ensemble."""
    given = list(saes.items()) if isinstance(saes, Mapping) else list(enumerate(saes))
    if len(given) < 2:
        raise ValueError(
            f"{len(given)} SAEs were given, expected at least 2 that differ in their seed alone: stability compares independently "
            "trained SAEs"
        )
    seeds = [key for key, _ in given] if isinstance(saes, Mapping) else None
    if seeds and (wrong := [key for key in seeds if isinstance(key, bool) or not isinstance(key, int)]):
        raise ValueError(f"a key of saes is {wrong[0]!r}, expected seeds as whole numbers")
    read = [with_zero_rows(from_object(sae, Path(f"saes[{key}]"))) for key, sae in given]
    return as_members(read, [None] * len(read), seeds, force=force)


def _together(members: list[Imported]) -> SAE:
    """All members as one SAE with a member axis; `start_of` and digests need them apart before."""
    tensors = {name: torch.stack([each.tensors[name] for each in members]) for name in members[0].tensors}
    return assemble(tensors, members[0].convention, tuple(int(each.seed or 0) for each in members)).requires_grad_(
        False
    )


def _mean_direction(together: SAE) -> dict[str, float]:
    """What all rows of a dictionary have in common, and the mean best cosine with and without it: paper B's geometry of cosines."""
    rows = []
    for member in range(together.n_members):
        decoder = together.decoder_rows(member).float()
        rows.append(unit_rows(decoder[directed(decoder)]))
    shared = common(rows, compared(together.n_members), assign=False)
    return {
        "mean_cosine": shared.mean_cosine,
        "share": shared.mean_share,
        "centred_best_cosine": float(shared.centred.best.mean()),
    }


def _columns(
    together: SAE,
    other: np.ndarray,
    cosines: np.ndarray,
    undirected: np.ndarray,
    theta: float,
    epsilon: float,
    chance: dict[str, dict[str, float]],
) -> dict[str, np.ndarray]:
    """`cosines` (members, d_sae, comparisons) under the rule, `other` (members, comparisons), `undirected` (members, d_sae)."""
    n, d_sae, n_comparisons = cosines.shape
    x = stability.count_matches(cosines, theta)
    scores = [stability.score(each, n_comparisons, epsilon=epsilon) for each in range(n_comparisons + 1)]
    judged = {
        name: np.array([getattr(each, name) for each in scores])[x].ravel()
        for name in ("p_hat", "low", "high", "p_stable", "p_unstable")
    }
    by_other = np.full((n, d_sae, n), np.nan, np.float32)
    for member in range(n):
        by_other[member][:, other[member]] = np.where(cosines[member] > NO_MATCH, cosines[member], np.nan)
    paired = ~np.isnan(by_other)
    total = np.where(paired, by_other, 0).sum(2, dtype=np.float64)
    mean = np.divide(total, paired.sum(2), out=np.full((n, d_sae), np.nan), where=paired.any(2))
    return {
        "member": np.repeat(np.arange(n), d_sae),
        "seed": np.repeat(np.array(together.seeds, np.int64), d_sae),
        "feature": np.tile(np.arange(d_sae), n),
        "stability": judged["p_hat"],
        "stability_low": judged["low"],
        "stability_high": judged["high"],
        "p_stable": judged["p_stable"],
        "p_unstable": judged["p_unstable"],
        "n_matched": x.ravel(),
        "n_comparisons": np.full(n * d_sae, n_comparisons),
        "bucket": stability.buckets(x.ravel(), n_comparisons, undirected.ravel(), epsilon),
        "mean_best_cosine": mean.ravel(),
        **{f"chance_{kind}": np.full(n * d_sae, found["rate"]) for kind, found in chance.items()},
        **{f"cosine_seed_{seed}": by_other[:, :, i].ravel() for i, seed in enumerate(together.seeds)},
    }
