"""Explained variance that masking single features, and growing sets of each bucket, takes away, kept as a part."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.features.ablation import MaskPass, curve_masks, explained_under, headline_masks
from seedscope.engine.saes.encode import encoded
from seedscope.engine.studies.analyses.activity import TokenPass, target_rows
from seedscope.engine.studies.ensemble_run import EnsembleRun

LOSS_DRAWS = 2  # of the headline's masks; curves are drawn once


class MaskedFeatures(NamedTuple):
    """Buckets and firing counts that masks are drawn from: per member (d_sae,) each."""

    buckets: Sequence[np.ndarray]
    n_active: Sequence[np.ndarray]

    def masks(self, index: int) -> dict[str, list[np.ndarray]]:
        """All masks of one member by name: those of the headline and those of the curves."""
        pair = self.buckets[index], self.n_active[index]
        return headline_masks(*pair) | curve_masks(*pair)

    def fewer_masks(self, index: int) -> dict[str, list[np.ndarray]]:
        """Those that the loss is measured under: LOSS_DRAWS of the headline's, one draw of the curves."""
        pair = self.buckets[index], self.n_active[index]
        return headline_masks(*pair, n_draws=LOSS_DRAWS) | curve_masks(*pair, n_draws=1)


def measure_worth(run: EnsembleRun, masked: MaskedFeatures, collected: TokenPass) -> None:
    """Measure and keep the worth of every feature and of the masked sets, from what a pass over the tokens summed."""
    about, n = run.measured | run.judgement, run.stored.n_members
    with run.parts.write("ablate", about) as put:
        for group, ablation in zip(collected.groups, collected.ablation, strict=True):
            drawn = [masked.masks(index) for index in group]
            mask_pass = None if ablation.pairwise else _answer_masks(run, group, drawn, collected)
            with run.progress.stage(f"{run.name}: worth", "seeds") as report:
                for within, index in enumerate(group):
                    worth = ablation.finish(within, run.stored.decoder_rows(index))
                    masked_worth = mask_pass.finish(within, worth) if mask_pass else worth
                    columns = mask_columns(explained_under(masked_worth, drawn[within]))
                    own = {"ev": worth.explained_variance(), "marginal": worth.marginal_worth()}
                    put(run.seeds[index], own | columns)
                    report(index + 1, n)


def _answer_masks(
    run: EnsembleRun, group: range, drawn: list[dict[str, list[np.ndarray]]], collected: TokenPass
) -> MaskPass:
    """A second pass over the tokens for the masks of one group of members."""
    members, rows, targets = run.load(group), collected.rows, collected.targets
    mask_pass = MaskPass(members, drawn)
    with run.progress.stage(f"{run.name}: masks", "tokens") as report:
        for first, batch, codes in encoded(members, rows, run.device, n_members=run.stored.n_members):
            mask_pass.add(batch if targets is None else target_rows(targets, first, len(batch)), codes)
            report(first + len(batch), len(rows))
    return mask_pass


def mask_columns(rows: list[Any]) -> dict[str, np.ndarray]:
    """Named rows of masks as named arrays."""
    return {
        f"mask_{name}": np.array(column) for name, column in zip(rows[0]._fields, zip(*rows, strict=True), strict=True)
    }
