"""Laws that every variant obeys: lockstep, homogeneity, inference as trained, files, devices; and each one's own loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seedscope.engine.contract.recipe import VARIANTS, StudyConfig, TrainConfig, as_parameters
from seedscope.engine.saes import sae
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training.decoders import Archetypes
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.members import Training
from seedscope.engine.training.sparse_codes import Entries, Positions, decoded, largest_of_batch
from seedscope.engine.training.starts import Hull, kmeans, random_start
from seedscope.engine.training.trace import measured
from seedscope.engine.training.variants import RECIPES, TrainingMoment
from support.golden import explained_variance, gated_codes, jumprelu_codes, relu_codes, topk_codes, unit_rows

CONFIG = TrainConfig(
    d_sae=24, k=3, seeds=(4, 0, 2), n_tokens=64 * 60, batch=64, lr=1e-2, aux_k=4, silent_after=200,
    group_fracs=(0.25, 0.25, 0.5), bandwidth=0.1, l1=0.03,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Sparse non-negative codes times a fixed dictionary, off centre."""
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(700, 30))) * (rng.random((700, 30)) < 0.1)
    return codes @ rng.normal(size=(30, 8)) + rng.normal(size=8)


def train(rows: np.ndarray, variant: str, **changes: object) -> SAE:
    return train_ensemble(rows, replace(CONFIG, variant=variant, **changes), dtype=torch.float64)


@pytest.fixture(scope="module")
def trained(rows) -> dict[str, SAE]:
    return {variant: train(rows, variant) for variant in VARIANTS}


def tensors(module: SAE, member: int) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.member_tensors(member).items()}


def dense_codes(module: SAE, member: int, x: np.ndarray) -> np.ndarray:
    """Activations (rows, d_sae) by the definitions."""
    t = tensors(module, member)
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    architecture = module.convention.architecture
    if architecture == "topk":
        return topk_codes(x, t["W_enc"], t["b_enc"], t["b_dec"], module.k)
    if architecture == "jumprelu":
        return jumprelu_codes(pre, t["threshold"], module.convention.inclusive)
    if architecture == "gated":
        return gated_codes(x - t["b_dec"], t["W_enc"], t["b_enc"], t["r_mag"], t["b_mag"])
    return relu_codes(pre)


each_variant = pytest.mark.parametrize("variant", VARIANTS)


# -- laws --------------------------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("data_order", ["shared", "independent"])
def test_lockstep_training_equals_training_one_by_one(rows, variant, data_order):
    together = train(rows, variant, data_order=data_order)
    for member, seed in enumerate(together.seeds):
        alone = train(rows, variant, data_order=data_order, seeds=(seed,))
        for name in together.convention.tensors:
            torch.testing.assert_close(getattr(together, name)[member], getattr(alone, name)[0], rtol=0, atol=1e-8)


@each_variant
def test_decoding_the_codes_of_what_was_trained_reconstructs_by_definition(rows, trained, variant):
    module = trained[variant]
    out = module(torch.from_numpy(rows)).detach().numpy()
    for member in range(module.n_members):
        t = tensors(module, member)
        codes = dense_codes(module, member, rows)
        np.testing.assert_allclose(out[:, member], codes @ t["W_dec"] + t["b_dec"], atol=1e-10)


@each_variant
def test_training_explains_more_than_the_start_and_most_of_the_variance(rows, trained, variant):
    # A hull of few centroids explains less than free rows.
    least = 0.3 if variant == "archetypal" else 0.5
    for member in range(3):
        t = tensors(trained[variant], member)
        x_hat = dense_codes(trained[variant], member, rows) @ t["W_dec"] + t["b_dec"]
        assert explained_variance(rows, x_hat) > least


@each_variant
def test_a_seed_gives_the_same_tensors_again_and_another_seed_others(rows, trained, variant):
    again = train(rows, variant)
    for name in again.convention.tensors:
        assert torch.equal(getattr(again, name), getattr(trained[variant], name))
    assert not torch.equal(again.W_enc[0], again.W_enc[1])
    assert not torch.equal(again.W_dec[0], again.W_dec[1])


@each_variant
def test_scaling_the_data_scales_activations_and_nothing_else(rows, trained, variant):
    c = 4.0
    scaled = train(c * rows, variant)
    x = torch.from_numpy(rows)
    codes, scaled_codes = trained[variant].encode(x), scaled.encode(c * x)
    torch.testing.assert_close(scaled_codes.values, c * codes.values, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scaled.W_dec, trained[variant].W_dec, rtol=1e-6, atol=1e-8)


@each_variant
def test_members_come_back_from_their_files_bit_for_bit(trained, variant, tmp_path):
    module = trained[variant]
    module.save(tmp_path)
    again = sae.load(tmp_path, module.seeds)
    assert again.convention == module.convention
    assert [again.digest(i) for i in range(3)] == [module.digest(i) for i in range(3)]


@each_variant
@pytest.mark.parametrize("data_order", ["shared", "independent"])
def test_a_step_makes_every_tensor_where_its_operands_are(variant, data_order):
    """What is made without saying where goes to the meta device here, and meets the others in an error."""
    config = replace(CONFIG, variant=variant, d_sae=96, k=1, silent_after=100)  # 64 tokens leave features silent
    sample = torch.from_numpy(np.random.default_rng(0).normal(size=(128, 8)))
    rows = sample[:64, None].repeat(1, 3, 1) if data_order == "independent" else sample[:64]
    training = Training(config, sample, torch.device("cpu"))
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match="meta"):
            sample + torch.zeros(8)
        for _ in range(4):
            training.advance(rows, 0.01, 8, before=lambda step: None)
        found = measured(training.sae, sample, step=4, tokens=256, loss=None, dead=training.silent_tokens > 100)
    assert (training.silent_tokens > 100).any() or "aux_k" not in config.uses  # AuxK was among it
    assert np.isfinite(found.ev).all()
    assert all(tensor.device.type == "cpu" for tensor in training.state([]).tensors.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_variant
def test_training_on_a_gpu_gives_what_the_cpu_gives(rows, trained, variant):
    config = replace(CONFIG, variant=variant)
    there = train_ensemble(rows, config, dtype=torch.float64, device="cuda")
    for name in there.convention.tensors:
        torch.testing.assert_close(getattr(there, name), getattr(trained[variant], name), rtol=0, atol=1e-6)


# -- sparsity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka"])
def test_the_threshold_stands_for_the_batch_at_inference(rows, variant):
    """As many features are active on average as the batch was allowed."""
    module = train(rows, variant, n_tokens=64 * 300)
    for member in range(3):
        l0 = (dense_codes(module, member, rows) > 0).sum(1)
        assert l0.mean() == pytest.approx(CONFIG.k, abs=0.4)
        assert l0.std() > 0.3


def test_jumprelu_ends_near_the_l0_that_it_aims_at(rows):
    for k in (2, 5):
        module = train(rows, "jumprelu", k=k, n_tokens=64 * 400)
        for member in range(3):
            assert (dense_codes(module, member, rows) > 0).sum(1).mean() == pytest.approx(k, rel=0.25)
    assert (module.threshold > 0).any()


@pytest.mark.parametrize("variant", ["relu", "gated"])
def test_more_l1_leaves_fewer_active_features(rows, variant):
    l0 = [
        np.mean([(dense_codes(module, member, rows) > 0).sum(1).mean() for member in range(3)])
        for module in (train(rows, variant, l1=l1) for l1 in (0.01, 0.15, 0.6))
    ]
    assert l0[0] > 1.2 * l0[1]
    assert l0[1] > 1.2 * l0[2]


def test_the_first_groups_of_a_matryoshka_reconstruct_more_than_as_many_features_of_a_batchtopk(rows, trained):
    def explained(module: SAE, member: int) -> float:
        t, codes = tensors(module, member), dense_codes(module, member, rows)
        codes[:, 6:] = 0
        return explained_variance(rows, codes @ t["W_dec"] + t["b_dec"])

    for member in range(3):
        assert explained(trained["matryoshka"], member) > explained(trained["batchtopk"], member) + 0.05


# -- decoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not RECIPES[name].archetypal])
def test_free_rows_are_unit_vectors(trained, variant):
    np.testing.assert_allclose(np.linalg.norm(trained[variant].W_dec.detach(), axis=-1), 1, atol=1e-12)


@pytest.mark.parametrize("variant", ["archetypal", "relaxed-archetypal"])
def test_archetypal_rows_stay_in_the_hull_of_the_centroids_or_as_near_as_delta(rows, variant):
    config = replace(CONFIG, variant=variant, delta=0.05)
    sample = torch.from_numpy(rows / np.sqrt((rows**2).sum(1).mean()))
    training = Training(config, sample, torch.device("cpu"))
    start = training.sae.W_dec.detach().clone()
    assert torch.equal(start[0], start[1])  # shared centroids: a shared start
    for _ in range(40):
        training.advance(sample[:64], 0.02, 40, before=lambda step: None)
    decoder = training.decoder
    assert (decoder.weights >= 0).all()
    torch.testing.assert_close(decoder.weights.sum(-1), torch.ones(3, 24, dtype=torch.float64))
    inside = torch.bmm(decoder.weights, start)
    away = training.sae.W_dec / decoder.log_scale.exp() - inside
    if variant == "archetypal":
        torch.testing.assert_close(training.sae.W_dec, inside)
    else:
        norms = away.norm(dim=-1)
        assert norms.max() <= 0.05 + 1e-12
        assert norms.max() > 0.01
        assert (decoder.log_scale.abs() > 1e-3).all()
    assert (training.sae.W_dec - start).norm(dim=-1).max() > 0.05


def test_the_gradient_of_the_rows_reaches_weights_relaxation_and_scale_by_the_chain_rule():
    rng = np.random.default_rng(0)
    module = random_start((0, 1), 4, 5, k=2, center=torch.zeros(4, dtype=torch.float64))
    points = torch.from_numpy(rng.normal(size=(1, 5, 4)))
    decoder = Archetypes(module, Hull(points, None), 0.5)
    target = torch.from_numpy(rng.normal(size=(2, 5, 4)))
    module.W_dec.grad = 2 * (module.W_dec - target).detach()
    decoder.before_step()

    def loss() -> float:
        rows = (torch.einsum("mij,jk->mik", decoder.weights, points[0]) + decoder.relaxation) * decoder.log_scale.exp()
        return float((rows - target).pow(2).sum())

    for parameter in decoder.parameters().values():
        for at in [(0, 0, 0), (1, -1, -1)]:
            with torch.no_grad():
                parameter[at] += 1e-6
                above = loss()
                parameter[at] -= 2e-6
                below = loss()
                parameter[at] += 1e-6
            assert parameter.grad[at].item() == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-7)


def test_independent_centroids_give_independent_starts(rows):
    sample = torch.from_numpy(rows)
    shared, independent = (
        Training(replace(CONFIG, variant="archetypal", centroids=c), sample, torch.device("cpu")).sae.W_dec
        for c in ("shared", "independent")
    )
    assert torch.equal(shared[0], shared[2])
    assert not torch.allclose(independent[0], independent[2])


def test_kmeans_leaves_every_centroid_at_the_mean_of_the_points_nearest_to_it():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 3)) + 4 * rng.integers(0, 3, size=(300, 1))
    centroids = kmeans(torch.from_numpy(points), 6, seed=1, steps=200).numpy()
    nearest = ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)
    assert set(nearest) == set(range(6))
    for i, centroid in enumerate(centroids):
        np.testing.assert_allclose(centroid, points[nearest == i].mean(0), atol=1e-9)


def test_more_centroids_than_points_are_refused():
    with pytest.raises(ValueError, match="found 5 activations for 6 centroids"):
        kmeans(torch.zeros(5, 2), 6, seed=0)


# -- what is minimised -------------------------------------------------------------------------------------------


def written_out(variant: str, t: dict[str, np.ndarray], x: np.ndarray, config: TrainConfig, fixed: dict) -> float:
    """The loss of one member in plain NumPy; `fixed` are the tensors that no gradient flows through."""
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    if variant in ("batchtopk", "matryoshka"):
        flat = np.argsort(-pre, axis=None)[: config.k * len(x)]
        codes = np.zeros(pre.size)
        codes[flat] = relu_codes(pre).reshape(-1)[flat]
        codes = codes.reshape(pre.shape)
        ends = np.cumsum(config.group_sizes) if variant == "matryoshka" else [config.d_sae]
        return np.mean([((x - codes[:, :e] @ t["W_dec"][:e] - t["b_dec"]) ** 2).sum(1).mean() for e in ends])
    if variant == "relu":
        codes = relu_codes(pre)
        return ((x - codes @ t["W_dec"] - t["b_dec"]) ** 2).sum(1).mean() + config.l1 * codes.sum(1).mean()
    gate = relu_codes(pre)
    codes = gated_codes(x - t["b_dec"], t["W_enc"], t["b_enc"], t["r_mag"], t["b_mag"])
    found = ((x - codes @ t["W_dec"] - t["b_dec"]) ** 2).sum(1).mean() + config.l1 * gate.sum(1).mean()
    return found + ((x - gate @ fixed["W_dec"] - fixed["b_dec"]) ** 2).sum(1).mean()


def started(variant: str, config: TrainConfig, *, members: tuple[int, ...] = (0, 1)) -> SAE:
    """Random tensors of a variant, off any special value."""
    recipe, rng = RECIPES[variant], np.random.default_rng(3)
    module = random_start(members, 4, config.d_sae, convention=recipe.convention(config), more=recipe.more,
                          center=torch.from_numpy(rng.normal(size=4)))  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.from_numpy(rng.normal(size=parameter.shape))
    return module


@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka", "relu", "gated"])
def test_a_step_minimises_what_the_variant_is_defined_by(variant):
    """Value and gradient of every member, against the definition and its finite differences."""
    config = TrainConfig(variant=variant, d_sae=6, k=2, l1=0.1, group_fracs=(0.34, 0.66), n_tokens=32, batch=32)
    x = np.random.default_rng(0).normal(size=(32, 4)) + 0.5
    module = started(variant, config)
    step = RECIPES[variant].run(module, torch.from_numpy(x), config, TrainingMoment(0, 1.0))
    step.loss.sum().backward()
    for member in range(2):
        t = {name: tensor.numpy().copy() for name, tensor in module.member_tensors(member).items()}
        assert step.loss[member].item() == pytest.approx(written_out(variant, t, x, config, t), rel=1e-9)
        for name in set(t) - {"threshold"}:
            gradient = getattr(module, name).grad[member].numpy()
            for at in [tuple(int(i) for i in np.unravel_index(j, gradient.shape)) for j in range(0, gradient.size, 3)]:
                sides = []
                for change in (1e-6, -1e-6):
                    moved = t | {name: t[name].copy()}
                    moved[name][at] += change
                    sides.append(written_out(variant, moved, x, config, t))
                assert gradient[at] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-6), (name, at)


def test_jumprelus_thresholds_move_by_the_rectangle_estimator():
    """Rajamanoharan et al. 2024b, equations 11 and 12, summed over tokens by hand."""
    config = TrainConfig(variant="jumprelu", d_sae=6, k=2, bandwidth=0.6, n_tokens=32, batch=32, l0_coefficient=0.7)
    x = np.random.default_rng(0).normal(size=(32, 4)) + 0.5
    module = started("jumprelu", config, members=(0,))
    with torch.no_grad():
        module.threshold += 0.3
    step = RECIPES["jumprelu"].run(module, torch.from_numpy(x), config, TrainingMoment(0, 1.0))
    step.loss.sum().backward()
    t = {name: tensor.numpy() for name, tensor in module.member_tensors(0).items()}
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    theta, near = t["threshold"], np.abs(pre - t["threshold"]) < config.bandwidth / 2
    codes = jumprelu_codes(pre, theta, False)
    left = x - codes @ t["W_dec"] - t["b_dec"]
    l0 = (codes > 0).sum(1).mean()
    assert step.loss.item() == pytest.approx((left**2).sum(1).mean() + 0.7 * (l0 / 2 - 1) ** 2, rel=1e-9)
    by_codes = -2 * left @ t["W_dec"].T / len(x)
    through_codes = (by_codes * -theta / config.bandwidth * near).sum(0)
    through_l0 = 2 * 0.7 * (l0 / 2 - 1) / 2 * -near.sum(0) / config.bandwidth / len(x)
    np.testing.assert_allclose(module.threshold.grad[0], through_codes + through_l0, rtol=1e-9)
    open_gates = (codes > 0) * by_codes
    np.testing.assert_allclose(module.b_enc.grad[0], open_gates.sum(0), rtol=1e-9)


@pytest.mark.parametrize("variant", ["relu", "gated", "jumprelu"])
def test_where_a_sparsity_term_rises_each_members_gradient_is_shortened_to_one(variant, rows):
    """Adam's first moment after one step is a tenth of the gradient that it saw."""
    config = replace(CONFIG, variant=variant, l1=50.0, l0_coefficient=50.0, bandwidth=2.0, sparsity_warmup_frac=0.0)
    training = Training(config, torch.from_numpy(rows), torch.device("cpu"))
    training.advance(torch.from_numpy(rows[:64]), 0.01, 60, before=lambda step: None)
    moments = [t for name, t in training.state([]).tensors.items() if name.startswith("adam.exp_avg.")]
    lengths = torch.stack([moment.flatten(1).norm(dim=1) for moment in moments]).norm(dim=0)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1))


# -- entries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [-1.0, 0.0, 0.5, 9.0])
def test_the_largest_of_a_batch_are_those_a_full_sort_finds_whatever_the_guess(bound):
    pre = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3, 7)))
    pre[:, 2] -= 2  # hardly any positive ones
    flat = largest_of_batch(pre, 2, torch.full((3,), bound, dtype=torch.float64))
    chosen = torch.zeros(pre.numel(), dtype=torch.bool)
    chosen[flat] = True
    for member in range(3):
        own = pre[:, member].numpy().ravel()
        expected = np.zeros(own.size, bool)
        expected[np.argsort(-own)[:80]] = True
        expected &= own > 0
        np.testing.assert_array_equal(chosen.view(pre.shape)[:, member].numpy().ravel(), expected)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.6])
def test_entries_reconstruct_what_dense_codes_do_by_groups_and_whole(share):
    rng = np.random.default_rng(0)
    codes = rng.random((20, 3, 8)) * (rng.random((20, 3, 8)) < share)
    W_dec = torch.from_numpy(rng.normal(size=(3, 8, 5)))
    flat = np.flatnonzero(codes)
    entries = Entries(Positions(torch.from_numpy(flat), codes.shape), torch.from_numpy(codes.ravel()[flat]))
    expected = np.einsum("tms,msi->tmi", codes, W_dec)
    np.testing.assert_allclose(decoded(entries, W_dec), expected, atol=1e-12)
    by_group = decoded(entries, W_dec, (2, 1, 5))
    np.testing.assert_allclose(by_group.sum(2), expected, atol=1e-12)
    np.testing.assert_allclose(by_group[:, :, 0], np.einsum("tms,msi->tmi", codes[..., :2], W_dec[:, :2]), atol=1e-12)
    np.testing.assert_array_equal(entries.fired(), (codes > 0).any(0))


# -- recipes -----------------------------------------------------------------------------------------------------


def test_a_recipe_names_what_its_variant_uses_and_nothing_else():
    topk = as_parameters(TrainConfig())
    assert "variant" not in topk
    assert {"k", "aux_k", "silent_after"} <= set(topk)
    assert not {"l1", "bandwidth", "group_fracs", "centroids", "delta"} & set(topk)
    relu = as_parameters(TrainConfig(variant="relu", k=5))
    assert relu == as_parameters(TrainConfig(variant="relu", k=7))
    assert relu["variant"] == "relu"
    assert relu != as_parameters(TrainConfig(variant="relu", l1=0.5))
    study = StudyConfig("s", "e", "m", "h", TrainConfig(variant="gated"))
    assert as_parameters(study)["train"] == as_parameters(study.train)
    assert as_parameters(study)["theta"] == 0.7


def test_a_recipe_written_before_there_were_variants_keeps_its_parameters():
    """Studies that were built then are not trained again."""
    assert as_parameters(TrainConfig(d_sae=512, k=10, seeds=(0, 1))) == {
        "d_sae": 512, "k": 10, "seeds": (0, 1), "data_order": "shared", "n_tokens": 1_500_000, "batch": 1024, "lr": 3e-3,
        "warmup_frac": 0.03, "decay_frac": 0.2, "aux_coefficient": 1 / 32, "aux_k": 32, "silent_after": 100_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variant": "jumprelu", "k": 513}, r"k is 513, expected 1 to d_sae \(512\)"),
        ({"l1": -1.0}, "l1 is -1.0, expected a number of at least 0"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0, expected a number above 0"),
        (
            {"variant": "matryoshka", "group_fracs": (0.5, 0.4)},
            r"with the sum 0.9, expected positive shares with the sum 1",
        ),
        ({"variant": "matryoshka", "d_sae": 8, "k": 2}, "leave a group of 8 features empty"),
    ],
)
def test_unusable_settings_of_a_variant_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**changes)


def test_a_setting_that_a_variant_does_not_use_may_have_any_value():
    assert TrainConfig(variant="relu", d_sae=4, k=8).uses.count("k") == 0


def test_unit_rows_of_the_golden_definitions_agree_with_directions(trained):
    found = trained["relaxed-archetypal"].directions()[1].numpy()
    np.testing.assert_allclose(found, unit_rows(trained["relaxed-archetypal"].W_dec[1].detach().numpy()), atol=1e-6)
