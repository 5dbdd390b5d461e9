"""Matches of an ensemble's members and of random dictionaries, kept as a part."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from seedscope.engine.contract.files import whole
from seedscope.engine.contract.stability import ALONE
from seedscope.engine.executors.unit import Unit, run_units
from seedscope.engine.matching.match import (
    NULL_KINDS,
    Matches,
    computed_fields,
    matched_pairs,
    no_matches,
    null_cosines,
)
from seedscope.engine.matching.spool import spooled
from seedscope.engine.matching.tiles import MatchTask, TiledMatches, match_tile, tiles
from seedscope.engine.store.parts import VERSION, Part
from seedscope.engine.studies.ensemble_run import EnsembleRun


def _live_digest(live: np.ndarray | None) -> str | None:
    return None if live is None else hashlib.sha256(np.packbits(live).tobytes()).hexdigest()[:16]


def find_match(run: EnsembleRun, live: np.ndarray | None) -> Part | None:
    """The matches that are there; None where they were made of other living features, or lack one-to-one matching."""
    match = run.parts.find("match", version=VERSION, saes=run.sae_digests, live=_live_digest(live))
    return None if match and run.assigns and not match.about["one_to_one"] else match


def match_members(run: EnsembleRun, live: np.ndarray | None) -> Part:
    """Match all pairs of members under every rule, and random dictionaries of both kinds; one SAE alone has no matches.

    Memory: the members that `matched_pairs` holds, the nulls' anchor rows and cosines, and one member's matches. Those of the
    others lie on disk, once: what a member has is removed from there when it is written into the part.
    """
    members = run.stored
    about: dict[str, Any] = {
        "version": VERSION, "saes": run.sae_digests, "live": _live_digest(live), "one_to_one": run.assigns,
        "device": run.device.type,
    }  # fmt: skip
    with ExitStack() as stack:
        matches: Callable[[int], Matches]
        if members.n_members == 1:
            run.progress.say(f"{run.name}: {ALONE}")
            alone = no_matches(members.d_sae)
            matches = lambda index: Matches(*(array[index] for array in alone))  # noqa: E731
        elif run.executor.is_here:
            spool = stack.enter_context(
                spooled(
                    run.study / "scratch" / f"match-{run.name}",
                    members.n_members,
                    members.d_sae,
                    computed_fields(assign=run.assigns, live=live is not None),
                )
            )
            total = members.n_members * (members.n_members - 1) // 2
            with run.progress.stage(f"{run.name}: matching", "pairs") as report:
                pairs = matched_pairs(members, live, assign=run.assigns, device=run.device)
                for done, pair in enumerate(pairs):
                    spool.add(pair)
                    report(done + 1, total)
            matches = spool.take
        else:
            about["device"] = run.unit_device
            matches = _in_units(run, live, about).take
        with run.progress.stage(f"{run.name}: chance", "nulls") as report:
            chance = {}
            for done, kind in enumerate(NULL_KINDS):
                chance[kind] = null_cosines(members, kind, device=run.device)
                report(done + 1, len(NULL_KINDS))
        put = stack.enter_context(run.parts.write("match", about))
        for index, seed in enumerate(run.seeds):
            null = {f"null_{kind}": of_kind.cosine[index] for kind, of_kind in chance.items()}
            put(seed, matches(index)._asdict() | null | {"null_feature": chance[NULL_KINDS[0]].feature})
    return run.part("match", about)


def _in_units(run: EnsembleRun, live: np.ndarray | None, about: dict[str, Any]) -> TiledMatches:
    """All pairs matched in tiles, wherever the run's executor computes."""
    members, folder = run.stored, run.units_folder("match", about)
    fired = folder / "live.npy"
    if live is not None and not fired.exists():
        with whole(fired, durable=False) as file:
            np.save(file, live)
    task = MatchTask(
        str((run.study / run.ensemble.folder).absolute()), run.seeds, None if live is None else str(fired), run.assigns,
        run.unit_device,
    )  # fmt: skip
    units = [
        Unit(match_tile, (task, tile, str(tile.path(folder))), tile.path(folder), tile.n_pairs)
        for tile in tiles(members.n_members)
    ]
    with run.progress.stage(f"{run.name}: matching", "pairs") as report:
        run_units(run.executor, units, report=report, say=run.progress.say)
    return TiledMatches(
        folder, members.n_members, members.d_sae, computed_fields(assign=run.assigns, live=live is not None)
    )
