"""Loss with a reconstruction spliced in: against plain forward passes, finite differences and known limits."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from seedscope.engine.activations.harvest import stream
from seedscope.engine.activations.hookpoints import find
from seedscope.engine.activations.tokens import PADDING, tokenize
from seedscope.engine.demo import stdlib
from seedscope.engine.features.loss import Splice, attributed_loss, exact_loss, masked
from seedscope.engine.saes.sae import SAE
from support.tiny_models import tiny

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


@torch.no_grad()
def spliced_by_hand(model, tokens, path: str, entering: str | None, change) -> np.ndarray:
    """Losses with a module's output changed at every real token but BOS so that `entering`'s input plus it is what is wanted."""
    losses, before = [], []
    for row in tokens.ids:
        ids = torch.from_numpy(row[row != PADDING]).long()[None]

        def enter(_module, inputs, named, before=before):
            before[:] = [inputs[0] if inputs else named["hidden_states"]]

        def leave(_module, _inputs, output, before=before):
            rows = output[0] if isinstance(output, tuple) else output
            flat = rows.ndim == 2  # OPT's MLP
            rows = rows[None] if flat else rows
            base = before[0] if before else torch.zeros_like(rows)
            new = torch.cat([rows[:, :1], change((base + rows)[0, 1:])[None] - base[:, 1:]], 1)
            new = new[0] if flat else new
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handles = [model.network.get_submodule(path).register_forward_hook(leave)]
        if entering:
            handles.append(model.network.get_submodule(entering).register_forward_pre_hook(enter, with_kwargs=True))
        p = torch.log_softmax(model.network(ids).logits[0].double(), -1)
        for handle in handles:
            handle.remove()
        losses += [-float(p[t, ids[0, t + 1]]) for t in range(1, len(ids[0]) - 1)]
    return np.array(losses)


DOCUMENTS = [("a", np.arange(2, 40)), ("b", np.array([5, 9, 5, 96, 3])), ("c", np.arange(2, 97) % 50 + 2)]
ADDS = {"gpt2": ("transformer.h.1", "attn"), "llama": ("model.layers.1", "self_attn"), "mixtral": ("model.layers.1", "self_attn"),
        "gemma2": ("model.layers.1", "post_attention_layernorm"), "olmo2": ("model.layers.1", "post_attention_layernorm"),
        "bloom": ("transformer.h.1", "self_attention.dense"), "opt": ("model.decoder.layers.1", "self_attn"),
        "mpt": ("transformer.blocks.1", "attn")}  # fmt: skip


@pytest.mark.parametrize("family", ADDS)
def test_the_stream_between_attention_and_mlp_is_replaced_for_all_that_follows(family):
    model = tiny(family)
    tokens = tokenize(DOCUMENTS, model, n_ctx=16)
    block, attention = ADDS[family]
    splice = Splice(model, tokens, "blocks.1.hook_resid_mid")
    for change in (torch.zeros_like, lambda rows: 2 * rows.flip(1)):
        expected = spliced_by_hand(model, tokens, f"{block}.{attention}", block, change)
        np.testing.assert_allclose(splice.losses(change).numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(splice.losses(lambda rows: rows).numpy(), splice.own().numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
@pytest.mark.parametrize("site", ["attn.hook_z", "mlp.hook_post"])
def test_heads_and_neurons_are_replaced_in_front_of_their_projection(family, site):
    model = tiny(family)
    tokens = tokenize(DOCUMENTS, model, n_ctx=16)
    projection, _ = find(model.network, f"blocks.1.{site}")
    path = next(name for name, module in model.network.named_modules() if module is projection)
    with torch.no_grad():
        bias = projection(torch.zeros(1, next(stream(model, tokens, f"blocks.1.{site}")).rows.shape[1]))
    expected = spliced_by_hand(model, tokens, path, None, lambda rows: bias.expand(len(rows), -1))
    np.testing.assert_allclose(
        Splice(model, tokens, f"blocks.1.{site}").losses(torch.zeros_like).numpy(), expected, atol=1e-3
    )


@pytest.mark.parametrize("site", ["hook_resid_mid", "attn.hook_z", "mlp.hook_post"])
def test_gradients_at_inputs_are_the_slope_of_the_loss(site):
    model = tiny("gpt2")
    splice = Splice(model, tokenize(DOCUMENTS, model, n_ctx=16), f"blocks.1.{site}")
    slope = sum(float((rows * gradient).double().sum()) for rows, gradient in splice.gradients(lambda rows: rows))
    more, less = (float(splice.losses(lambda rows, by=by: rows * by).double().sum()) for by in (1 + 1e-2, 1 - 1e-2))
    assert slope == pytest.approx((more - less) / 2e-2, rel=0.02)


def test_a_pass_of_another_thread_over_the_same_model_is_left_as_it_is(language_model, tokens, splice):
    """As where the live engine measures a loss while it reads a text."""

    def read() -> torch.Tensor:
        return torch.cat([each.rows for each in stream(language_model, tokens, HOOKPOINT)])

    expected, zeroed, beside = read(), splice.zeroed(), []

    def replaced(rows: torch.Tensor) -> torch.Tensor:
        if not beside:  # in the midst of the first batch, with this thread's hooks in place
            beside.append(None)
            with ThreadPoolExecutor(1) as other:
                beside[0] = other.submit(read).result()
        return rows.new_zeros(1, 1)

    assert torch.equal(splice.losses(replaced), zeroed)
    assert torch.equal(beside[0], expected)
