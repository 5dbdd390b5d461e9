"""Explained variance under masks against masking dense activations one set at a time."""

import numpy as np
import pytest
import torch

from seedscope.engine.features import ablation
from seedscope.engine.features.ablation import (
    AblationPass,
    Masking,
    MaskPass,
    SecondOrder,
    _density_matched,
    explained_under,
    headline_masks,
)
from seedscope.engine.saes.convention import MORE_TENSORS, Convention
from seedscope.engine.saes.sae import SAE
from support.golden import explained_variance, normalised_forward, topk_codes

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def headline(worth, bucket: np.ndarray, density: np.ndarray, **options: int) -> list[Masking]:
    return explained_under(worth, headline_masks(bucket, density, **options))


@pytest.fixture(scope="module")
def module(make_sae):
    return make_sae(members=2, d_in=6, d_sae=20, k=4)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(300, 6)) * 2 + 1


@pytest.fixture(scope="module")
def worths(module, rows) -> list[SecondOrder]:
    collected = AblationPass(module)
    with torch.no_grad():
        for part in torch.from_numpy(rows).split(77):
            collected.add(part, module.encode(part))
    return [collected.finish(member) for member in range(2)]


def masked_ev(module, member: int, rows: np.ndarray, masked: np.ndarray) -> float:
    t = {name: getattr(module, name)[member].detach().numpy() for name in TENSORS}
    codes = topk_codes(rows, t["W_enc"], t["b_enc"], t["b_dec"], module.k)
    codes[:, masked] = 0
    return explained_variance(rows, codes @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("member", [0, 1])
def test_any_mask_gives_what_masking_the_dense_activations_gives(module, rows, worths, member):
    rng = np.random.default_rng(member)
    assert worths[member].explained_variance() == pytest.approx(masked_ev(module, member, rows, []), abs=1e-9)
    for size in (1, 2, 5, 13, 20):
        masked = rng.choice(20, size, replace=False)
        assert worths[member].explained_variance(masked) == pytest.approx(
            masked_ev(module, member, rows, masked), abs=1e-9
        )


@pytest.mark.parametrize("member", [0, 1])
def test_marginal_worth_is_the_ev_lost_when_one_feature_is_masked(module, rows, worths, member):
    whole = masked_ev(module, member, rows, [])
    lost = [whole - masked_ev(module, member, rows, [feature]) for feature in range(20)]
    np.testing.assert_allclose(worths[member].marginal_worth(), lost, atol=1e-9)


# -- every convention, every route -------------------------------------------------------------------------------

CONVENTIONS = [
    Convention("topk", k=4, rescale_by_decoder_norm=True),
    Convention("topk", k=2, normalize="constant_norm_rescale", input_scale=0.3),
    Convention("relu", normalize="layer_norm", layer_norm_eps_out=True),
    Convention("jumprelu", normalize="layer_norm", input_scale=2.0, subtract_b_dec=False),
    Convention("gated", input_scale=0.1),
    Convention("groupmax", k=4, normalize="constant_norm_rescale"),
]


def any_sae(convention: Convention, d_sae: int = 40) -> SAE:
    """Two members with random tensors in double precision."""
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (6, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, 6), "b_dec": (6,)}
    shapes |= {name: (d_sae,) for name in MORE_TENSORS.get(convention.architecture, ())}
    tensors = {name: torch.from_numpy(rng.normal(size=(2, *shape)) * 0.5) for name, shape in shapes.items()}
    four = {name: tensors.pop(name) for name in TENSORS}
    return SAE(**four, more=tensors, convention=convention, seeds=(0, 1))


def brute_force(module: SAE, member: int, rows: np.ndarray, masked: np.ndarray) -> float:
    """EV with activations masked in the dense definition; unnormalising by an affine fit per token."""
    t = {name: tensor.numpy() for name, tensor in module.member_tensors(member).items()}
    codes, x_hat = normalised_forward(rows, t, module.convention)
    with torch.no_grad():
        held = module.encode(torch.from_numpy(rows))
    scale = np.ones(len(rows)) if held.scale is None else held.scale[:, member].numpy()
    norms = np.linalg.norm(t["W_dec"], axis=1) if module.convention.rescale_by_decoder_norm else 1
    removed = np.zeros_like(codes)
    removed[:, masked] = codes[:, masked]
    return explained_variance(rows, x_hat - scale[:, None] * ((removed / norms) @ t["W_dec"]))


@pytest.fixture(params=CONVENTIONS, ids=str)
def anyone(request) -> SAE:
    return any_sae(request.param)


@pytest.fixture(params=["narrow", "wide"])
def route(request, monkeypatch) -> None:
    """Gather rows, or multiply densely, whatever the width is; in parts of a few tokens."""
    monkeypatch.setattr(ablation, "WIDE", 0 if request.param == "narrow" else 10**6)
    monkeypatch.setattr(ablation, "WORK_NUMBERS", 5_000)


def collect(module: SAE, rows: np.ndarray, **options: int) -> AblationPass:
    collected = AblationPass(module, **options)
    with torch.no_grad():
        for part in torch.from_numpy(rows).split(77):
            collected.add(part, module.encode(part))
    return collected


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("pair_numbers", [0, 2 * 40 * 40])
def test_masking_is_exact_under_every_convention(anyone, rows, pair_numbers):
    collected = collect(anyone, rows, pair_numbers=pair_numbers)
    assert collected.pairwise == bool(pair_numbers)
    for member in range(2):
        worth = collected.finish(member)
        whole = brute_force(anyone, member, rows, np.array([], int))
        assert worth.explained_variance() == pytest.approx(whole, abs=1e-9)
        lost = [whole - brute_force(anyone, member, rows, np.array([feature])) for feature in range(40)]
        assert np.abs(lost).max() > 1e-3
        np.testing.assert_allclose(worth.marginal_worth(), lost, atol=1e-9 * max(1, np.abs(lost).max()))
        alone = worth.explained_variance(np.array([5]))
        assert alone == pytest.approx(whole - lost[5], rel=1e-9)
        for masked in (np.arange(11), np.arange(40)):
            if pair_numbers:
                wanted = brute_force(anyone, member, rows, masked)
                assert worth.explained_variance(masked) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
            else:
                with pytest.raises(ValueError, match="pairs were not summed, ask a MaskPass"):
                    worth.explained_variance(masked)


@pytest.mark.usefixtures("route")
def test_a_second_pass_gives_the_headline_that_all_pairs_give(anyone, rows):
    density = np.arange(40)
    buckets = [bucket_array(stable=8, middle=8, unstable=20, dead=4), bucket_array(middle=10, unstable=30)]
    masks = [headline_masks(bucket, density, n_draws=4) for bucket in buckets]
    second = MaskPass(anyone, masks)
    with torch.no_grad():
        for part in torch.from_numpy(rows).split(50):
            second.add(part, anyone.encode(part))
    pairs, marginal = collect(anyone, rows), collect(anyone, rows, pair_numbers=0)
    for member, bucket in enumerate(buckets):
        answers = second.finish(member, marginal.finish(member))
        found = headline(answers, bucket, density, n_draws=4)
        wanted = headline(pairs.finish(member), bucket, density, n_draws=4)
        assert [m[:3] for m in found] == [m[:3] for m in wanted]
        np.testing.assert_allclose([m[3:] for m in found], [m[3:] for m in wanted], rtol=1e-8, atol=1e-9)
        with pytest.raises(ValueError, match="found a set of 3 features that was not among the masks"):
            answers.explained_variance(np.array([0, 1, 39]))


# -- headline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def additive() -> SecondOrder:
    """Features that do not interact: masking i costs (i + 1) of a total of 1000, so an EV tells which sum was masked."""
    return SecondOrder(0.0, 1000.0, (np.arange(100) + 1) / 2, np.zeros((100, 100)))


def bucket_array(**sizes: int) -> np.ndarray:
    return np.repeat(list(sizes), list(sizes.values()))


@pytest.mark.parametrize(
    ("sizes", "n"),
    [
        ({"stable": 30, "middle": 10, "unstable": 40, "dead": 20}, 10),
        ({"stable": 5, "middle": 5, "unstable": 90}, 5),
        ({"stable": 50, "middle": 43, "unstable": 7}, 1),
    ],
)
def test_n_is_the_smaller_of_the_stable_and_a_quarter_of_the_unstable(additive, sizes, n):
    bucket = bucket_array(**sizes)
    found = {m.mask: m for m in headline(additive, bucket, np.arange(100), n_draws=3)}
    assert {mask: m.n_masked for mask, m in found.items()} == {
        "none": 0, "all stable": sizes["stable"], "all middle": sizes["middle"], "all unstable": sizes["unstable"],
        "N stable": n, "N random": n, "N matched to stable": n,
        "4N unstable": 4 * n, "4N random": 4 * n, "4N matched to unstable": 4 * n,
    }  # fmt: skip
    assert all(m.n_draws == (3 if "N " in m.mask else 1) for m in found.values())


@pytest.mark.parametrize("sizes", [{"stable": 97, "unstable": 3}, {"middle": 20, "unstable": 80}])
def test_without_enough_of_either_only_whole_buckets_are_masked(additive, sizes):
    masks = [m.mask for m in headline(additive, bucket_array(**sizes), np.arange(100))]
    assert masks == ["none", "all stable", "all middle", "all unstable"]


def test_whole_buckets_cost_what_their_features_cost(additive):
    bucket = bucket_array(stable=30, middle=10, unstable=40, dead=20)
    found = {m.mask: m for m in headline(additive, bucket, np.arange(100), n_draws=5)}
    cost = np.arange(100) + 1
    assert found["none"].ev == 1
    for name in ("stable", "middle", "unstable"):
        assert found[f"all {name}"].ev == pytest.approx(1 - cost[bucket == name].sum() / 1000)
    least, most = np.sort(cost[bucket == "stable"])[:10].sum(), np.sort(cost[bucket == "stable"])[-10:].sum()
    assert 1 - most / 1000 <= found["N stable"].ev <= 1 - least / 1000
    assert found["N stable"].ev_sd > 0


def test_draws_repeat_with_their_seed(additive):
    bucket = bucket_array(stable=30, middle=10, unstable=40, dead=20)
    assert headline(additive, bucket, np.arange(100), seed=3) == headline(additive, bucket, np.arange(100), seed=3)
    assert headline(additive, bucket, np.arange(100), seed=3) != headline(additive, bucket, np.arange(100), seed=4)


@pytest.mark.parametrize("n", [1, 15, 60, 80])
def test_density_matched_sets_hold_living_features_once_each_and_near_in_rank(n):
    rng = np.random.default_rng(n)
    density = rng.permutation(100)
    living = rng.permutation(100)[:80]
    by_density = living[np.argsort(density[living])]
    chosen = rng.choice(living, n, replace=False)
    matched = _density_matched(chosen, by_density, rng)
    assert len(matched) == len(set(matched.tolist())) == n
    assert set(matched.tolist()) <= set(living.tolist())
    if n == 15:
        # 15 of 80 leave room: nobody needs to look further than the ten neighbours on each side.
        rank = {int(f): i for i, f in enumerate(by_density)}
        ranks = np.sort([rank[f] for f in chosen.tolist()]), np.sort([rank[f] for f in matched.tolist()])
        assert np.abs(ranks[0] - ranks[1]).max() <= 10


def test_sets_matched_in_density_cost_as_much_where_density_decides_the_cost():
    """Worth equal to density: matched sets must cost about what the sets they stand for cost, random ones not."""
    density = np.arange(400)
    worth = SecondOrder(0.0, 1e5, density / 2, np.zeros((400, 400)))
    bucket = np.array(["unstable"] * 120 + ["middle"] * 240 + ["stable"] * 40)
    ev = {m.mask: m.ev for m in headline(worth, bucket, density)}
    assert 1 - ev["N matched to stable"] == pytest.approx(1 - ev["N stable"], rel=0.05)
    assert 1 - ev["N random"] < 0.7 * (1 - ev["N stable"])
    assert 1 - ev["4N random"] > 1.5 * (1 - ev["4N matched to unstable"])
