"""Spans of an ensemble's buckets, and the map that lays its decoder rows out in the plane, kept as a part."""

import numpy as np
import torch

from seedscope.engine.geometry.map import draw_map
from seedscope.engine.geometry.measure import measure
from seedscope.engine.geometry.rows import ANALYSIS as SUBSPACES
from seedscope.engine.geometry.rows import as_arrays, feature_arrays
from seedscope.engine.matching.best_matches import stored_best_matches
from seedscope.engine.saes import sae
from seedscope.engine.store.parts import Part
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.studies.evaluator import Evaluator, Rows

COVARIANCE_ROWS = 2**14  # activations multiplied at once in double precision


def activation_covariance(run: EnsembleRun, evaluator: Evaluator, targets: Rows | None) -> np.ndarray | None:
    """(d_out, d_out) of the activations that decoder rows are directions of, kept as a part; `targets` are those, or None.

    None for transcoders of whose output hook point nothing is known.
    """
    if run.undefined:
        return None
    part = run.parts.find("activations", **run.measured)
    if part is None:
        width = run.stored.d_out
        if targets is None:
            at_hook = evaluator.activations(run.hookpoint, run.stored.d_in, run.output)
            targets = at_hook.rows if at_hook.targets is None else at_hook.targets
        rows, total, product = targets, np.zeros(width), np.zeros((width, width))
        with run.progress.stage(f"{run.name}: directions of activations", "tokens") as report:
            for first in range(0, len(rows), COVARIANCE_ROWS):
                batch = torch.from_numpy(rows[first : first + COVARIANCE_ROWS].astype(np.float32)).double()
                total += batch.sum(0).numpy()
                product += (batch.T @ batch).numpy()
                report(first + len(batch), len(rows))
        mean = total / len(rows)
        with run.parts.write("activations", run.measured) as put:  # one for all members: under the first one's name
            put(run.seeds[0], {"covariance": product / len(rows) - np.outer(mean, mean)})
        part = run.part("activations", run.measured)
    return part.read(run.seeds[0])["covariance"]


def measure_subspaces(run: EnsembleRun, match: Part, live: np.ndarray | None, covariance: np.ndarray | None) -> None:
    """Spans of the members' buckets, and the map of directions, unless they were found before."""
    about = match.about | run.judgement | {"covariance": covariance is not None}
    if run.parts.find(SUBSPACES, **about):
        return
    if run.stored.n_members < 2:
        run.progress.say(f"{run.name}: subspaces: left out, they compare seeds and there is one")
        return
    decoders = [run.stored.decoder_rows(member) for member in range(run.stored.n_members)]  # mapped from their files
    directed = np.stack([sae.directed(rows).numpy() for rows in decoders])
    alive = directed if live is None else live & directed
    matches = stored_best_matches(match, run.seeds)
    with run.progress.stage(f"{run.name}: subspaces", "steps") as report:
        geometry = measure(
            decoders, matches, ~alive, theta=run.plan.theta, epsilon=run.plan.epsilon, covariance=covariance,
            device=run.device, seeds=run.seeds, scratch=run.study / "scratch", report=report,
        )  # fmt: skip
    with run.progress.stage(f"{run.name}: map of directions", "features") as report:
        direction_map = draw_map(decoders, matches, alive)
        report(n := int(np.isfinite(direction_map.x).sum()), n)
    with run.parts.write(SUBSPACES, about) as put:
        of_ensemble = as_arrays(geometry, direction_map, run.seeds)
        for member, seed in enumerate(run.seeds):
            of_features = feature_arrays(geometry, direction_map, ~alive, member, seed)
            put(seed, of_features if member else of_ensemble | of_features)
