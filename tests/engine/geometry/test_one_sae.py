"""Inputs of a predictor against plain NumPy, and what is said of those that are missing."""

import numpy as np
import pytest

from seedscope.engine.contract.tables.predictions import INPUTS
from seedscope.engine.geometry.one_sae import NEAREST, OneActivity, crowding, one_sae_inputs


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    decoder = rng.normal(size=(40, 6)) * rng.uniform(0.5, 2, size=(40, 1))
    encoder = decoder + 0.3 * rng.normal(size=(40, 6))
    return decoder, encoder, rng.normal(size=40)


@pytest.fixture
def activity():
    rng = np.random.default_rng(1)
    n_active = rng.integers(1, 900, 40)
    n_active[[3, 17]] = 0
    return OneActivity(1000, n_active, rng.uniform(0.1, 3, 40), rng.uniform(0, 8, 40), rng.uniform(0, 1, 40))


def test_every_input_is_what_its_definition_says(weights, activity):
    decoder, encoder, bias = weights
    worth = np.random.default_rng(2).normal(size=40)
    found = one_sae_inputs(*weights, activity=activity, worth=worth)
    assert found.missing == {}
    alive = activity.n_active > 0
    assert np.isnan(found.values[~alive]).all()
    assert np.isfinite(found.values[alive]).all()
    column = dict(zip(INPUTS, found.values.T, strict=True))
    norms = np.sqrt((decoder**2).sum(1))
    unit = decoder / norms[:, None]
    gain = np.sqrt((encoder**2).sum(1)) * norms
    scaled = bias * norms
    q1, q2, q3 = np.percentile(scaled[alive], (25, 50, 75))
    expected = {
        "density": np.log10(np.maximum(activity.n_active, 1) / 1000),
        "worth": np.arcsinh(worth / np.median(np.abs(worth[alive]))),
        "mean_activation": np.log(activity.mean_activation / np.median(activity.mean_activation[alive])),
        "encoder_norm": np.log(gain / np.median(gain[alive])),
        "encoder_bias": (scaled - q2) / (q3 - q1),
        "encoder_decoder": [unit[i] @ encoder[i] / np.linalg.norm(encoder[i]) for i in range(40)],
        "top_token_share": activity.top_token_share,
        "token_entropy": activity.token_entropy,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(column[name][alive], np.asarray(values)[alive], rtol=1e-6, atol=1e-9)
    nearest = [np.sort(np.delete(unit @ unit[i], i))[-NEAREST:].mean() for i in range(40)]
    np.testing.assert_allclose(column["crowding"][alive], np.array(nearest)[alive], atol=1e-6)


def test_what_is_not_known_is_named_and_never_a_number(weights, activity):
    found = one_sae_inputs(*weights, activity=None, worth=None)
    assert set(found.missing) == {
        "density", "worth", "mean_activation", "top_token_share", "token_entropy",
    }  # fmt: skip
    for name in found.missing:
        assert np.isnan(found.values[:, INPUTS.index(name)]).all()
    assert np.isfinite(found.values[:, INPUTS.index("crowding")]).all()
    without_text = activity._replace(token_entropy=None, top_token_share=None)
    found = one_sae_inputs(*weights, activity=without_text, worth=np.ones(40), transcoder=True)
    assert set(found.missing) == {"top_token_share", "token_entropy", "encoder_decoder"}


def test_scales_of_libraries_make_no_difference(weights, activity):
    """Decoder rows times c with encoders over c are the same SAE; so is one whose activations are all larger."""
    decoder, encoder, bias = weights
    c = np.random.default_rng(3).uniform(0.2, 5, size=(40, 1))
    plain = one_sae_inputs(decoder, encoder, bias, activity=activity, worth=np.ones(40))
    scaled = one_sae_inputs(decoder * c, encoder / c, bias / c[:, 0], activity=activity, worth=np.ones(40))
    np.testing.assert_allclose(plain.values, scaled.values, atol=1e-6)
    louder = activity._replace(mean_activation=activity.mean_activation * 7)
    other = one_sae_inputs(decoder, encoder * 7, bias * 7, activity=louder, worth=np.full(40, 0.1))
    np.testing.assert_allclose(plain.values, other.values, atol=1e-6)


def test_rows_without_direction_and_constant_biases_are_no_numbers_that_mislead(weights, activity):
    decoder, encoder, _ = weights
    decoder[0] = 0
    unit_rows = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-9)
    found = one_sae_inputs(unit_rows, encoder, np.zeros(40), activity=activity, worth=np.zeros(40))
    assert np.isnan(found.values[0]).all()
    assert (found.values[1:, INPUTS.index("encoder_bias")][activity.n_active[1:] > 0] == 0).all()
    assert (found.values[1:, INPUTS.index("worth")][activity.n_active[1:] > 0] == 0).all()


def test_crowding_does_not_depend_on_blocks_and_knows_small_dictionaries(monkeypatch):
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(50, 5))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    whole = crowding(unit)
    monkeypatch.setattr("seedscope.engine.geometry.one_sae.BLOCK", 7)
    np.testing.assert_allclose(crowding(unit), whole, atol=1e-6)
    assert crowding(unit[:1]).tolist() == [0]
    np.testing.assert_allclose(crowding(unit[:2]), [unit[0] @ unit[1]] * 2, atol=1e-6)
