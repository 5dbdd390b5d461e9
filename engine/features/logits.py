"""Direct logit effects: the next tokens that a feature raises and lowers, leaving out all layers above it.

(W_dec[i] times the final norm's gain) @ W_U, for features of the residual stream's width. The norm's scale depends on the
token and is left out, so values compare within a feature (METHOD of this project; logit lens, nostalgebraist 2020).
"""

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seedscope.engine.activations.model import LanguageModel
from seedscope.engine.activations.thread_hooks import in_this_thread

if TYPE_CHECKING:
    import transformers

N_LOGITS = 10  # highest and lowest that are kept
AT_ONCE = 2**26  # logits in memory: 256 MiB
PROBE_TOKENS = 5
_FOUND: "WeakKeyDictionary[nn.Module, nn.Module | None]" = WeakKeyDictionary()


class Logits(NamedTuple):
    """The highest and the lowest effects of every feature, best first, in nats per unit of activation times norm scale."""

    positive_ids: Int[Tensor, "features n"]
    positive: Float[Tensor, "features n"]
    negative_ids: Int[Tensor, "features n"]
    negative: Float[Tensor, "features n"]


@torch.no_grad()
def direct_logits(model: LanguageModel, rows: Float[Tensor, "features d_in"], *, n: int = N_LOGITS) -> Logits | None:
    """The tokens that decoder rows raise and lower most; None where `refusal` gives a reason.

    Cost: features * d_in * vocabulary multiply-adds.
    """
    factors = _factors(model, rows)
    if factors is None:
        return None
    scaled, unembed = factors
    n = min(n, len(unembed))
    parts = []
    for some in scaled.split(max(AT_ONCE // len(unembed), 1)):
        logits = some @ unembed.T
        high, low = logits.topk(n), logits.topk(n, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values))
    return Logits(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


@torch.no_grad()
def all_direct_logits(model: LanguageModel, row: Float[Tensor, " d_in"]) -> Float[Tensor, " vocabulary"]:
    """The effect of one decoder row on every token, in the unit of `Logits`; raises ValueError that says `refusal`."""
    factors = _factors(model, row[None])
    if factors is None:
        raise ValueError(f"there are no direct logits: {refusal(model, len(row))}")
    scaled, unembed = factors
    return (scaled @ unembed.T)[0].cpu()


def _factors(model: LanguageModel, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows behind the final norm, and the unembedding (vocabulary, d_in); None where `refusal` gives a reason."""
    if refusal(model, rows.shape[1]):
        return None
    head, norm = model.pretrained.get_output_embeddings(), final_norm(model)
    if head is None or norm is None:
        return None
    unembed: Tensor = head.weight.float()
    return _through_norm(norm, rows.to(unembed)), unembed


def refusal(model: LanguageModel, d_in: int) -> str | None:
    """Why there are no direct logits for decoder rows of a width, as a sentence; None where there are."""
    head = model.pretrained.get_output_embeddings() if model.causal else None
    if head is None:
        return f"{model.name} predicts no next token"
    if head.weight.shape[1] != d_in:
        return f"decoder rows have {d_in} numbers, and the head of {model.name} reads {head.weight.shape[1]}"
    return missing_norm(model)


def missing_norm(model: LanguageModel) -> str | None:
    """Why there are no direct logits at any width, as a sentence: no final norm was found; None where there is one."""
    if not model.causal or model.pretrained.get_output_embeddings() is None or final_norm(model) is not None:
        return None
    return f"no norm of {model.name} gives what its head reads"


def _through_norm(norm: nn.Module, rows: Tensor) -> Tensor:
    """Rows times the gain of a norm; centred first where it subtracts the mean."""
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


@torch.no_grad()
def final_norm(model: LanguageModel) -> nn.Module | None:
    """The norm whose output is what the head reads, found by a short forward pass; None where there is none.

    Names do not tell: OPT's lies in its decoder, a multimodal wrapper's in its text tower, and models that normalise behind
    every block have it in the last one. Where the head reads anything else, such as a projection of a norm, there is none.
    """
    network, head = model.pretrained, model.pretrained.get_output_embeddings()
    if head is None:
        return None
    if network not in _FOUND:
        _FOUND[network] = _trace(network, head, min(PROBE_TOKENS, model.vocabulary))
    return _FOUND[network]


def _trace(network: "transformers.PreTrainedModel", head: nn.Module, n_tokens: int) -> nn.Module | None:
    passed: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []

    def leave(module: nn.Module, _inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            passed.append((module, output))

    def enter(_module: nn.Module, inputs: tuple) -> None:
        read.append(inputs[0])

    norms = [module for module in network.modules() if "norm" in type(module).__name__.lower()]
    handles = [module.register_forward_hook(in_this_thread(leave)) for module in norms]
    handles.append(head.register_forward_pre_hook(in_this_thread(enter)))
    try:
        network(torch.arange(n_tokens, device=network.device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not read:
        return None
    ends = [
        norm for norm, output in passed if output.shape == read[-1].shape and torch.equal(output.to(read[-1]), read[-1])
    ]
    return ends[-1] if ends else None
