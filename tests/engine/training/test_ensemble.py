"""Training: lockstep changes nothing, the scale folds out exactly, silent features are revived."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.ensemble import learning_rate_factor, train_ensemble
from seedscope.engine.training.starts import geometric_median, random_start
from support.golden import explained_variance, topk_codes, unit_rows

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
CONFIG = TrainConfig(d_sae=24, k=3, seeds=(4, 0, 2), n_tokens=64 * 60, batch=64, lr=1e-2, aux_k=4, silent_after=200)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Sparse non-negative codes times a fixed dictionary, off centre."""
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(700, 30))) * (rng.random((700, 30)) < 0.1)
    return codes @ rng.normal(size=(30, 8)) + rng.normal(size=8)


def train(rows: np.ndarray, **changes: object) -> SAE:
    return train_ensemble(rows, replace(CONFIG, **changes), dtype=torch.float64)


def ev(module: SAE, member: int, rows: np.ndarray) -> float:
    t = {name: getattr(module, name)[member].detach().numpy() for name in TENSORS}
    codes = topk_codes(rows, t["W_enc"], t["b_enc"], t["b_dec"], module.k)
    return explained_variance(rows, codes @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("data_order", ["shared", "independent"])
def test_lockstep_training_equals_training_one_by_one(rows, data_order):
    together = train(rows, data_order=data_order)
    for member, seed in enumerate(CONFIG.seeds):
        alone = train(rows, data_order=data_order, seeds=(seed,))
        for name in TENSORS:
            torch.testing.assert_close(getattr(together, name)[member], getattr(alone, name)[0], rtol=0, atol=1e-9)


def test_a_seed_gives_the_same_tensors_again_and_another_seed_others(rows):
    first, second = train(rows), train(rows)
    for name in TENSORS:
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name)[0], getattr(first, name)[1])


def test_the_data_order_is_a_source_of_difference_of_its_own(rows):
    shared, independent = train(rows), train(rows, data_order="independent")
    assert not torch.allclose(shared.W_dec, independent.W_dec, atol=1e-3)


def test_decoder_rows_are_unit_vectors_after_training(rows):
    norms = train(rows).W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-12)


@pytest.mark.parametrize("c", [4.0, 0.03])
def test_scaling_the_data_scales_activations_and_biases_and_nothing_else(rows, c):
    plain, scaled = train(rows), train(c * rows)
    for name, factor in (("W_enc", 1), ("W_dec", 1), ("b_enc", c), ("b_dec", c)):
        torch.testing.assert_close(getattr(scaled, name), factor * getattr(plain, name), rtol=1e-7, atol=1e-9)
    x = torch.from_numpy(rows)
    codes, scaled_codes = plain.encode(x), scaled.encode(c * x)
    torch.testing.assert_close(scaled_codes.values, c * codes.values, rtol=1e-7, atol=1e-9)
    assert ev(scaled, 0, c * rows) == pytest.approx(ev(plain, 0, rows), abs=1e-9)


def test_encoder_and_decoder_are_trained_apart(rows):
    """They start as each other's transpose and share nothing after that."""
    trained = train(rows)
    assert (trained.W_enc - trained.W_dec.transpose(1, 2)).abs().mean() > 0.01
    assert (trained.W_enc.norm(dim=1) - 1).abs().max() > 0.01


def test_one_step_is_adams_first_on_the_squared_error_with_the_decoders_parallel_gradient_removed():
    """Adam's first step moves every weight by the learning rate against its gradient's sign.

    The gradients are finite differences of the mean squared error per token, written out densely.
    """
    rng = np.random.default_rng(0)
    rows, lr = rng.normal(size=(32, 4)) + 0.5, 1e-3
    config = TrainConfig(d_sae=6, k=2, seeds=(0,), n_tokens=32, batch=32, lr=lr)
    scale = np.sqrt((rows**2).sum(1).mean())
    x = rows / scale
    start = random_start((0,), 4, 6, k=2, center=geometric_median(torch.from_numpy(x)))
    t = {name: getattr(start, name)[0].detach().numpy().copy() for name in TENSORS}

    def loss(name: str, at: tuple, change: float) -> float:
        moved = t | {name: t[name].copy()}
        moved[name][at] += change
        codes = topk_codes(x, moved["W_enc"], moved["b_enc"], moved["b_dec"], 2)
        return ((x - codes @ moved["W_dec"] - moved["b_dec"]) ** 2).sum(1).mean()

    gradient = {name: np.zeros_like(value) for name, value in t.items()}
    for name, value in t.items():
        for at in np.ndindex(value.shape):
            gradient[name][at] = (loss(name, at, 1e-6) - loss(name, at, -1e-6)) / 2e-6
    along = (gradient["W_dec"] * t["W_dec"]).sum(1, keepdims=True)
    assert np.abs(along).max() > 0.01
    gradient["W_dec"] -= along * t["W_dec"]
    expected = {name: t[name] - lr * np.sign(gradient[name]) for name in TENSORS}
    expected["W_dec"] = unit_rows(expected["W_dec"])
    expected["b_enc"], expected["b_dec"] = scale * expected["b_enc"], scale * expected["b_dec"]

    trained = train_ensemble(rows, config, dtype=torch.float64)
    for name in TENSORS:
        clear = np.abs(gradient[name]) > 1e-4
        assert clear.mean() > 0.8
        np.testing.assert_allclose(
            getattr(trained, name)[0].detach().numpy()[clear], expected[name][clear], atol=0.02 * lr, err_msg=name
        )


def test_training_explains_more_than_the_start(rows):
    start = random_start(CONFIG.seeds, 8, CONFIG.d_sae, k=CONFIG.k, center=geometric_median(torch.from_numpy(rows)))
    trained = train(rows)
    for member in range(3):
        assert ev(trained, member, rows) > max(ev(start, member, rows), 0.5)


def test_features_that_never_fire_stay_at_their_start_unless_auxk_revives_them():
    """Data on one ray: k = 1 leaves most features silent, and without AuxK they get no gradient at all."""
    rng = np.random.default_rng(0)
    ray = rng.normal(size=16)
    rows = rng.random((256, 1)) * ray + 0.01 * rng.normal(size=(256, 16))
    changes = {"d_sae": 40, "k": 1, "seeds": (0,), "n_tokens": 64 * 30, "silent_after": 1, "aux_k": 40}
    start = random_start((0,), 16, 40, k=1, center=torch.zeros(16, dtype=torch.float64)).W_dec[0]
    unaided = train(rows, **changes, aux_coefficient=0.0).W_dec[0]
    aided = train(rows, **changes).W_dec[0]
    untouched = (unaided - start).norm(dim=1) < 1e-12
    assert untouched.sum() >= 10
    assert ((aided - start).norm(dim=1)[untouched] > 1e-3).any()


def test_a_seed_starts_alike_whatever_the_other_seeds_are():
    center = torch.arange(5.0)
    both, alone = random_start((3, 8), 5, 12, k=2, center=center), random_start((8,), 5, 12, k=2, center=center)
    assert torch.equal(both.W_dec[1], alone.W_dec[0])
    assert torch.equal(both.W_enc[1], both.W_dec[1].T)
    assert torch.equal(both.b_dec[0], center)
    torch.testing.assert_close(both.W_dec.norm(dim=-1), torch.ones(2, 12))


def test_the_pulls_of_all_points_cancel_at_the_geometric_median():
    points = torch.from_numpy(np.random.default_rng(0).exponential(size=(400, 3)))
    away = points - geometric_median(points, steps=200)
    assert (away / away.norm(dim=1, keepdim=True)).sum(0).norm() < 1e-6


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(step, 100, CONFIG) for step in range(100)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[3:80] == [1.0] * 77
    assert factors[0] < 1
    assert factors[80:] == sorted(factors[80:], reverse=True)
    assert factors[-1] <= 0.05


def test_fewer_rows_than_a_batch_are_refused(rows):
    with pytest.raises(ValueError, match=r"found 10 activations, expected at least one batch \(64\)"):
        train(rows[:10])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 0}, "k is 0, expected 1 to d_sae"),
        ({"k": 513}, "k is 513, expected 1 to d_sae \\(512\\)"),
        ({"seeds": ()}, "seeds are \\[\\]"),
        ({"seeds": (1, 2, 1)}, "seeds are \\[1, 2, 1\\]"),
        ({"n_tokens": 1023}, "n_tokens is 1023, expected at least one batch \\(1024\\)"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_unusable_settings_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**changes)


def test_an_unknown_data_order_is_refused_with_the_two_there_are():
    """The type check that tests switch on speaks before the configuration does; both name the choice."""
    with pytest.raises((ValueError, TypeCheckError), match=r"(?s)random.*shared.*independent"):
        TrainConfig(data_order="random")
