"""Resolve a hook point's name, TransformerLens' or a module path in any spelling, to the module in a model."""

import re
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from seedscope.engine.activations.thread_hooks import in_this_thread

if TYPE_CHECKING:
    import transformers

SITES = (
    "hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_resid_mid", "attn.hook_z", "mlp.hook_post",
)  # fmt: skip
TRANSFORMER_LENS = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, SITES))})")
EMBEDDING = "hook_embed"
# TransformerLens' places inside norms.
INSIDE_NORM = re.compile(r"(ln_final|blocks\.\d+\.ln[12](?:_post)?)\.hook_(normalized|scale)")
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
# The module whose input is the outputs of the heads side by side, and the one whose input is what the MLP's activation
# function (times the gate's other branch, where there is one) gives.
HEADS = (
    "attn.c_proj", "attn.out_proj", "attn.o_proj", "attn.attention.out_proj", "self_attn.o_proj", "self_attn.out_proj",
    "self_attn.dense", "self_attn.c_proj", "attention.dense", "self_attention.dense", "attention.output.dense",
    "attention.out_lin", "attention.o_proj",
)  # fmt: skip
NEURONS = (
    "mlp.c_proj", "mlp.down_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "mlp.fc2", "fc2", "ffn.down_proj", "output.dense",
    "ffn.lin2",
)  # fmt: skip
# The norm in front of the MLP: its input is the residual stream between attention and MLP.
MIDDLE = (
    "pre_feedforward_layernorm", "ln_2", "post_attention_layernorm", "norm_2", "ffn_norm", "post_attention_norm",
    "final_layer_norm",
)  # fmt: skip
# Norms between heads and projection, or neurons and projection (BitNet): there the projection reads something else.
INNER_NORMS = ("attn_sub_norm", "ffn_sub_norm", "inner_attn_ln", "ffn_layernorm")
WRAPPERS = {"model", "transformer", "base_model", "module", "_orig_mod"}
N_NEAREST = 4
PROBE_TOKENS = 4


class MiddleCheck(NamedTuple):
    """What a short forward pass says of the input of the norm in front of a block's MLP."""

    is_sum: bool  # it is what enters the block plus what attention adds
    is_carried: bool  # what replaces it is also what the MLP's output is added to


_CHECKED: "WeakKeyDictionary[nn.Module, MiddleCheck]" = WeakKeyDictionary()


def find(network: "transformers.PreTrainedModel", hookpoint: str) -> tuple[nn.Module, bool]:
    """The module behind a hook point, and whether its input (True) or its output (False) is meant.

    TransformerLens' names, L counting blocks from 0:
    - `blocks.L.hook_resid_pre`: what enters block L; the embeddings for L = 0, else `blocks.L-1.hook_resid_post`.
    - `blocks.L.hook_resid_post`: what leaves block L, before any final norm.
    - `blocks.L.hook_attn_out`, `hook_mlp_out`: what attention and MLP add to the residual stream. Families that
      normalise it before adding (Gemma 2 and 3, OLMo 2, GLM 4) are read behind that norm, as TransformerLens does;
      families that normalise after adding (BERT, OPT-350m) before the sum. A constant factor (Granite) is not applied.
    - `blocks.L.hook_resid_mid`: the residual stream between attention and MLP. Parallel families have none.
    - `blocks.L.attn.hook_z`: the heads' outputs in front of the output projection, flattened to heads * d_head.
    - `blocks.L.mlp.hook_post`: the MLP's neurons behind the activation function, times the other branch in gated MLPs.
    - `hook_embed`: token embeddings without positions; where the family normalises them (BLOOM), behind that norm.

    Any other name is a module path, whose output is meant, relative to the model or its base model, with or without
    the wrapper's prefix, or the unique end of one: `layers.6`, `h.6`, `transformer.h.6`, `model.layers.6.mlp`,
    `gpt_neox.layers.3.attention`. A path may end in `.output`, or in `.input` for what enters the module. Raises ValueError
    with the reason, where there is one, the nearest names and how many there are.
    """
    match = TRANSFORMER_LENS.fullmatch(hookpoint)
    _, blocks = block_list(network)
    if match and int(match[1]) < len(blocks):
        block, site = blocks[int(match[1])], match[2]
        place = _site(block, site)
        reason = _undefined(block, site) if place is None else ""
        if place and site == "hook_resid_mid" and not check_middle(network, block, place[0]).is_sum:
            reason = PARALLEL
        if place and not reason:
            return place
        raise ValueError(_refusal(network, hookpoint, reason))
    if inside := INSIDE_NORM.fullmatch(hookpoint):
        raise ValueError(_refusal(network, hookpoint, _in_norm(inside)))
    if hookpoint == EMBEDDING:
        return _embedding(network), False
    for path, is_input in _directions(hookpoint):
        module = None if match else _by_path(network, path)
        if module is not None:
            return module, is_input
    raise ValueError(_refusal(network, hookpoint))


def lies_on_stream(network: "transformers.PreTrainedModel", hookpoint: str) -> bool:
    """Whether a hook point is some block's `hook_resid_mid`.

    What a norm reads is replaced at its input, but the residual stream goes past that norm: whoever replaces activations
    has to write them into that very tensor. Raises ValueError where that would not reach the sum behind the MLP.
    """
    match = TRANSFORMER_LENS.fullmatch(hookpoint)
    if not match or match[2] != "hook_resid_mid":
        return False
    norm, _ = find(network, hookpoint)
    block = block_list(network)[1][int(match[1])]
    if not check_middle(network, block, norm).is_carried:
        raise ValueError(
            f"activations at {hookpoint!r} cannot be replaced in a {type(network).__name__}: its block does not add the MLP's "
            "output to the tensor that the norm in front of the MLP reads; measure the loss at hook_resid_pre or "
            "hook_resid_post"
        )
    return True


PARALLEL = "attention and MLP do not follow each other on the residual stream, so nothing lies between them"


def check_middle(network: "transformers.PreTrainedModel", block: nn.Module, norm: nn.Module) -> MiddleCheck:
    """Run a few tokens up to the end of a block, with what `norm` reads doubled in place; computed once for each norm."""
    if norm in _CHECKED:
        return _CHECKED[norm]
    attention, mlp = _residual_addend(block, "hook_attn_out"), _residual_addend(block, "hook_mlp_out")
    if attention is None or mlp is None:
        return MiddleCheck(is_sum=False, is_carried=False)
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def enter(module: nn.Module, positional: tuple, named: dict) -> None:
        value: Tensor = positional[0] if positional else named["hidden_states"]
        inputs[module] = value.clone()
        if module is norm:
            value.mul_(2)

    def leave(module: nn.Module, _inputs: tuple, output: object) -> None:
        outputs[module] = (output if isinstance(output, Tensor) else cast("tuple[Tensor, ...]", output)[0]).clone()
        if module is block:
            raise _BlockPassed

    handles = [module.register_forward_pre_hook(in_this_thread(enter), with_kwargs=True) for module in (block, norm)]
    handles += [module.register_forward_hook(in_this_thread(leave)) for module in (attention, mlp, block)]
    try:
        with suppress(_BlockPassed), torch.inference_mode():
            ids = torch.arange(PROBE_TOKENS, device=network.device)[None]
            network.base_model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(inputs) < 2 or len(outputs) < 3:  # some part is never called
        return MiddleCheck(is_sum=False, is_carried=False)
    parts = (inputs[block], inputs[norm], outputs[attention], outputs[mlp], outputs[block])
    before, middle, added, last, after = (part.reshape(PROBE_TOKENS, -1) for part in parts)
    # Computed in the model's own type, in which the model's sum is rounded as well.
    is_sum = (before + added - middle).abs().max() <= 1e-3 * added.abs().max()
    is_carried = (2 * middle + last - after).abs().max() <= 1e-2 * middle.abs().max()
    _CHECKED[norm] = MiddleCheck(bool(is_sum), bool(is_sum and is_carried))
    return _CHECKED[norm]


class _BlockPassed(Exception):
    """Ends a forward pass behind a block."""


def block_list(network: "transformers.PreTrainedModel") -> tuple[str, list[nn.Module]]:
    """Path of the list of blocks within the base model, and the blocks; ("", []) where the model has none."""
    tower = set(_text_tower(network).modules())
    named = network.base_model.named_modules()
    lists = [(n, m) for n, m in named if isinstance(m, nn.ModuleList) and len(m) and m in tower]
    depth = getattr(network.config.get_text_config(), "num_hidden_layers", None)
    candidates = [(name, blocks) for name, blocks in lists if len(blocks) == depth] or lists
    name, blocks = min(candidates, key=lambda item: item[0].count("."), default=("", []))
    return name, list(blocks)


def _text_tower(network: "transformers.PreTrainedModel") -> nn.Module:
    """The part of a multimodal wrapper that reads tokens; the base model of any other model."""
    base = network.base_model
    if network.config.get_text_config() is not network.config:
        for name in ("language_model", "text_model"):
            if isinstance(tower := getattr(base, name, None), nn.Module):
                return tower
    return base


def names(network: "transformers.PreTrainedModel") -> tuple[list[str], list[str]]:
    """(TransformerLens' names, module paths within the base model) that this model has."""
    _, blocks = block_list(network)
    lens = [
        f"blocks.{layer}.{site}"
        for layer, block in enumerate(blocks)
        for site in SITES
        if _site(block, site) is not None
    ]
    lens.append(EMBEDDING)
    paths = [n for n, m in network.base_model.named_modules() if n and not isinstance(m, nn.ModuleList)]
    return lens, paths


def _site(block: nn.Module, site: str) -> tuple[nn.Module, bool] | None:
    """The module of a block behind a site, and whether its input is meant; None where the block has no such place."""
    modules = dict(block.named_modules())
    if site in ("hook_resid_pre", "hook_resid_post"):
        return block, site == "hook_resid_pre"
    if site in ("hook_attn_out", "hook_mlp_out"):
        added = _residual_addend(block, site)
        return None if added is None else (added, False)
    if site == "hook_resid_mid":
        if "post_feedforward_layernorm" in modules and "pre_feedforward_layernorm" not in modules:
            paths: tuple[str, ...] = ("mlp",)  # OLMo 2 normalises behind attention and MLP alone
        else:
            paths = MIDDLE
    else:
        if any(path.rpartition(".")[2] in INNER_NORMS for path in modules):
            return None
        paths = HEADS if site == "attn.hook_z" else NEURONS
    module = next((modules[path] for path in paths if path in modules), None)
    if module is None or (site == "attn.hook_z" and _gated(modules, module)):
        return None
    return module, True


def _gated(modules: dict[str, nn.Module], projection: nn.Module) -> bool:
    """Whether heads are multiplied by gates in front of the output projection, as queries twice as wide show (Qwen 3 Next)."""
    queries = next((module for path, module in modules.items() if path.endswith("attn.q_proj")), None)
    wide, reads = getattr(queries, "out_features", None), getattr(projection, "in_features", None)
    return wide is not None and reads is not None and wide == 2 * reads


def _in_norm(match: re.Match[str]) -> str:
    """Why what a norm computes in between is not read, and what can be."""
    what = "its input divided by its scale" if match[2] == "normalized" else "the scale that it divides by"
    reads = (
        "the last block's hook_resid_post"
        if match[1] == "ln_final"
        else "hook_resid_pre or hook_resid_mid of its block"
    )
    return (
        f"it lies inside a norm ({what}, before gain and bias) and is no module's output; the norm reads {reads}, and its module's "
        "own output has gain and bias in it"
    )


def _undefined(block: nn.Module, site: str) -> str:
    """Why a block has no such place."""
    if site == "hook_resid_mid":
        return PARALLEL
    if site in ("attn.hook_z", "mlp.hook_post"):
        what = "the heads' outputs" if site == "attn.hook_z" else "the MLP's neurons (of a mixture: of all experts)"
        return f"no module of its {type(block).__name__} takes {what} as they are"
    return ""


def _residual_addend(block: nn.Module, site: str) -> nn.Module | None:
    """The module of a block whose output attention or MLP adds to the residual stream."""
    modules = dict(block.named_modules())
    if site == "hook_attn_out" and "post_feedforward_layernorm" in modules:
        return modules.get("post_attention_layernorm")  # elsewhere this name is the norm in front of the MLP
    return next((modules[path] for path in (ATTENTION if site == "hook_attn_out" else MLP) if path in modules), None)


def _embedding(network: "transformers.PreTrainedModel") -> nn.Module:
    """The module whose output is the token embeddings; BLOOM's norm behind them is part of TransformerLens' place."""
    norm = getattr(network.base_model, "word_embeddings_layernorm", None)
    return norm if isinstance(norm, nn.Module) else network.get_input_embeddings()


def _directions(path: str) -> list[tuple[str, bool]]:
    """(module path, whether its input is meant) that a name can stand for; a module of that very name comes first."""
    module, _, end = path.rpartition(".")
    return [(path, False)] + ([(module, end == "input")] if module and end in ("input", "output") else [])


def _by_path(network: "transformers.PreTrainedModel", path: str) -> nn.Module | None:
    base = network.base_model
    whole, within = (
        {n: m for n, m in root.named_modules() if n and not isinstance(m, nn.ModuleList)} for root in (network, base)
    )
    tower = dict(_text_tower(network).named_modules())
    wrappers = WRAPPERS | {network.base_model_prefix}
    while path:
        if path in within or path in whole:
            return within[path] if path in within else whole[path]
        if path in tower and not isinstance(tower[path], nn.ModuleList):
            return tower[path]
        ends = [m for n, m in within.items() if n.endswith("." + path)]
        if len(ends) == 1:
            return ends[0]
        first, _, rest = path.partition(".")
        if first not in wrappers:
            return None
        path = rest
    return None


def _refusal(network: "transformers.PreTrainedModel", hookpoint: str, reason: str = "") -> str:
    lens, paths = names(network)
    name, blocks = block_list(network)
    # The same block in this model's own spelling is nearer than any string distance says.
    same = [f"{name}.{n}" for n in re.findall(r"\d+", hookpoint)[:1] if int(n) < len(blocks)]
    nearest = dict.fromkeys(same + get_close_matches(hookpoint, lens + paths, n=N_NEAREST, cutoff=0.0))
    choices = f"{len(lens)} TransformerLens names" + (f" ({lens[0]} to {_last_post(lens)})" if lens else "")
    return (
        f"hook point {hookpoint!r} is not in this model ({type(network).__name__}){f': {reason}' if reason else ''}, nearest: "
        f"{', '.join(list(nearest)[:N_NEAREST])}; expected one of {choices} or {len(paths)} module paths"
        + (f" ({name}.0 to {name}.{len(blocks) - 1} and their parts)" if blocks else "")
    )


def _last_post(lens: list[str]) -> str:
    return next(name for name in reversed(lens) if name.endswith("resid_post"))
