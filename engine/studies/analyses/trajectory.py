"""Agreement and worth along training, kept as a part."""

from pathlib import Path
from typing import Any

import torch

from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Part, Parts
from seedscope.engine.studies.evaluator import Bench
from seedscope.engine.training import snapshots, trajectory
from seedscope.engine.training.rows import as_arrays
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY


def _trajectory(
    parts: Parts,
    study: Path,
    ensemble: catalogue.Ensemble,
    members: SAE,
    bench: Bench | None,
    activity: Part | None,
    one_to_one: bool | None,
    about: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> None:
    """What members were at each of their snapshots, unless it was measured before; left out where none were kept."""
    folder, seeds, name = study / ensemble.folder, ensemble.seeds, ensemble.name
    taken = snapshots.kept(folder, seeds)
    if not taken or members.n_members < 2:
        why = "it compares members and there is one" if taken else "no members were kept along its training"
        progress.say(f"{name}: trajectory: left out, {why}")
        return
    assign = one_to_one
    if assign is None:
        assign = trajectory.affordable(len(taken), len(seeds), members.d_sae, members.d_in)
    about = about | {"steps": [each.step for each in taken], "n_asked": trajectory.N_TOKENS}
    found = parts.find(TRAJECTORY, **about)
    if found and (found.about["one_to_one"] or not assign):
        return
    if not assign:
        progress.say(f"{name}: trajectory: pairs are not matched one to one at this size; ask with --rule hungarian")
    rows = None
    if bench and activity:
        left_out = activity.read(seeds[0], "left_out")["left_out"]
        rows = bench.sample(ensemble.hookpoint, trajectory.N_TOKENS, left_out)
    units, followed = snapshots.units(folder, members.d_in), []
    with progress.stage(f"{name}: trajectory", "snapshots") as report:
        for each in taken:
            then = sae.load(each.folder, seeds)
            followed.append(
                trajectory.follow(then, rows, units=units, theta=about["theta"], assign=assign, device=device)
            )
            report(len(followed), len(taken))
        level = trajectory.random_level(members.d_sae, members.d_in, assign=assign)
    n_tokens = None if rows is None else len(rows)
    with parts.write(TRAJECTORY, about | {"one_to_one": assign}) as put:
        for seed, arrays in as_arrays(taken, followed, level, seeds, n_tokens).items():
            put(seed, arrays)
