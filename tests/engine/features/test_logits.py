"""Direct logit effects: against the final norm's own weights and the head, for norms of every kind."""

import numpy as np
import pytest
import torch

from seedscope.engine.features.logits import direct_logits, final_norm, refusal
from support.tiny_models import VOCABULARY, WIDTH, tiny

# (path of the final norm, what is added to its weight, whether it subtracts the mean)
FINAL = {
    "llama": ("model.norm", 0, False), "gpt2": ("transformer.ln_f", 0, True), "gemma": ("model.norm", 1, False),
    "gemma2": ("model.norm", 1, False), "gpt_neox": ("gpt_neox.final_layer_norm", 0, True),
    "opt": ("model.decoder.final_layer_norm", 0, True), "bloom": ("transformer.ln_f", 0, True),
    "qwen3": ("model.norm", 0, False), "mpt": ("transformer.norm_f", 0, True),
}  # fmt: skip


@pytest.mark.parametrize("family", FINAL)
def test_effects_are_the_norms_gain_and_the_head(family):
    model = tiny(family)
    path, more, centres = FINAL[family]
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    gain = model.network.get_submodule(path).weight.detach().double() + more
    head = model.network.get_output_embeddings().weight.detach().double()
    through = (rows.double() - rows.double().mean(1, keepdim=True) if centres else rows.double()) * gain
    expected = (through @ head.T).numpy()
    found = direct_logits(model, rows, n=VOCABULARY)
    got = np.empty_like(expected)
    np.put_along_axis(got, found.positive_ids.numpy(), found.positive.double().numpy(), 1)
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
    few = direct_logits(model, rows, n=3)
    for ids, values in zip((few.positive_ids, few.negative_ids), (few.positive, few.negative), strict=True):
        assert ids.shape == values.shape == (5, 3)
    np.testing.assert_array_equal(few.positive_ids[:, 0], expected.argmax(1))
    np.testing.assert_array_equal(few.negative_ids[:, 0], expected.argmin(1))


def test_another_width_and_encoders_have_none(language_model):
    assert direct_logits(language_model, torch.zeros(3, 7)) is None
    assert direct_logits(tiny("bert"), torch.zeros(3, WIDTH)) is None


@pytest.mark.parametrize("family", FINAL)
def test_the_final_norm_is_what_feeds_the_head_whatever_its_name(family):
    model = tiny(family)
    norm = model.network.get_submodule(FINAL[family][0])
    assert final_norm(model) is norm
    model = tiny(family)
    holder, _, name = FINAL[family][0].rpartition(".")
    inside = torch.nn.Sequential(model.network.get_submodule(FINAL[family][0]))  # deeper, under a name of nobody's
    setattr(model.network.get_submodule(holder), name, inside)
    assert final_norm(model) is inside[0]


def test_a_model_that_normalises_behind_every_block_has_its_final_norm_in_the_last_one():
    model = tiny("opt", do_layer_norm_before=False)
    assert final_norm(model) is model.network.model.decoder.layers[-1].final_layer_norm


def test_where_the_head_reads_no_norm_there_are_no_direct_logits():
    model = tiny("llama")
    model.network.model.norm = torch.nn.Sequential(model.network.model.norm, torch.nn.Linear(WIDTH, WIDTH))
    assert direct_logits(model, torch.zeros(3, WIDTH)) is None
    assert "no norm of llama gives what its head reads" in refusal(model, WIDTH)
