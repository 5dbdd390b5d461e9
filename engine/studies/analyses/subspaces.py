"""Spans of an ensemble's buckets, kept as a part."""

from typing import Any

import numpy as np
import torch

from seedscope.engine.geometry.map import draw_atlas
from seedscope.engine.geometry.measure import measure
from seedscope.engine.geometry.rows import ANALYSIS as SUBSPACES
from seedscope.engine.geometry.rows import as_arrays
from seedscope.engine.matching.match import Matches
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Part, Parts
from seedscope.engine.studies.evaluator import Bench

COVARIANCE_ROWS = 2**14  # activations multiplied at once in double precision


def _activation_covariance(
    parts: Parts, ensemble: catalogue.Ensemble, bench: Bench, d_in: int, about: dict[str, Any], rows, progress: Progress
) -> np.ndarray:
    """(d_in, d_in) of the activations at the ensemble's hook point, kept as a part; `rows` are those, or None."""
    found = parts.find("activations", **about)
    if found is None:
        rows = bench.place(ensemble.hookpoint, d_in).rows if rows is None else rows
        total, product = np.zeros(d_in), np.zeros((d_in, d_in))
        with progress.stage(f"{ensemble.name}: directions of activations", "tokens") as report:
            for first in range(0, len(rows), COVARIANCE_ROWS):
                batch = torch.from_numpy(rows[first : first + COVARIANCE_ROWS].astype(np.float32)).double()
                total += batch.sum(0).numpy()
                product += (batch.T @ batch).numpy()
                report(first + len(batch), len(rows))
        mean = total / len(rows)
        with parts.write("activations", about) as put:  # one for all members: under the first one's name
            put(ensemble.seeds[0], {"covariance": product / len(rows) - np.outer(mean, mean)})
        found = parts.find("activations", **about)
    return found.read(ensemble.seeds[0])["covariance"]


def _subspaces(
    parts: Parts,
    plan: catalogue.Study,
    ensemble: catalogue.Ensemble,
    members: SAE,
    match: Part,
    live: np.ndarray | None,
    covariance: np.ndarray | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """Spans of the members' buckets, and the map of directions, unless they were found before."""
    judged = {"theta": plan.theta, "epsilon": plan.epsilon}
    about = match.about | judged | {"covariance": covariance is not None}
    if parts.find(SUBSPACES, **about):
        return
    if members.n_members < 2:
        progress.say(f"{ensemble.name}: subspaces: left out, they compare members and there is one")
        return
    alive = sae.directed(members.W_dec).numpy() if live is None else live & sae.directed(members.W_dec).numpy()
    held = [match.read(seed, *Matches._fields) for seed in ensemble.seeds]
    matches = Matches(*(np.stack([each[name] for each in held]) for name in Matches._fields))
    decoders = members.W_dec.detach()
    with progress.stage(f"{ensemble.name}: subspaces", "steps") as report:
        found = measure(
            list(decoders), matches, ~alive, theta=plan.theta, epsilon=plan.epsilon, covariance=covariance, device=device,
            seeds=ensemble.seeds, report=report,
        )  # fmt: skip
    with progress.stage(f"{ensemble.name}: map of directions", "features") as report:
        atlas = draw_atlas(decoders, matches, alive)
        report(n := int(np.isfinite(atlas.x).sum()), n)
    with parts.write(SUBSPACES, about) as put:
        put(ensemble.seeds[0], as_arrays(found, atlas, ~alive, ensemble.seeds))
