"""What is active in one member on the tokens of a text, from its codes.

Activations are a_i * ||d_i||, as in engine.features.activity, so that they compare with the pages' of the evaluation tokens.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from seedscope.engine.saes.sae import SAE, Codes


class ActiveFeatures(NamedTuple):
    """What is active in one member: a run of features per token, the strongest first."""

    n_active: Int[np.ndarray, " tokens"]
    feature: Int[np.ndarray, " active"]
    activation: Float[np.ndarray, " active"]

    def first(self, n_tokens: int) -> "ActiveFeatures":
        """The same of the first tokens alone."""
        end = int(self.n_active[:n_tokens].sum())
        return ActiveFeatures(self.n_active[:n_tokens], self.feature[:end], self.activation[:end])


@torch.no_grad()
def active_features(sae: SAE, codes: Codes, counts: Bool[np.ndarray, " tokens"]) -> ActiveFeatures:
    """What is active in a member (an ensemble of one) where tokens count; rows without a direction never are."""
    norms = sae.unit_norms()[0]
    indices = codes.indices[:, 0]
    values = codes.values[:, 0] * norms[indices]
    active = (values > 0) & values.isfinite() & torch.from_numpy(counts).to(values.device)[:, None]
    values, order = values.where(active, 0).sort(dim=1, descending=True, stable=True)
    active = values > 0
    return ActiveFeatures(
        active.sum(1).cpu().numpy().astype(np.int32),
        indices.gather(1, order)[active].cpu().numpy().astype(np.int32),
        values[active].cpu().numpy().astype(np.float32),
    )
