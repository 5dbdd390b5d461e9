"""What buckets are worth in explained variance, kept as a part."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from seedscope.engine.features.ablation import AblationPass, MaskPass, curve_masks, explained_under, headline_masks
from seedscope.engine.progress import Progress
from seedscope.engine.saes.encode import encoded
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Parts

LOSS_DRAWS = 2  # of the headline's masks; curves are drawn once


class _Judged(NamedTuple):
    """What masks are drawn from: every member's buckets and densities, (d_sae,) each."""

    buckets: Sequence[np.ndarray]
    densities: Sequence[np.ndarray]

    def masks(self, index: int) -> dict[str, list[np.ndarray]]:
        """All of one member, the headline's and the curves'."""
        pair = self.buckets[index], self.densities[index]
        return headline_masks(*pair) | curve_masks(*pair)

    def fewer_masks(self, index: int) -> dict[str, list[np.ndarray]]:
        """Those that the loss is measured under: LOSS_DRAWS of the headline's, one draw of the curves."""
        pair = self.buckets[index], self.densities[index]
        return headline_masks(*pair, n_draws=LOSS_DRAWS) | curve_masks(*pair, n_draws=1)


def _ablate(
    parts: Parts,
    ensemble: catalogue.Ensemble,
    members: SAE,
    ablation_pass: AblationPass,
    judged: _Judged,
    rows,
    about: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> None:
    """Every feature's worth, and what growing sets of each bucket are worth."""
    mask_pass, drawn = None, [judged.masks(index) for index in range(members.n_members)]
    if not ablation_pass.pairwise:
        mask_pass = MaskPass(members, drawn)
        with progress.stage(f"{ensemble.name}: masks", "tokens") as report:
            for first, batch, codes in encoded(members, rows, device):
                mask_pass.add(batch, codes)
                report(first + len(batch), len(rows))
    with progress.stage(f"{ensemble.name}: worth", "members") as report, parts.write("ablate", about) as put:
        for index, seed in enumerate(ensemble.seeds):
            worth = ablation_pass.finish(index)
            answers = mask_pass.finish(index, worth) if mask_pass else worth
            found = explained_under(answers, drawn[index])
            put(seed, {"ev": worth.explained_variance(), "marginal": worth.marginal_worth()} | _columns(found))
            report(index + 1, members.n_members)


def _columns(rows: list[Any]) -> dict[str, np.ndarray]:
    """Named rows of masks as named arrays."""
    return {
        f"mask_{name}": np.array(column) for name, column in zip(rows[0]._fields, zip(*rows, strict=True), strict=True)
    }
