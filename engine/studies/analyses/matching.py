"""Matches of an ensemble's members, kept as a part."""

import hashlib

import numpy as np
import torch

from seedscope.engine.matching.match import NULL_KINDS, affordable, match_ensemble, null_cosines
from seedscope.engine.progress import Progress
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import VERSION, Part, Parts


def _live(activity: Part | None, ensemble: catalogue.Ensemble) -> np.ndarray | None:
    """(members, d_sae) features that fired; None where activity is not known."""
    if activity is None:
        return None
    return np.stack([activity.read(seed, "n_active")["n_active"] > 0 for seed in ensemble.seeds])


def _live_digest(live: np.ndarray | None) -> str | None:
    return None if live is None else hashlib.sha256(np.packbits(live).tobytes()).hexdigest()[:16]


def _found_match(
    parts: Parts, saes: list[str], live: np.ndarray | None, one_to_one: bool | None, members: SAE
) -> Part | None:
    found = parts.find("match", version=VERSION, saes=saes, live=_live_digest(live))
    asked = affordable(members.n_members, members.d_sae, members.d_in) if one_to_one is None else one_to_one
    return None if found and asked and not found.about["one_to_one"] else found


def _match(
    parts: Parts,
    ensemble: catalogue.Ensemble,
    members: SAE,
    saes: list[str],
    live: np.ndarray | None,
    one_to_one: bool | None,
    device: torch.device,
    progress: Progress,
) -> Part:
    name = ensemble.name
    assign = affordable(members.n_members, members.d_sae, members.d_in) if one_to_one is None else one_to_one
    with progress.stage(f"{name}: matching", "pairs") as report:
        matches = match_ensemble(members, live, assign=assign, device=device, report=report)
    with progress.stage(f"{name}: chance", "nulls") as report:
        chance = {}
        for done, kind in enumerate(NULL_KINDS):
            chance[kind] = null_cosines(members, kind, device=device)
            report(done + 1, len(NULL_KINDS))
    about = {"version": VERSION, "saes": saes, "live": _live_digest(live), "one_to_one": assign, "device": device.type}
    with parts.write("match", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            mine = {field: array[index] for field, array in matches._asdict().items()}
            null = {f"null_{kind}": found.cosine[index] for kind, found in chance.items()}
            put(seed, mine | null | {"null_feature": chance[NULL_KINDS[0]].feature})
    return parts.find("match", **about)
