"""Direct logit effects: the next tokens that a feature raises and lowers, leaving out all layers above it.

(W_dec[i] times the final norm's gain) @ W_U, for features of the residual stream's width. The norm's scale depends on the
token and is left out, so values compare within a feature (METHOD of this project; logit lens, nostalgebraist 2020).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seedscope.engine.activations.model import LanguageModel

N_LOGITS = 10  # highest and lowest that are kept
AT_ONCE = 2**26  # logits in memory: 256 MiB
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm", "ln_out")


class Logits(NamedTuple):
    """The highest and the lowest effects of every feature, best first, in nats per unit of activation times norm scale."""

    positive_ids: Int[Tensor, "features n"]
    positive: Float[Tensor, "features n"]
    negative_ids: Int[Tensor, "features n"]
    negative: Float[Tensor, "features n"]


@torch.no_grad()
def direct_logits(model: LanguageModel, rows: Float[Tensor, "features d_in"], *, n: int = N_LOGITS) -> Logits | None:
    """The tokens that decoder rows raise and lower most; None where the model has no logits or another width.

    Cost: features * d_in * vocabulary multiply-adds.
    """
    head = model.pretrained.get_output_embeddings() if model.causal else None
    if head is None or head.weight.shape[1] != rows.shape[1]:
        return None
    unembed: Tensor = head.weight.float()
    scaled = _through_final_norm(model, rows.to(unembed))
    n = min(n, len(unembed))
    parts = []
    for some in scaled.split(max(AT_ONCE // len(unembed), 1)):
        logits = some @ unembed.T
        high, low = logits.topk(n), logits.topk(n, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values))
    return Logits(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _through_final_norm(model: LanguageModel, rows: Tensor) -> Tensor:
    """Rows times the gain of the final norm; centred first where that norm subtracts the mean."""
    norm = _final_norm(model)
    if norm is None:
        return rows
    # Measured on the norm itself, as families spell the gain in their own way: Gemma's is 1 + weight.
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, rows.shape[1], generator=generator).to(rows)
    doubled = norm(probe).float() - norm(-probe).float()  # the bias falls out
    by_rms = doubled / 2 * probe.pow(2).mean(-1, keepdim=True).sqrt() / probe
    if torch.allclose(by_rms[0], by_rms[1], rtol=1e-2, atol=1e-3):
        return rows * by_rms.mean(0)
    centred = probe - probe.mean(-1, keepdim=True)
    gain = (doubled / 2 * centred.pow(2).mean(-1, keepdim=True).sqrt() / centred).mean(0)
    return (rows - rows.mean(-1, keepdim=True)) * gain


def _final_norm(model: LanguageModel) -> nn.Module | None:
    base = model.pretrained.base_model
    for holder in (base, getattr(base, "decoder", None)):
        for name in _FINAL_NORMS:
            if isinstance(norm := getattr(holder, name, None), nn.Module):
                return norm
    return None
