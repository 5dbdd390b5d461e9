"""Loss with a reconstruction spliced in: against plain forward passes, finite differences and known limits."""

import numpy as np
import pytest
import torch

from seedscope.engine.activations.harvest import stream
from seedscope.engine.activations.tokens import PADDING, tokenize
from seedscope.engine.demo import stdlib
from seedscope.engine.features.loss import Splice, attributed_loss, exact_loss, masked
from seedscope.engine.saes.sae import SAE

HOOKPOINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def tokens(language_model, corpus):
    return tokenize(corpus.held_out, language_model, n_ctx=32, n_tokens=500)


@pytest.fixture(scope="module")
def splice(language_model, tokens):
    return Splice(language_model, tokens, HOOKPOINT)


@pytest.fixture(scope="module")
def member(ensemble_saes) -> SAE:
    tensors = {name: tensor[None] for name, tensor in ensemble_saes.member_tensors(0).items()}
    found = SAE(**tensors, convention=ensemble_saes.convention, seeds=(0,))
    return found.requires_grad_(False)


def by_hand(language_model, tokens, change) -> np.ndarray:
    """Losses with the third block's output changed at every real token but BOS, one window at a time."""
    losses = []
    for row in tokens.ids:
        real = row[row != PADDING]

        def hook(_module, _inputs, output):
            rows = output[0] if isinstance(output, tuple) else output
            new = torch.cat([rows[:, :1], change(rows[0, 1:])[None]], 1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = language_model.network.model.layers[2].register_forward_hook(hook)
        with torch.no_grad():
            logits = language_model.network(torch.from_numpy(real).long()[None]).logits[0].double()
        handle.remove()
        p = torch.log_softmax(logits, -1)
        losses += [-float(p[t, real[t + 1]]) for t in range(1, len(real) - 1)]
    return np.array(losses)


def test_the_models_own_loss_and_any_replacement_are_what_a_plain_forward_pass_gives(
    language_model, tokens, splice, member
):
    own = by_hand(language_model, tokens, lambda rows: rows)
    assert splice.n_tokens == len(own)
    np.testing.assert_allclose(splice.own().numpy(), own, atol=2e-4)
    np.testing.assert_allclose(splice.losses(lambda rows: rows).numpy(), own, atol=2e-4)
    zero = by_hand(language_model, tokens, torch.zeros_like)
    np.testing.assert_allclose(splice.losses(torch.zeros_like).numpy(), zero, atol=2e-4)
    spliced = by_hand(language_model, tokens, lambda rows: member(rows)[:, 0])
    np.testing.assert_allclose(splice.losses(lambda rows: member(rows)[:, 0]).numpy(), spliced, atol=2e-4)
    assert own.mean() < spliced.mean() < zero.mean()


def test_masking_nothing_is_the_reconstruction_and_masking_everything_its_bias(splice, member):
    whole = splice.losses(lambda rows: member(rows)[:, 0])
    assert torch.equal(splice.losses(masked(member, np.array([], int))), whole)
    none = splice.losses(masked(member, np.arange(member.d_sae)))
    bias = splice.losses(lambda rows: member.b_dec.expand(len(rows), -1))
    np.testing.assert_allclose(none.numpy(), bias.numpy(), atol=1e-4)


def test_attributed_loss_is_the_slope_of_the_loss_as_a_feature_is_faded(splice, member):
    found = attributed_loss(splice, member)
    codes_seen = np.argsort(-np.abs(found))[:4]
    step = 1e-2

    def faded(feature: int, by: float):
        def reconstruct(rows):
            codes = member.encode(rows)
            values = torch.where(codes.indices == feature, codes.values * (1 - by), codes.values)
            return member.decode(codes._replace(values=values))[:, 0]

        return float(splice.losses(reconstruct).double().mean())

    for feature in codes_seen:
        slope = (faded(feature, step) - faded(feature, -step)) / (2 * step)
        assert found[feature] == pytest.approx(slope, rel=0.02, abs=2e-5)
    silent = np.setdiff1d(np.arange(member.d_sae), np.flatnonzero(found))
    assert all(faded(feature, 1.0) == faded(feature, 0.0) for feature in silent[:2])


def test_an_encoder_has_no_next_token_loss(language_model, tokens):
    with pytest.raises(ValueError, match="no next-token loss"):
        Splice(language_model._replace(causal=False), tokens, HOOKPOINT)


def test_inputs_of_a_block_can_be_spliced_too(language_model, tokens):
    before = Splice(language_model, tokens, "blocks.3.hook_resid_pre")
    after = Splice(language_model, tokens, HOOKPOINT)
    assert stdlib.MODEL_DIR.exists()
    np.testing.assert_allclose(
        before.losses(torch.zeros_like).numpy(), after.losses(torch.zeros_like).numpy(), atol=1e-4
    )


def test_the_exact_loss_of_a_feature_is_the_difference_of_two_plain_runs(language_model, tokens, splice, member):
    codes = member.encode(torch.cat([b.rows for b in stream(language_model, tokens, HOOKPOINT)]))
    n_active = np.bincount(codes.indices[codes.values > 0].numpy(), minlength=member.d_sae)
    feature = int(np.argsort(n_active)[-10])
    found = exact_loss(language_model, tokens, HOOKPOINT, member, feature)
    assert found.active.sum() == n_active[feature] > 0
    assert (found.added[found.active == 0] == 0).all()
    whole = by_hand(language_model, tokens, lambda rows: member(rows)[:, 0])
    without = by_hand(language_model, tokens, masked(member, np.array([feature])))
    assert found.read.sum() == len(whole)
    per_window = np.split(without - whole, np.cumsum(found.read)[:-1])
    np.testing.assert_allclose(found.added, [each.sum() for each in per_window], atol=2e-3)
    assert np.abs(found.added).max() > 0.01


def test_a_feature_that_is_silent_costs_no_pass_and_adds_nothing(language_model, tokens, member):
    silenced = member.only(0)
    silenced.b_enc[0, 5] = -1e9
    found = exact_loss(language_model, tokens, HOOKPOINT, silenced, 5)
    assert not found.active.any()
    assert not found.added.any()
    assert found.read.sum() > 0
