"""Features that have not fired for long, and AuxK, which asks them to explain what the others leave."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.sae import SAE


def count(silent_tokens: Int[Tensor, "members d_sae"], fired: Bool[Tensor, "members d_sae"], n_tokens: int) -> None:
    """Add a batch to how many tokens each feature has been silent for, in place."""
    silent_tokens += n_tokens
    silent_tokens[fired] = 0


def aux_loss(
    sae: SAE,
    pre: Float[Tensor, "tokens members d_sae"],
    silent: Bool[Tensor, "members d_sae"],
    residual: Float[Tensor, "tokens members d_in"],
    aux_k: int,
) -> Float[Tensor, ""]:
    """AuxK (Gao et al. 2024, appendix A.2): the share of the residual that the top aux_k silent features leave unexplained.

    Silent features are few, so their columns are gathered per member and multiplied densely: over all features it cost
    as much as the rest of the step.
    """
    loss = pre.new_zeros(())
    for member, which in enumerate(silent):
        columns = which.nonzero()[:, 0]
        if not len(columns):
            continue
        acts = pre[:, member].index_select(1, columns)
        if len(columns) > aux_k:
            least = acts.topk(aux_k, dim=1).values[:, -1:]
            acts = acts.masked_fill(acts < least, 0.0)
        left = residual[:, member]
        error = (left - acts.relu() @ sae.W_dec[member].index_select(0, columns)).pow(2).sum()
        loss = loss + error / (left - left.mean(0)).pow(2).sum()
    return loss
