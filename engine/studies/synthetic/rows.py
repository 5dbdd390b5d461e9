"""Rows of the contract about the true features of a synthetic study, their recovery, and the phase map."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from seedscope.engine.contract.tables.synthetic import SpanLevel, Synthetic, TrueFeature, TrueGroup, TrueLatent
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import add_row, row_keys
from seedscope.engine.studies.synthetic.generator import EVALUATION, FREE, LOW, draw_samples, draw_truth
from seedscope.engine.studies.synthetic.phase_map import read_map
from seedscope.engine.studies.synthetic.plan import CELLS, SyntheticPlan
from seedscope.engine.studies.synthetic.recovery import GROUPS, SETS, measure, verdict


def add_truth(
    writer: Writer,
    study: Path,
    plan: catalogue.StudyPlan,
    ensemble: catalogue.EnsemblePlan,
    made: SyntheticPlan,
    members: SAE,
    cosine: np.ndarray,
    dead: np.ndarray,
) -> None:
    """The true features of an ensemble, their recovery, which is measured here, and the cells of the map so far.

    `cosine` (members, d_sae, comparisons) are best cosines, `dead` (members, d_sae) the latents that never fired. Seconds.
    """
    name, truth = ensemble.name, draw_truth(made.samples)
    recovery = measure(
        truth, list(members.W_dec), cosine, dead, theta=plan.theta, epsilon=plan.epsilon, seed=made.samples.seed
    )
    wanted = made.cells(plan.theta, plan.epsilon)
    row = Synthetic(
        ensemble=name,
        **asdict(made.samples),
        n_samples=made.recipe.n_tokens,
        n_evaluated=made.n_evaluated,
        n_map_members=len(made.map_recipe.seeds),
        n_map_samples=made.map_recipe.n_tokens,
        n_map_cells=len(wanted),
        verdict=verdict(recovery, truth),
    )
    add_row(writer, row)
    n = len(truth.features)
    active = sum(
        np.bincount(s.codes.indices, minlength=n)
        for s in draw_samples(made.samples, made.n_evaluated, stream=EVALUATION)
    )
    features = {
        "id": np.arange(n),
        "group": [FREE] * truth.n_free + [LOW] * (n - truth.n_free),
        "rate": truth.rates,
        "n_active": active,
        "latents": recovery.found.latent,
        "cosines": recovery.found.cosine,
    }
    writer.add(TrueFeature, {"ensemble": name} | features)
    for index, seed in enumerate(ensemble.seeds):
        latents = {field: array[index] for field, array in recovery.latents._asdict().items()}
        latents["group"] = [None if group < 0 else GROUPS[group] for group in latents["group"]]
        writer.add(TrueLatent, row_keys(name, seed, np.arange(members.d_sae)) | latents)
    for group in recovery.groups.values():
        add_row(writer, TrueGroup(name, *group))
    for rank, level in enumerate(SETS):
        if level in recovery.levels:
            add_row(writer, SpanLevel(name, rank, *recovery.levels[level]))
    for cell in read_map(study / CELLS, wanted):
        add_row(writer, replace(cell, ensemble=name))
