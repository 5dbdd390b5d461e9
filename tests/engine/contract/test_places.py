"""Names of places in a model: which are the same, whatever library spelt them."""

import pytest

from seedscope.engine.contract.places import place, same_place

SAME = [
    ("model.layers.1.output", "blocks.1.hook_resid_post"),
    ("model.layers.1.output", "model.layers.1"),
    ("model.layers.1.output", "layers.1"),
    ("model.layers.1.self_attn.o_proj.input", "blocks.1.attn.hook_z"),
    ("transformer.h.1.attn.c_proj.input", "blocks.1.attn.hook_z"),
    ("model.layers.1.post_feedforward_layernorm.output", "blocks.1.hook_mlp_out"),
    ("model.layers.1.post_feedforward_layernorm", "blocks.1.hook_mlp_out"),
    ("model.layers.1.mlp.down_proj.input", "blocks.1.mlp.hook_post"),
    ("model.layers.2.input", "blocks.1.hook_resid_post"),
    ("blocks.2.hook_resid_pre", "h.1"),
    ("layers.1.mlp.output", "model.layers.1.mlp"),
    ("layer_1", "blocks.1.hook_resid_post"),
]
OTHER = [
    ("model.layers.1.output", "blocks.2.hook_resid_post"),
    ("model.layers.1.output", "blocks.1.hook_resid_pre"),
    ("model.layers.1.self_attn.o_proj.output", "blocks.1.attn.hook_z"),
    ("model.layers.1.self_attn.o_proj", "blocks.1.attn.hook_z"),
    (
        "model.layers.1.post_attention_layernorm",
        "blocks.1.hook_attn_out",
    ),  # in most families the norm in front of the MLP
    ("layers.11", "layers.1"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_place_are_the_same(one, other):
    assert same_place(one, other)
    assert same_place(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_names_of_other_places_are_not(one, other):
    assert not same_place(one, other)
    assert not same_place(other, one)


def test_the_place_of_a_name_that_depends_on_the_model_is_not_told():
    assert place("blocks.0.hook_resid_pre") == (0, "hook_resid_pre")
    assert [place(name) for name in ("model.layers.1.mlp", "lm_head", "", "hook_embed")] == [None] * 4
