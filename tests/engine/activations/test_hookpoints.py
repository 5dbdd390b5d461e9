"""Hook points of every family against hooks and hidden states written down here by hand; refusals name what there is."""

import numpy as np
import pytest
import torch
from torch import nn

from seedscope.engine.activations.harvest import stream
from seedscope.engine.activations.hookpoints import block_list, find, names
from seedscope.engine.activations.tokens import tokenize
from support.tiny_models import FAMILIES, LAYERS, USUAL, VOCABULARY, WIDTH, network, tiny

DOCUMENTS = [("a", np.arange(2, 40)), ("b", np.array([5, 9, 5, 96, 3])), ("c", np.arange(2, 97) % 50 + 2)]
# Where the blocks of each family are, relative to the whole model, and its attention, as its authors call them.
LAYOUT = {
    "gpt2": ("transformer.h", "attn"),
    "gptj": ("transformer.h", "attn"),
    "gpt_neox": ("gpt_neox.layers", "attention"),
    "opt": ("model.decoder.layers", "self_attn"),
    "bloom": ("transformer.h", "self_attention"),
    "falcon": ("transformer.h", "self_attention"),
    "mpt": ("transformer.blocks", "attn"),
}
EVERY = sorted(FAMILIES)


@pytest.fixture(scope="module")
def model():
    """One of each family, made when first asked for."""
    made = {}
    return lambda family: made.setdefault(family, tiny(family))


def layout(family: str) -> tuple[str, str]:
    return LAYOUT.get(family, ("model.layers", "self_attn"))


def windows(model):
    return tokenize(DOCUMENTS, model, n_ctx=16)


def read(model, hookpoint: str) -> torch.Tensor:
    return torch.cat([batch.rows for batch in stream(model, windows(model), hookpoint, windows_per_batch=5)])


@torch.no_grad()
def by_hand(model, path: str, *, entering: bool = False) -> torch.Tensor:
    """Each window alone and unpadded, whole forward pass, a plain hook on `path` of the whole model."""
    rows, tokens = [], windows(model)

    def keep(_module, inputs, named, output):
        value = (inputs[0] if inputs else named["hidden_states"]) if entering else output
        value = value[0] if isinstance(value, tuple) else value
        rows.append(value.detach().clone().reshape(-1, value.shape[-1])[1:])

    handle = model.network.get_submodule(path).register_forward_hook(keep, with_kwargs=True)
    for ids in tokens.ids:
        model.network(torch.from_numpy(ids[ids >= 0]).long()[None])
    handle.remove()
    return torch.cat(rows)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", EVERY)
def test_a_block_is_found_under_every_spelling_and_gives_the_hidden_states_of_transformers(model, family):
    path, _ = layout(family)
    with torch.no_grad():
        ids = [torch.from_numpy(ids[ids >= 0]).long()[None] for ids in windows(model(family)).ids]
        states = [model(family).network(each, output_hidden_states=True).hidden_states for each in ids]
    expected = torch.cat([state[2][0, 1:] for state in states])  # entry L enters block L
    within = path.split(".", 1)[1]
    for spelling in ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", f"{path}.1", f"{within}.1"):
        close(read(model(family), spelling), expected)
    assert find(model(family).network, f"{path.rsplit('.', 1)[1]}.1")[0] is model(family).network.get_submodule(
        f"{path}.1"
    )
    close(read(model(family), "blocks.0.hook_resid_pre"), by_hand(model(family), f"{path}.0", entering=True))
    last = f"blocks.{LAYERS - 1}.hook_resid_post"  # transformers' own last entry is behind the final norm
    close(read(model(family), last), by_hand(model(family), f"{path}.{LAYERS - 1}"))


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_attention_and_mlp_outputs_are_what_is_added_to_the_residual_stream(model, family, layer):
    """Families with norms behind attention and MLP, parallel ones and ones that add within their modules included."""
    pre, attention, mlp, post = (
        read(model(family), f"blocks.{layer}.hook_{site}")
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    assert min(attention.abs().max(), mlp.abs().max()) > 1e-3
    close(pre + attention + mlp, post)


PARALLEL = {"gptj", "gpt_neox", "falcon", "phi"}
# Output projections of attention and MLP.
PROJECTIONS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gptj": ("attn.out_proj", "mlp.fc_out"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "mpt": ("attn.out_proj", "ffn.down_proj"),
    "phi": ("self_attn.dense", "mlp.fc2"),
}


@pytest.mark.parametrize("family", EVERY)
def test_the_stream_between_attention_and_mlp_is_read_where_there_is_one(model, family):
    if family in PARALLEL:
        with pytest.raises(ValueError, match="do not follow each other on the residual stream"):
            find(model(family).network, "blocks.1.hook_resid_mid")
        return
    pre, attention, mid, mlp, post = (
        read(model(family), f"blocks.1.hook_{site}")
        for site in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    )
    close(pre + attention, mid)
    close(mid + mlp, post)


@pytest.mark.parametrize(("family", "settings"), [("gpt_neox", False), ("falcon", False)])
def test_families_that_may_be_sequential_are_read_as_their_config_says(family, settings):
    key = {"gpt_neox": "use_parallel_residual", "falcon": "parallel_attn"}[family]
    sequential = tiny(family, **{key: settings})
    pre, attention, mid = (read(sequential, f"blocks.1.hook_{site}") for site in ("resid_pre", "attn_out", "resid_mid"))
    close(pre + attention, mid)


@pytest.mark.parametrize("family", EVERY)
def test_heads_and_neurons_are_what_the_projections_read(model, family):
    path, _ = layout(family)
    heads, neurons = PROJECTIONS.get(family, ("self_attn.o_proj", "mlp.down_proj"))
    close(read(model(family), "blocks.1.attn.hook_z"), by_hand(model(family), f"{path}.1.{heads}", entering=True))
    if family == "mixtral":
        with pytest.raises(ValueError, match="takes the MLP's neurons"):
            find(model(family).network, "blocks.1.mlp.hook_post")
        return
    close(read(model(family), "blocks.1.mlp.hook_post"), by_hand(model(family), f"{path}.1.{neurons}", entering=True))


@torch.no_grad()
def test_heads_of_gpt2_are_the_attention_pattern_times_the_values_and_neurons_the_activation_function(model):
    gpt2 = model("gpt2")
    block, tokens = gpt2.network.transformer.h[1], windows(gpt2)
    gpt2.network.set_attn_implementation("eager")
    z, post = [], []
    for ids in tokens.ids:
        out = gpt2.network(
            torch.from_numpy(ids[ids >= 0]).long()[None], output_attentions=True, output_hidden_states=True
        )
        values = block.attn.c_attn(block.ln_1(out.hidden_states[1]))[..., 2 * WIDTH :].unflatten(-1, (2, WIDTH // 2))
        heads = torch.einsum("hqk,khd->qhd", out.attentions[1][0], values[0]).flatten(1)
        z.append(heads[1:])
        middle = out.hidden_states[1][0] + block.attn.c_proj(heads)
        post.append(block.mlp.act(block.mlp.c_fc(block.ln_2(middle)))[1:])
    close(read(gpt2, "blocks.1.attn.hook_z"), torch.cat(z))
    close(read(gpt2, "blocks.1.mlp.hook_post"), torch.cat(post))


def test_gated_neurons_are_the_product_of_both_branches(model):
    mlp = model("llama").network.model.layers[1].mlp
    with torch.no_grad():
        entering = by_hand(model("llama"), "model.layers.1.mlp", entering=True)
        expected = mlp.act_fn(mlp.gate_proj(entering)) * mlp.up_proj(entering)
    close(read(model("llama"), "blocks.1.mlp.hook_post"), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "bloom"])
def test_embeddings_are_read_without_positions(model, family):
    path = {"gpt2": "transformer.wte", "bloom": "transformer.word_embeddings_layernorm"}.get(
        family, "model.embed_tokens"
    )
    with torch.no_grad():
        rows = torch.cat(
            [
                model(family).network.get_input_embeddings()(torch.from_numpy(ids[ids >= 0]).long())[1:]
                for ids in windows(model(family)).ids
            ]
        )
        expected = model(family).network.get_submodule(path)(rows) if family == "bloom" else rows
    close(read(model(family), "hook_embed"), expected)


def test_a_norm_or_a_gate_between_heads_and_projection_is_not_taken_for_the_heads():
    normed = network("llama")
    normed.model.layers[1].self_attn.attn_sub_norm = nn.LayerNorm(WIDTH)
    gated = network("llama")
    gated.model.layers[1].self_attn.q_proj = nn.Linear(WIDTH, 2 * WIDTH)
    for changed in (normed, gated):
        with pytest.raises(ValueError, match="takes the heads' outputs as they are"):
            find(changed, "blocks.1.attn.hook_z")


def test_a_stream_whose_addends_are_multiplied_is_refused_between_them():
    with pytest.raises(ValueError, match="do not follow each other"):
        find(network("granite", **USUAL, residual_multiplier=0.5), "blocks.1.hook_resid_mid")


def test_paths_may_say_input_or_output(model):
    gemma = model("gemma3_text").network
    block = gemma.model.layers[1]
    for name, place in {
        "model.layers.1.output": (block, False),
        "model.layers.1.input": (block, True),
        "model.layers.1.self_attn.o_proj.input": (block.self_attn.o_proj, True),
        "model.layers.1.post_feedforward_layernorm.output": (block.post_feedforward_layernorm, False),
    }.items():
        assert find(gemma, name) == place
    lens = ("hook_resid_post", "hook_resid_pre", "attn.hook_z", "hook_mlp_out")
    assert [find(gemma, f"blocks.1.{site}") for site in lens] == [
        (block, False), (block, True), (block.self_attn.o_proj, True), (block.post_feedforward_layernorm, False),
    ]  # fmt: skip
    bert = tiny("bert").network  # whose blocks have a part of this very name
    assert find(bert, "encoder.layer.1.output") == (bert.encoder.layer[1].output, False)


@pytest.mark.parametrize("family", EVERY)
def test_module_paths_reach_any_part(model, family):
    path, attention = layout(family)
    for part in (f"{path}.1.{attention}", f"{path}.2"):
        close(read(model(family), part), by_hand(model(family), part))
    assert read(model(family), "lm_head").shape[1] == VOCABULARY  # not in the base model


def test_opt_that_normalises_after_adding_is_read_before_the_sum(model):
    late = tiny("opt", do_layer_norm_before=False)
    close(read(late, "blocks.1.hook_mlp_out"), by_hand(late, "model.decoder.layers.1.fc2"))
    close(read(late, "blocks.1.hook_resid_post"), by_hand(late, "model.decoder.layers.1"))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_encoders_are_read_with_padding_masked(family):
    settings = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 24} if family == "distilbert" else {}
    encoder = tiny(family, **settings)
    assert not encoder.causal
    blocks = "transformer.layer" if family == "distilbert" else "encoder.layer"
    for hookpoint, path in (("blocks.1.hook_resid_post", f"{blocks}.1"), (f"{family}.{blocks}.0", f"{blocks}.0")):
        close(read(encoder, hookpoint), by_hand(encoder, path))
    mlp = f"{blocks}.1.ffn" if family == "distilbert" else f"{blocks}.1.output.dense"
    close(read(encoder, "blocks.1.hook_mlp_out"), by_hand(encoder, mlp))
    attention = f"{blocks}.1.attention" if family == "distilbert" else f"{blocks}.1.attention.output.dense"
    close(read(encoder, "blocks.1.hook_attn_out"), by_hand(encoder, attention))


def test_a_model_without_its_head_takes_the_same_names(model):
    whole = model("gpt2")
    bare = whole._replace(network=whole.network.transformer)
    for spelling in ("transformer.h.1", "h.1", "h.1.mlp", "blocks.1.hook_resid_pre"):
        torch.testing.assert_close(read(bare, spelling), read(whole, spelling), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom"])
def test_every_name_that_is_offered_is_found(model, family):
    lens, paths = names(model(family).network)
    assert len(lens) == 7 * LAYERS + 1
    for name in lens + paths:
        assert isinstance(find(model(family).network, name)[0], nn.Module)


@pytest.mark.parametrize(
    ("hookpoint", "nearest"),
    [
        ("h.1", "layers.1"),
        ("blocks.3.hook_resid_post", "blocks.2.hook_resid_post"),
        ("blocks.1.hook_resid_pra", "blocks.1.hook_resid_pre"),
        ("layers.1.attn", "layers.1.self_attn"),
        ("model.layers.1.mpl", "layers.1.mlp"),
        ("mlp", "layers.0.mlp"),
        ("layers", "layers.0"),
        ("", "layers.0"),
    ],
)
def test_an_unknown_hook_point_is_refused_with_the_nearest_names_and_their_number(model, hookpoint, nearest):
    network = model("llama").network
    n_paths = sum(1 for n, m in network.model.named_modules() if n and not isinstance(m, nn.ModuleList))
    with pytest.raises(ValueError, match=r"is not in this model \(LlamaForCausalLM\)") as refusal:
        find(network, hookpoint)
    message = str(refusal.value)
    assert f"{hookpoint!r} is" in message
    if hookpoint:
        assert nearest in message.split("nearest: ")[1].split("; ")[0].split(", ")
    assert "22 TransformerLens names (blocks.0.hook_resid_pre to blocks.2.hook_resid_post)" in message
    assert f"{n_paths} module paths (layers.0 to layers.2 and their parts)" in message


@pytest.mark.parametrize(
    ("hookpoint", "reason"),
    [
        ("ln_final.hook_normalized", "divided by its scale, before gain and bias) .*the last block's hook_resid_post"),
        ("ln_final.hook_scale", "the scale that it divides by"),
        ("blocks.1.ln1.hook_normalized", "hook_resid_pre or hook_resid_mid of its block"),
    ],
)
def test_places_inside_norms_are_refused_with_what_is_read_instead(model, hookpoint, reason):
    for family in ("llama", "gpt2"):
        with pytest.raises(ValueError, match=f"it lies inside a norm .*{reason.split(' .*')[-1]}"):
            find(model(family).network, hookpoint)


def test_a_recurrent_model_has_residual_names_only():
    settings = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4}
    from transformers import MambaConfig, MambaForCausalLM

    network = MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=1, **settings)
    )
    assert len(names(network)[0]) == 2 * LAYERS + 1
    with pytest.raises(ValueError, match=r"nearest: layers\.1"):
        find(network, "blocks.1.hook_mlp_out")


def test_modules_without_a_row_per_token_are_refused(model):
    with pytest.raises(ValueError, match="passes"):
        read(tiny("bert"), "pooler")
    extended = network("llama")
    extended.model.layers[1].unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"never reaches 'layers\.1\.unused'"):
        read(model("llama")._replace(network=extended), "layers.1.unused")


def test_the_list_of_blocks_is_the_one_as_long_as_the_model_is_deep(model):
    name, blocks = block_list(model("mixtral").network)
    assert (name, len(blocks)) == ("layers", LAYERS)
