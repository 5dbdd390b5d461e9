"""Direct logit effects: against the final norm's own weights and the head, for norms of every kind."""

import numpy as np
import pytest
import torch

from seedscope.engine.features.logits import direct_logits
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
