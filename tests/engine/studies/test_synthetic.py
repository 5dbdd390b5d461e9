"""Known true features: how samples are made, what recovery says of members built by hand, and the map's cells on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.matching.match import match_ensemble
from seedscope.engine.saes.sae import SAE
from seedscope.engine.studies.synthetic.generator import (
    CHUNK,
    EVALUATION,
    TRAINING,
    SyntheticConfig,
    draw_samples,
    draw_truth,
)
from seedscope.engine.studies.synthetic.phase_map import AT_ONCE, RANKS, CellSettings, draw_map, map_cells, read_map
from seedscope.engine.studies.synthetic.plan import FILE, SyntheticPlan, read, write
from seedscope.engine.studies.synthetic.recovery import GROUPS, measure, turned_inside, verdict
from seedscope.engine.studies.synthetic.samples import BLOCK, NOTHING, draw_rows, label
from support.golden import unit_rows

SMALL = SyntheticConfig(d_in=24, n_free=10, n_low=60, r=5, rate_free=0.1, rate_low=0.02, seed=3)
RECIPE = TrainConfig(d_sae=20, k=3, seeds=(0, 1), n_tokens=2_048, batch=256)
MEMBERS = 4


def drawn(config: SyntheticConfig, n: int, stream: int = TRAINING):
    parts = list(draw_samples(config, n, stream=stream))
    return np.concatenate([part.rows for part in parts]), np.concatenate([part.codes.toarray() for part in parts])


# -- samples -----------------------------------------------------------------------------------------------------


def test_low_rank_features_lie_in_their_span_and_free_ones_do_not():
    truth = draw_truth(SMALL)
    np.testing.assert_allclose(np.linalg.norm(truth.features, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(truth.span.T @ truth.span, np.eye(5), atol=1e-6)
    inside = (truth.features @ truth.span) ** 2
    np.testing.assert_allclose(inside[10:].sum(1), 1, atol=1e-5)
    assert inside[:10].sum(1).max() < 0.9
    assert np.linalg.matrix_rank(truth.low, tol=1e-4) == 5
    assert truth.names[0] == "free 0"
    assert truth.names[10] == "low 0"


def test_samples_are_sums_of_active_features_with_half_normal_codes_at_their_rates():
    rows, codes = drawn(SMALL, 40_000)
    np.testing.assert_allclose(rows, codes @ draw_truth(SMALL).features, atol=1e-4)
    active = codes > 0
    rates = draw_truth(SMALL).rates
    spread = np.sqrt(rates * (1 - rates) / len(rows))
    assert np.all(np.abs(active.mean(0) - rates) < 5 * spread)
    strengths = codes[active]
    assert strengths.min() > 0
    assert strengths.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.01)  # of |N(0, 1)|
    assert (strengths**2).mean() == pytest.approx(1, abs=0.02)
    together = np.corrcoef(active[:, 0], active[:, 1])[0, 1]
    assert abs(together) < 0.03


def test_a_prefix_of_the_samples_does_not_depend_on_their_number_and_streams_differ():
    few, many = drawn(SMALL, 100)[0], drawn(SMALL, CHUNK + 100)[0]
    assert len(many) == CHUNK + 100
    np.testing.assert_array_equal(few, many[:100])
    assert not np.array_equal(few, drawn(SMALL, 100, EVALUATION)[0])
    assert not np.array_equal(few, drawn(replace(SMALL, seed=4), 100)[0])
    assert not np.array_equal(many[:100], many[CHUNK:])


def test_noise_has_the_standard_deviation_that_was_asked_for():
    rows, codes = drawn(replace(SMALL, noise=0.5), 8_000)
    assert (rows - codes @ draw_truth(SMALL).features).std() == pytest.approx(0.5, rel=0.01)


def test_a_rate_of_one_makes_a_feature_active_everywhere_and_groups_may_be_empty():
    _, codes = drawn(replace(SMALL, rate_free=1.0, n_low=0), 50)
    assert codes.shape == (50, 10)
    assert (codes > 0).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"r": 25}, "r is 25, expected 1 to d_in (24)"),
        ({"r": 0}, "r is 0"),
        ({"n_free": 0, "n_low": 0}, "expected at least one true feature"),
        ({"n_free": -1}, "n_free -1"),
        ({"rate_free": 0.0}, "rate_free is 0.0, expected a share above 0"),
        ({"rate_low": 1.5}, "rate_low is 1.5"),
        ({"rate_low": float("nan")}, "rate_low is nan"),
        ({"noise": -0.1}, "noise is -0.1"),
    ],
)
def test_settings_that_make_no_samples_are_refused_with_their_value(change, says):
    with pytest.raises(ValueError, match=r".") as refused:
        replace(SMALL, **change)
    assert says in str(refused.value)


def test_a_sample_is_named_after_its_strongest_feature():
    held = label(SMALL, 3 * BLOCK - 7)
    rows, codes = drawn(SMALL, 3 * BLOCK - 7, EVALUATION)
    np.testing.assert_array_equal(held.rows, rows)
    ids = held.tokens.ids.reshape(-1)
    assert (ids[len(rows) :] == -1).all()
    wanted = [f" {draw_truth(SMALL).names[row.argmax()]}" if row.any() else NOTHING for row in codes]
    assert [held.texts[i] for i in ids[: len(rows)]] == wanted
    assert NOTHING in wanted
    assert held.tokens.counted.sum() == len(rows)


# -- recovery ----------------------------------------------------------------------------------------------------


def members(build, n: int = MEMBERS) -> tuple[list[torch.Tensor], np.ndarray]:
    """Decoders that a function of (member, generator) builds, and their best cosines by the real matching."""
    decoders = [torch.from_numpy(build(m, np.random.default_rng((m, 77))).astype(np.float32)) for m in range(n)]
    rows = torch.stack(decoders)
    shape = rows.shape
    made = SAE(rows.mT.clone(), torch.zeros(shape[:2]), rows, torch.zeros(n, shape[2]), k=1, seeds=tuple(range(n)))
    return decoders, match_ensemble(made, None, assign=False).cosine


REGIME = SyntheticConfig(d_in=64, n_free=20, n_low=500, r=16)
TRUTH = draw_truth(REGIME)


def in_span(rng: np.random.Generator, n: int) -> np.ndarray:
    return unit_rows(rng.normal(size=(n, REGIME.r)) @ TRUTH.span.T)


def recovered(build, **more):
    decoders, cosine = members(build)
    dead = np.zeros((MEMBERS, len(decoders[0])), bool)
    return measure(TRUTH, decoders, cosine, dead, **more), decoders, cosine


def test_free_features_one_by_one_and_a_span_of_arbitrary_rows_is_the_regime():
    found, _, cosine = recovered(lambda m, rng: np.concatenate([3 * TRUTH.free[::-1], in_span(rng, 40)]))
    free, low = found.groups["free"], found.groups["low"]
    assert (free.found, free.found_by_all, free.p_hat, free.stable) == (1, 1, 1, 1)
    assert free.n_latents == MEMBERS * 20
    assert free.found_chance == free.chance == 0
    assert low.n_latents == MEMBERS * 40
    # Rows inside the span are as random as their random turns, so chance explains all that is found of them.
    assert low.p_hat < 0.05
    assert low.p_hat == pytest.approx((cosine[:, 20:] >= 0.7).mean())
    assert low.chance == pytest.approx(low.p_hat, abs=0.02)
    assert low.found == pytest.approx(low.found_chance, abs=0.02)
    unstable = found.levels["unstable"]
    assert unstable.energy == pytest.approx(1, abs=1e-4)
    assert unstable.span_overlap == pytest.approx(1, abs=1e-4)
    assert unstable.cross_overlap == pytest.approx(1, abs=1e-4)
    assert unstable.cross_energy == pytest.approx(1, abs=1e-4)
    assert found.levels["random"].energy == pytest.approx(16 / 64, abs=0.03)
    assert found.levels["r / d"].energy == 16 / 64
    stable = found.levels["stable"]
    energies = ((TRUTH.free @ TRUTH.span) ** 2).sum(1)
    assert stable.n_rows == 20
    assert stable.energy == pytest.approx(energies.mean(), abs=1e-4)
    assert verdict(found, TRUTH) == "holds"


def test_every_number_of_true_features_is_that_of_the_cosine_matrix():
    found, decoders, _ = recovered(
        lambda m, rng: np.concatenate([TRUTH.free[: 15 + m % 2], rng.normal(size=(30 - m % 2, 64))])
    )
    cosines = np.stack([TRUTH.features @ unit_rows(d.numpy()).T for d in decoders], 1)
    np.testing.assert_array_equal(found.found.latent, cosines.argmax(-1))
    np.testing.assert_allclose(found.found.cosine, cosines.max(-1), atol=1e-6)
    hits = cosines.max(-1)[:20] >= 0.7
    assert found.groups["free"].found == pytest.approx(hits.mean())
    assert found.groups["free"].found_by_all == hits.all(1).mean() == 0.75
    assert found.groups["free"].found_by_none == pytest.approx((~hits.any(1)).mean())
    np.testing.assert_allclose(found.latents.cosine, cosines.max(0), atol=1e-6)
    energy = np.stack([((unit_rows(d.numpy()) @ TRUTH.span) ** 2).sum(1) for d in decoders])
    np.testing.assert_allclose(found.latents.energy, energy, atol=1e-5)


def test_low_rank_features_that_come_back_are_said_to():
    found, *_ = recovered(lambda m, rng: np.concatenate([TRUTH.free, TRUTH.low[:40], in_span(rng, 20)]))
    assert found.groups["low"].p_hat == pytest.approx(2 / 3, abs=0.05)
    assert verdict(found, TRUTH) == "one by one"


def test_lost_free_features_and_unstable_rows_outside_the_span_are_told_apart():
    lost, *_ = recovered(lambda m, rng: np.concatenate([TRUTH.free[:10], in_span(rng, 40)]))
    assert verdict(lost, TRUTH) == "free lost"
    outside, *_ = recovered(lambda m, rng: np.concatenate([TRUTH.free, in_span(rng, 4), rng.normal(size=(40, 64))]))
    assert verdict(outside, TRUTH) == "no span"
    none, *_ = recovered(lambda m, rng: TRUTH.free)
    assert none.levels == {}
    assert none.groups["low"].p_hat is None
    assert verdict(none, TRUTH) == "no span"


def test_in_a_small_span_nothing_is_claimed():
    narrow = replace(REGIME, r=4)
    truth = draw_truth(narrow)

    def build(m, rng):
        return np.concatenate([truth.free, unit_rows(rng.normal(size=(40, 4)) @ truth.span.T)])

    decoders, cosine = members(build)
    found = measure(truth, decoders, cosine, np.zeros((MEMBERS, 60), bool))
    assert found.groups["low"].chance > 0.9
    assert verdict(found, truth) == "chance"


def test_dead_latents_count_in_no_group_and_no_set():
    decoders, cosine = members(lambda m, rng: np.concatenate([TRUTH.free, in_span(rng, 40), np.zeros((1, 64))]))
    dead = np.zeros((MEMBERS, 61), bool)
    dead[:, 40:] = True
    found = measure(TRUTH, decoders, cosine, dead)
    assert (found.latents.group[:, 40:] == -1).all()
    assert sum(group.n_latents for group in found.groups.values()) == MEMBERS * 40
    assert found.levels["unstable"].n_rows <= 20
    assert list(found.groups) == list(GROUPS)


def test_turning_inside_a_span_changes_nothing_else():
    rows = torch.from_numpy(unit_rows(np.random.default_rng(0).normal(size=(30, 64))).astype(np.float32))
    turned = turned_inside(rows, TRUTH.span, torch.Generator().manual_seed(0)).numpy()
    span, rows = TRUTH.span, rows.numpy()
    outside = np.eye(64) - span @ span.T
    np.testing.assert_allclose(turned @ outside, rows @ outside, atol=1e-5)
    np.testing.assert_allclose((turned @ span) @ (turned @ span).T, (rows @ span) @ (rows @ span).T, atol=1e-5)
    assert np.abs(turned @ span - rows @ span).max() > 0.1


def test_one_member_has_no_recovery():
    with pytest.raises(ValueError, match="found 1 member"):
        measure(TRUTH, [torch.from_numpy(TRUTH.free)], np.zeros((1, 20, 0), np.float32), np.zeros((1, 20), bool))


# -- the map -----------------------------------------------------------------------------------------------------


def test_the_map_holds_the_studys_own_cell_on_both_grids_and_no_impossible_one():
    plan = SyntheticPlan()
    wanted = plan.cells(0.7, 0.05)
    own = [place for place in wanted if place.samples == plan.samples]
    assert sorted(place.grid for place in own) == ["n_low", "rate"]
    assert len({place.key for place in own}) == 1
    rates = {(p.samples.r, round(p.samples.active_low, 6)) for p in wanted if p.grid == "rate"}
    assert rates == {(r, active) for r in RANKS for active in AT_ONCE}
    assert all(
        place.samples.active_low == pytest.approx(plan.samples.active_low) for place in wanted if place.grid == "n_low"
    )
    assert all(place.samples.r <= 24 for place in map_cells(SMALL, RECIPE))
    assert {place.samples.r for place in map_cells(SMALL, RECIPE)} >= {SMALL.r}
    assert map_cells(replace(SMALL, n_low=0), RECIPE) == []


def test_cells_are_kept_as_they_come_and_computed_once(tmp_path):
    wanted = [CellSettings("rate", replace(SMALL, r=r), RECIPE) for r in (3, 5)]
    told = []
    first = draw_map(tmp_path, wanted[:1], workers=1, report=lambda *at: told.append(at))
    assert told == [(0, 1), (1, 1)]
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ev": 0.125}))  # what is there is not computed again
    both = draw_map(tmp_path, wanted, workers=1, report=lambda *at: told.append(at))
    assert told[2:] == [(1, 2), (2, 2)]
    assert [cell.r for cell in both] == [3, 5]
    assert both[0] == replace(first[0], ev=0.125)
    assert read_map(tmp_path, wanted) == both
    other = [replace(place, theta=0.8) for place in wanted]
    assert read_map(tmp_path, other) == []
    assert both[1].random_energy == pytest.approx(5 / 24)
    assert 0 <= both[1].free_found <= 1


def test_cells_of_processes_side_by_side_are_the_same(tmp_path):
    wanted = [CellSettings("rate", replace(SMALL, r=r), RECIPE) for r in (3, 5)]
    apart = draw_map(tmp_path / "apart", wanted, workers=2)
    alone = draw_map(tmp_path / "alone", wanted, workers=1)
    for one, other in zip(apart, alone, strict=True):
        assert one.verdict == other.verdict
        assert one.ev == pytest.approx(other.ev, abs=1e-3)


def test_a_plan_comes_back_from_its_file_and_damage_is_named(tmp_path):
    assert read(tmp_path) is None
    plan = SyntheticPlan(samples=SMALL, recipe=RECIPE, map_recipe=RECIPE, n_evaluated=500)
    write(plan, tmp_path)
    assert read(tmp_path) == plan
    (tmp_path / FILE).write_text('{"samples": {"r": 999}}')
    with pytest.raises(ValueError, match="is damaged"):
        read(tmp_path)
    with pytest.raises(ValueError, match="expected at least 2"):
        SyntheticPlan(recipe=replace(RECIPE, seeds=(0,)))


def test_training_rows_are_the_samples_of_their_stream():
    np.testing.assert_array_equal(draw_rows(SMALL, 300, stream=EVALUATION), drawn(SMALL, 300, EVALUATION)[0])
