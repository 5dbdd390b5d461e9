"""Text decoders inside multimodal wrappers: causal, with blocks of their text tower, whatever the vision tower has."""

import numpy as np
import pytest
import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

from seedscope.engine.activations.harvest import load_model, stream
from seedscope.engine.activations.hookpoints import block_list, find
from seedscope.engine.activations.tokens import tokenize
from seedscope.engine.features.logits import direct_logits, final_norm
from seedscope.engine.features.loss import Splice
from support.tiny_models import LAYERS, USUAL, VOCABULARY, WIDTH, tokenizer

VISION = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24,
          "image_size": 16, "patch_size": 8}  # fmt: skip
WRAPPERS = {
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}),
    "gemma3": ({"model_type": "gemma3_text", "head_dim": 8}, {"model_type": "siglip_vision_model"}),
}
DOCUMENTS = [("a", np.arange(2, 40)), ("b", np.array([5, 9, 5, 96, 3]))]


@pytest.fixture(scope="module", params=WRAPPERS)
def model(request, tmp_path_factory):
    text, vision = WRAPPERS[request.param]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model(
        request.param, text_config=USUAL | {"vocab_size": VOCABULARY} | special | text, vision_config=VISION | vision
    )
    torch.manual_seed(0)
    network = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    folder = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return load_model(str(folder))


def test_blocks_are_those_of_the_text_tower(model):
    assert model.causal
    tower = model.network.model.language_model
    assert block_list(model.network) == ("language_model.layers", list(tower.layers))
    for name in ("blocks.1.hook_resid_post", "layers.1", "model.layers.1.output", "model.language_model.layers.1"):
        assert find(model.network, name) == (tower.layers[1], False)
    tokens = tokenize(DOCUMENTS, model, n_ctx=16)
    pre, attention, mid = (
        torch.cat([batch.rows for batch in stream(model, tokens, f"blocks.1.hook_{site}")])
        for site in ("resid_pre", "attn_out", "resid_mid")
    )
    torch.testing.assert_close(pre + attention, mid, rtol=1e-4, atol=1e-4)


def test_logits_and_losses_are_those_of_the_text(model):
    assert final_norm(model) is model.network.model.language_model.norm
    assert direct_logits(model, torch.randn(3, WIDTH), n=2).positive_ids.shape == (3, 2)
    splice = Splice(model, tokenize(DOCUMENTS, model, n_ctx=16), "blocks.1.hook_resid_post")
    torch.testing.assert_close(splice.losses(lambda rows: rows), splice.own(), rtol=1e-4, atol=1e-4)
