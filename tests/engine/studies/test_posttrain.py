"""Training on from given weights, and what is measured after it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.encode import measure
from seedscope.engine.saes.sae import SAE
from seedscope.engine.studies.pools.pool import pool
from seedscope.engine.studies.pools.posttrain import (
    agreement,
    halves,
    lengths,
    recipe_of,
    starts,
    train_on,
    two_pools,
    with_unit_rows,
)
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.starts import geometric_median, random_start
from support.golden import explained_variance, topk_codes, unit_rows

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
CONFIG = TrainConfig(d_sae=24, k=3, seeds=(0, 1, 2, 3), n_tokens=64 * 40, batch=64, lr=1e-2, aux_k=4)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Sparse non-negative codes times a fixed dictionary, off centre."""
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(900, 20))) * (rng.random((900, 20)) < 0.1)
    return (codes @ rng.normal(size=(20, 12)) + rng.normal(size=12)).astype(np.float32)


@pytest.fixture(scope="module")
def members(rows) -> SAE:
    return train_ensemble(rows, CONFIG).requires_grad_(False)


def ev(sae: SAE, rows: np.ndarray) -> float:
    t = {name: getattr(sae, name)[0].detach().double().numpy() for name in TENSORS}
    return explained_variance(
        rows, topk_codes(rows, t["W_enc"], t["b_enc"], t["b_dec"], sae.k) @ t["W_dec"] + t["b_dec"]
    )


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_a_tiny_rate_leaves_given_weights_as_they_are(rows, variant):
    config = replace(CONFIG, variant=variant, seeds=(3, 5))
    start = train_ensemble(rows, config)
    again = train_ensemble(rows, replace(config, lr=1e-12, n_tokens=64), start=start)
    for name in set(start.convention.tensors) - {"threshold"}:
        torch.testing.assert_close(getattr(again, name), getattr(start, name), rtol=1e-5, atol=1e-5)


def test_training_goes_on_from_the_start_and_its_members_are_their_own(rows, members):
    more = replace(CONFIG, n_tokens=64 * 20)
    on = train_ensemble(rows, more, start=members)
    scratch = train_ensemble(rows, more)
    for member in range(4):
        assert ev(on.only(member), rows) > ev(scratch.only(member), rows)
        alone = train_on([members.only(member)], rows, more)[0]
        torch.testing.assert_close(alone.W_dec[0], on.W_dec[member].detach(), rtol=0, atol=1e-4)
    assert not torch.equal(on.W_dec[0], on.W_dec[1])


def test_the_random_start_handed_over_gives_bit_for_bit_what_training_draws():
    signs = (
        np.random.default_rng(1).choice([-0.25, 0.25], (900, 16)).astype(np.float32)
    )  # the data's scale is exactly 1
    begin = random_start(CONFIG.seeds, 16, 24, center=geometric_median(torch.from_numpy(signs)), k=3)
    given, drawn = (train_ensemble(signs, CONFIG, start=start) for start in (begin, None))
    assert all(torch.equal(getattr(given, name), getattr(drawn, name)) for name in TENSORS)


def test_a_checkpoint_of_another_start_is_not_gone_on_from(rows, members, tmp_path):
    one = replace(CONFIG, seeds=(0,), n_tokens=64 * 10)
    first, second = (members.only(0), train_on([members.only(1)], rows, one)[0])
    train_ensemble(rows, one, start=first, checkpoints=tmp_path, every_s=0.0)
    assert list(tmp_path.rglob("step-*"))
    there = train_ensemble(rows, one, start=second, checkpoints=tmp_path, every_s=0.0)
    plain = train_ensemble(rows, one, start=second)
    assert torch.equal(there.W_dec, plain.W_dec)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": (0, 1, 2, 4)}, r"of the start seeds is \(0, 1, 2, 3\), expected \(0, 1, 2, 4\)"),
        ({"d_sae": 25}, "d_sae is 24, expected 25"),
        ({"k": 4}, "the convention is"),
        ({"variant": "archetypal"}, "expected one with free decoder rows"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(rows, members, changes, says):
    with pytest.raises(ValueError, match=says):
        train_ensemble(rows, replace(CONFIG, **changes), start=members)
    with pytest.raises(ValueError, match="d_in is 12, expected 11"):
        train_ensemble(rows[:, :11], CONFIG, start=members)


def test_rows_of_another_norm_are_refused_unless_activations_count_by_it(rows, members):
    tensors = {name: getattr(members, name).detach().clone() for name in TENSORS}
    factors = torch.linspace(0.5, 2, 24)[:, None]
    tensors["W_dec"] *= factors
    long = SAE(**tensors, seeds=members.seeds, k=3)
    with pytest.raises(ValueError, match=r"norms from 0\.5 to 2, expected 1"):
        train_ensemble(rows, CONFIG, start=long)
    scaled = SAE(**tensors, seeds=members.seeds, convention=Convention("topk", k=3, rescale_by_decoder_norm=True))
    unit = with_unit_rows(scaled)
    x = torch.from_numpy(rows[:50])
    torch.testing.assert_close(unit(x), scaled(x), rtol=1e-4, atol=1e-4)
    assert train_on([unit.only(0)], rows, CONFIG)[0].d_sae == 24


def test_what_is_measured_is_what_the_definitions_say(rows, members):
    found = measure(members, rows)
    for member in range(4):
        t = {name: getattr(members, name)[member].double().numpy() for name in TENSORS}
        codes = topk_codes(rows, t["W_enc"], t["b_enc"], t["b_dec"], 3)
        assert found.ev[member] == pytest.approx(ev(members.only(member), rows), abs=1e-5)
        assert found.l0[member] == pytest.approx((codes > 0).sum(1).mean(), abs=0.01)
        assert np.abs(found.n_active[member] - (codes > 0).sum(0)).max() <= 2
        assert found.dead[member] == (found.n_active[member] == 0).mean()


def test_agreement_asks_the_living_both_ways(members):
    rng = np.random.default_rng(3)
    live = (rng.random(24) < 0.6, rng.random(24) < 0.6)
    a, b = (unit_rows(members.W_dec[m].double().numpy()) for m in (0, 1))
    cosine = a @ b.T
    best = np.concatenate([cosine.max(1)[live[0]], cosine.max(0)[live[1]]])
    found = agreement(members.only(0), members.only(1), live, theta=0.6)
    assert found.shared == pytest.approx((best >= 0.6).mean())
    assert found.mmcs == pytest.approx(best.mean(), abs=1e-6)
    assert (found.forward, found.backward) == pytest.approx(
        ((cosine.max(1)[live[0]] >= 0.6).mean(), (cosine.max(0)[live[1]] >= 0.6).mean())
    )
    assert np.isnan(agreement(members.only(0), members.only(1), (live[0] & False, live[1] & False)).shared)


def test_an_sae_agrees_with_its_own_permutation(members):
    order = torch.randperm(24)
    one = members.only(0)
    other = SAE(one.W_enc[:, :, order], one.b_enc[:, order], one.W_dec[:, order], one.b_dec, seeds=(0,), k=3)
    alive = np.ones(24, bool)
    assert agreement(one, other, (alive, alive)) == pytest.approx((1.0,) * 4, abs=1e-6)


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"])
def test_a_pool_trained_on_by_its_members_own_recipe_keeps_or_raises_ev(rows, variant):
    config = replace(CONFIG, variant=variant, group_fracs=(0.25, 0.25, 0.5), n_tokens=64 * 80, silent_after=640)
    trained = train_ensemble(rows, config).requires_grad_(False)
    kept = {
        name: list(v) if isinstance(v, tuple) else v for name, v in as_parameters(config).items() if name != "seeds"
    }
    recipe = recipe_of(trained, kept, 64 * 40)
    own = set(config.uses) - {"seeds", "n_tokens"}
    assert {name: getattr(recipe, name) for name in own} == {name: getattr(config, name) for name in own}
    made = pool(trained, density=measure(trained, rows).n_active / len(rows)).sae
    before, after = (float(measure(each, rows).ev[0]) for each in (made, train_on([made], rows, recipe)[0]))
    assert after >= before
    assert after > float(measure(trained, rows).ev.mean()) - 0.03


def test_a_recipe_that_was_not_kept_is_guessed_for_topk_alone_and_says_why_not(rows, members):
    guessed = recipe_of(members, None, 640, variant="topk", lr=0.5, batch=32)
    assert (guessed.k, guessed.d_sae, guessed.lr, guessed.batch, guessed.n_tokens) == (3, 24, 0.5, 32, 640)
    assert guessed.silent_after == TrainConfig().silent_after
    tensors = [getattr(members, name) for name in TENSORS]
    relu = SAE(*tensors, seeds=members.seeds, convention=Convention("relu"))
    with pytest.raises(ValueError, match="it is vanilla and how it was trained is not known"):
        recipe_of(relu, None, 640, variant="vanilla")
    with pytest.raises(ValueError, match=r"it is used as .*training makes"):
        recipe_of(relu, {"variant": "topk", "k": 3, "batch": 64}, 640)
    for kept, variant in (({"variant": "relaxed-archetypal"}, None), (None, "archetypal")):
        with pytest.raises(ValueError, match="rows are made of their own member's centroids"):
            recipe_of(members, kept, 640, variant=variant)


def test_halves_are_disjoint_and_equally_many():
    assert halves(5) == ((0, 2), (1, 3))
    assert halves(8) == ((0, 2, 4, 6), (1, 3, 5, 7))


def test_lengths_are_whole_batches_without_repetition():
    assert lengths(4096, 512) == [0, 1024, 2048, 4096, 8192]
    assert lengths(600, 512) == [0, 512, 1024]


def test_controls_are_made_of_the_halves(rows, members):
    density = measure(members, rows).n_active / len(rows)
    begun = starts(members, pool(members, density=density), two_pools(members, density=density))
    assert {name: len(group) for name, group in begun.items()} == {"pool": 1, "halves": 2, "members": 2, "subset": 2}
    for half, subset, sets in zip(begun["halves"], begun["subset"], halves(4), strict=True):
        assert subset.d_sae == half.d_sae
        own = {tuple(row) for m in sets for row in members.W_dec[m].tolist()}
        for each in (half, subset):
            taken = [tuple(row) for row in each.W_dec[0].tolist()]
            assert len(set(taken)) == len(taken)
            assert set(taken) <= own
    assert torch.equal(begun["members"][1].W_dec[0], members.W_dec[1])
    assert two_pools(SAE(*(getattr(members, n)[:3] for n in TENSORS), seeds=(0, 1, 2), k=3)) is None


def test_saes_of_different_widths_are_trained_each_with_its_own_kind(rows, members):
    narrow = SAE(
        members.W_enc[:1, :, :20], members.b_enc[:1, :20], members.W_dec[:1, :20], members.b_dec[:1], seeds=(0,), k=3
    )
    told = []
    config = replace(CONFIG, n_tokens=640)
    found = train_on([members.only(0), narrow, members.only(1)], rows, config, report=lambda d, t: told.append((d, t)))
    assert [each.d_sae for each in found] == [24, 20, 24]
    assert told[-1] == (1920, 1920)
    alone = train_on([narrow], rows, config)[0]
    torch.testing.assert_close(found[1].W_dec, alone.W_dec)
