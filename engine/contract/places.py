"""Names of one place in a model, in the spellings of several libraries, told apart without the model.

Only what a name says whatever the model's family is used: a block's output is a place of the residual stream everywhere,
while the output of `post_attention_layernorm` is not.
"""

import re
from typing import NamedTuple

_BLOCK = re.compile(r"(?:.*\.)?(?:layers?|h|blocks)\.(\d+)(?:\.(.+))?")
_LAYER = re.compile(r"layer_(\d+)")  # Gemma Scope's folders say no site
_HEADS = re.compile(r"(self_attn|attn|attention|self_attention)\.(o_proj|c_proj|out_proj|dense)\.input")
_NEURONS = re.compile(r"mlp\.(c_proj|down_proj|dense_4h_to_h|fc_out|fc2)\.input")
# The residual stream is the block's output; what enters block L is what leaves block L - 1.
_SITES = {
    None: "hook_resid_post",
    "output": "hook_resid_post",
    "input": "hook_resid_pre",
    "post_feedforward_layernorm": "hook_mlp_out",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}


class Place(NamedTuple):
    """A site of a block, as TransformerLens calls it."""

    layer: int
    site: str


def place(hookpoint: str) -> Place | None:
    """The place that a name means whatever the model is; None where that depends on the model, or the name is of no block.

    `model.layers.1.output`, `h.1` and `blocks.1.hook_resid_post` are one place, and so is `blocks.2.hook_resid_pre`.
    """
    named = respelled(hookpoint)
    if named and named.site == "hook_resid_pre" and named.layer:
        return Place(named.layer - 1, "hook_resid_post")
    return named


def respelled(hookpoint: str) -> Place | None:
    """As `place`, but what enters a block stays its `hook_resid_pre`: the same site under TransformerLens' name."""
    match = _BLOCK.fullmatch(hookpoint)
    if match is None:
        return None
    layer, rest = int(match[1]), match[2]
    site = _SITES.get(rest, rest)
    if rest and _HEADS.fullmatch(rest):
        site = "attn.hook_z"
    elif rest and _NEURONS.fullmatch(rest):
        site = "mlp.hook_post"
    return Place(layer, site) if "hook_" in site else None


def same_place(one: str, other: str) -> bool:
    """Whether two names can be of one place, each in the spelling of its library."""
    if (place(one) or one) == (place(other) or other):
        return True
    one, other = one.removesuffix(".output"), other.removesuffix(".output")
    if one == other or one.endswith("." + other) or other.endswith("." + one):
        return True
    return any(
        (layer := _LAYER.fullmatch(a)) is not None and layer[1] in re.findall(r"\d+", b)[:1]
        for a, b in ((one, other), (other, one))
    )
