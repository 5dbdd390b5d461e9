"""Resolve a hook point's name, TransformerLens' or a module path in any spelling, to the module in a model."""

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    import transformers

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
TRANSFORMER_LENS = re.compile(rf"blocks\.(\d+)\.hook_({'|'.join(SITES)})")
# Where, inside a block, stands what attention and MLP add to the residual stream; the first path that exists counts.
# Longer paths come first: Bloom's and MPT's outer modules add the residual themselves, BERT's normalise the sum.
ATTENTION = (
    "post_self_attn_layernorm", "attention.output.dense", "self_attention.dense", "self_attn", "attn", "attention",
    "self_attention",
)  # fmt: skip
MLP = (
    "post_feedforward_layernorm", "post_mlp_layernorm", "mlp.dense_4h_to_h", "mlp", "feed_forward", "ffn.down_proj",
    "ffn", "fc2", "output.dense",
)  # fmt: skip
WRAPPERS = {"model", "transformer", "base_model", "module", "_orig_mod"}
N_NEAREST = 4


def find(network: "transformers.PreTrainedModel", hookpoint: str) -> tuple[nn.Module, bool]:
    """The module behind a hook point, and whether its input (True) or its output (False) is meant.

    TransformerLens' names, L counting blocks from 0:
    - `blocks.L.hook_resid_pre`: what enters block L; the embeddings for L = 0, else `blocks.L-1.hook_resid_post`.
    - `blocks.L.hook_resid_post`: what leaves block L, before any final norm.
    - `blocks.L.hook_attn_out`, `hook_mlp_out`: what attention and MLP add to the residual stream. Families that
      normalise it before adding (Gemma 2 and 3, OLMo 2, GLM 4) are read behind that norm, as TransformerLens does;
      families that normalise after adding (BERT, OPT-350m) before the sum. A constant factor (Granite) is not applied.

    Any other name is a module path, whose output is meant, relative to the model or its base model, with or without
    the wrapper's prefix, or the unique end of one: `layers.6`, `h.6`, `transformer.h.6`, `model.layers.6.mlp`,
    `gpt_neox.layers.3.attention`. Raises ValueError with the nearest names and how many there are.
    """
    match = TRANSFORMER_LENS.fullmatch(hookpoint)
    _, blocks = block_list(network)
    if match and int(match[1]) < len(blocks):
        block, site = blocks[int(match[1])], match[2]
        if site.startswith("resid"):
            return block, site == "resid_pre"
        added = _residual_addend(block, site)
        if added is not None:
            return added, False
    module = None if match else _by_path(network, hookpoint)
    if module is not None:
        return module, False
    raise ValueError(_refusal(network, hookpoint))


def block_list(network: "transformers.PreTrainedModel") -> tuple[str, list[nn.Module]]:
    """Path of the list of blocks within the base model, and the blocks; ("", []) where the model has none."""
    lists = [(n, m) for n, m in network.base_model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    depth = getattr(network.config.get_text_config(), "num_hidden_layers", None)
    candidates = [(name, blocks) for name, blocks in lists if len(blocks) == depth] or lists
    name, blocks = min(candidates, key=lambda item: item[0].count("."), default=("", []))
    return name, list(blocks)


def names(network: "transformers.PreTrainedModel") -> tuple[list[str], list[str]]:
    """(TransformerLens' names, module paths within the base model) that this model has."""
    _, blocks = block_list(network)
    lens = [
        f"blocks.{layer}.hook_{site}"
        for layer, block in enumerate(blocks)
        for site in SITES
        if site.startswith("resid") or _residual_addend(block, site) is not None
    ]
    paths = [n for n, m in network.base_model.named_modules() if n and not isinstance(m, nn.ModuleList)]
    return lens, paths


def _residual_addend(block: nn.Module, site: str) -> nn.Module | None:
    """The module of a block whose output attention or MLP adds to the residual stream."""
    modules = dict(block.named_modules())
    if site == "attn_out" and "post_feedforward_layernorm" in modules:
        return modules.get("post_attention_layernorm")  # elsewhere this name is the norm in front of the MLP
    return next((modules[path] for path in (ATTENTION if site == "attn_out" else MLP) if path in modules), None)


def _by_path(network: "transformers.PreTrainedModel", path: str) -> nn.Module | None:
    base = network.base_model
    whole, within = (
        {n: m for n, m in root.named_modules() if n and not isinstance(m, nn.ModuleList)} for root in (network, base)
    )
    wrappers = WRAPPERS | {network.base_model_prefix}
    while path:
        if path in within or path in whole:
            return within[path] if path in within else whole[path]
        ends = [m for n, m in within.items() if n.endswith("." + path)]
        if len(ends) == 1:
            return ends[0]
        first, _, rest = path.partition(".")
        if first not in wrappers:
            return None
        path = rest
    return None


def _refusal(network: "transformers.PreTrainedModel", hookpoint: str) -> str:
    lens, paths = names(network)
    name, blocks = block_list(network)
    # The same block in this model's own spelling is nearer than any string distance says.
    same = [f"{name}.{n}" for n in re.findall(r"\d+", hookpoint)[:1] if int(n) < len(blocks)]
    nearest = dict.fromkeys(same + get_close_matches(hookpoint, lens + paths, n=N_NEAREST, cutoff=0.0))
    choices = f"{len(lens)} TransformerLens names" + (f" ({lens[0]} to {_last_post(lens)})" if lens else "")
    return (
        f"hook point {hookpoint!r} is not in this model ({type(network).__name__}), nearest: "
        f"{', '.join(list(nearest)[:N_NEAREST])}; expected one of {choices} or {len(paths)} module paths"
        + (f" ({name}.0 to {name}.{len(blocks) - 1} and their parts)" if blocks else "")
    )


def _last_post(lens: list[str]) -> str:
    return next(name for name in reversed(lens) if name.endswith("resid_post"))
