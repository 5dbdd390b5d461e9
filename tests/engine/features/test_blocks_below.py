"""Passes that skip the blocks below a hook point give the losses of whole passes, or nothing is skipped."""

import numpy as np
import pytest
import torch

from seedscope.engine.activations.hookpoints import block_list
from seedscope.engine.activations.tokens import tokenize
from seedscope.engine.features import loss
from seedscope.engine.features.loss import Splice, attributed_loss, losses_under, masked
from support.tiny_models import WIDTH, tiny

DOCUMENTS = [("a", np.arange(2, 40)), ("b", np.array([5, 9, 5, 96, 3])), ("c", np.arange(2, 97) % 50 + 2)]
FAMILIES = ("gpt2", "llama", "mixtral", "gemma2", "olmo2", "bloom", "opt", "mpt", "gpt_neox")


def splice(model, hookpoint: str) -> Splice:
    return Splice(model, tokenize(DOCUMENTS, model, n_ctx=16), hookpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_whole_passes(family, make_sae):
    model, sae = tiny(family), make_sae(members=1, d_in=WIDTH, d_sae=16, dtype=np.float32).requires_grad_(False)
    whole, above = (splice(model, "blocks.1.hook_resid_post") for _ in range(2))
    above.keep_below()
    assert above.skips_blocks
    for change in (torch.zeros_like, lambda rows: 2 * rows.flip(1)):
        np.testing.assert_allclose(above.losses(change).numpy(), whole.losses(change).numpy(), atol=1e-5)
    np.testing.assert_allclose(above.own().numpy(), whole.own().numpy(), atol=1e-5)
    masks = {"some": [np.array([1, 5]), np.array([2, 3, 9])], "none": [np.array([], int)]}
    expected = {
        name: [float(whole.losses(masked(sae, chosen)).double().mean()) for chosen in sets]
        for name, sets in masks.items()
    }
    for row in losses_under(above, sae, masks):
        same_size = [
            v for v, chosen in zip(expected[row.mask], masks[row.mask], strict=True) if len(chosen) == row.n_masked
        ]
        assert row.loss == pytest.approx(np.mean(same_size), abs=1e-5)
    np.testing.assert_allclose(attributed_loss(above, sae), attributed_loss(whole, sae), atol=1e-5)


def test_a_model_whose_later_blocks_read_more_of_earlier_ones_is_run_as_a_whole():
    model = tiny("llama")
    blocks, given = block_list(model.pretrained)[1], []

    def add(_module: object, _inputs: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        more = given.pop() if given else 0
        return output + more if isinstance(output, torch.Tensor) else (output[0] + more, *output[1:])

    handles = [
        blocks[0].mlp.register_forward_hook(lambda _module, _inputs, output: given.append(output)),
        blocks[1].register_forward_hook(add),
    ]
    try:
        ours = splice(model, "blocks.1.mlp.hook_post")
        expected = ours.zeroed()
        ours.keep_below()
        assert not ours.skips_blocks
        assert torch.equal(ours.zeroed(), expected)
    finally:
        for handle in handles:
            handle.remove()


def test_nothing_is_skipped_where_it_would_take_too_much_or_nothing_lies_below(monkeypatch):
    model = tiny("gpt2")
    lowest = splice(model, "blocks.0.hook_resid_post")
    lowest.keep_below()
    assert not lowest.skips_blocks
    monkeypatch.setattr(loss, "KEPT_NUMBERS", 10)
    large = splice(model, "blocks.1.hook_resid_post")
    large.keep_below()
    assert not large.skips_blocks
