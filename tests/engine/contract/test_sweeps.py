"""Settings of ensembles and sweeps: one place is one site and layer, however a library spells it."""

from dataclasses import fields

import pytest

from seedscope.engine.contract.sweeps import factors, settings
from seedscope.engine.contract.tables.study import Ensemble


def row(name: str, hookpoint: str | None) -> Ensemble:
    values = dict.fromkeys(field.name for field in fields(Ensemble)) | {"variant": "topk", "d_sae": 8, "k": 4}
    return Ensemble(**values | {"ensemble": name, "hookpoint": hookpoint, "n_members": 2})


@pytest.mark.parametrize(
    ("hookpoint", "site", "layer"),
    [
        ("blocks.1.hook_resid_post", "blocks.N.hook_resid_post", 1),
        ("model.layers.1.output", "blocks.N.hook_resid_post", 1),
        ("h.1", "blocks.N.hook_resid_post", 1),
        ("blocks.2.hook_resid_pre", "blocks.N.hook_resid_pre", 2),
        ("model.layers.2.input", "blocks.N.hook_resid_pre", 2),
        ("model.layers.3.self_attn.o_proj.input", "blocks.N.attn.hook_z", 3),
        ("layers.3.post_attention_layernorm", "layers.N.post_attention_layernorm", 3),
    ],
)
def test_a_site_has_one_name(hookpoint, site, layer):
    values = settings(row("a", hookpoint))
    assert (values["site"], values["layer"]) == (site, layer)
    assert "hookpoint" not in values


def test_a_hook_point_without_a_layer_is_itself():
    assert settings(row("a", "hook_embed"))["hookpoint"] == "hook_embed"
    assert not {"site", "layer"} & settings(row("a", None)).keys()


def test_layers_in_two_spellings_are_one_sweep():
    rows = [row("a", "blocks.1.hook_resid_post"), row("b", "model.layers.2.output"), row("c", "transformer.h.3")]
    sweeps = factors(rows)
    assert set(sweeps) == {"layer"}
    assert [each.points for each in sweeps["layer"]] == [((1, "a"), (2, "b"), (3, "c"))]
