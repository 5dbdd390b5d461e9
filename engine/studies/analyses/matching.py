"""Matches of an ensemble's members and of random dictionaries, kept as a part."""

import hashlib

import numpy as np

from seedscope.engine.contract.stability import ALONE
from seedscope.engine.matching.match import NULL_KINDS, Matches, match_ensemble, no_matches, null_cosines
from seedscope.engine.store.parts import VERSION, Part
from seedscope.engine.studies.ensemble_run import EnsembleRun


def _live_digest(live: np.ndarray | None) -> str | None:
    return None if live is None else hashlib.sha256(np.packbits(live).tobytes()).hexdigest()[:16]


def find_match(run: EnsembleRun, live: np.ndarray | None) -> Part | None:
    """The matches that are there; None where they were made of other living features, or lack one-to-one matching."""
    match = run.parts.find("match", version=VERSION, saes=run.sae_digests, live=_live_digest(live))
    return None if match and run.assigns and not match.about["one_to_one"] else match


def match_members(run: EnsembleRun, live: np.ndarray | None) -> Part:
    """Match all pairs of members under every rule, and random dictionaries of both kinds; one SAE alone has no matches."""
    if run.members.n_members == 1:
        run.progress.say(f"{run.name}: {ALONE}")
        matches: Matches = no_matches(run.members.d_sae)
    else:
        with run.progress.stage(f"{run.name}: matching", "pairs") as report:
            matches = match_ensemble(run.members, live, assign=run.assigns, device=run.device, report=report)
    with run.progress.stage(f"{run.name}: chance", "nulls") as report:
        chance = {}
        for done, kind in enumerate(NULL_KINDS):
            chance[kind] = null_cosines(run.members, kind, device=run.device)
            report(done + 1, len(NULL_KINDS))
    about = {
        "version": VERSION, "saes": run.sae_digests, "live": _live_digest(live), "one_to_one": run.assigns,
        "device": run.device.type,
    }  # fmt: skip
    with run.parts.write("match", about) as put:
        for index, seed in enumerate(run.seeds):
            mine = {field: array[index] for field, array in matches._asdict().items()}
            null = {f"null_{kind}": of_kind.cosine[index] for kind, of_kind in chance.items()}
            put(seed, mine | null | {"null_feature": chance[NULL_KINDS[0]].feature})
    return run.part("match", about)
