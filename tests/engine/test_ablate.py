"""Explained variance under masks against masking dense activations one set at a time."""

import numpy as np
import pytest
import torch
from golden import explained_variance, topk_codes

from engine.ablate import AblationPass, SecondOrder, _density_matched, headline

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


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
