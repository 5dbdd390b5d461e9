"""The map of directions: what is drawn, that it is the same again, and that copies lie together."""

import numpy as np
import pytest
import torch

from seedscope.engine.geometry.map import draw_map
from seedscope.engine.matching.match import Matches, match_ensemble
from seedscope.engine.saes.sae import SAE

MEMBERS, D_SAE, D = 3, 60, 16


@pytest.fixture(scope="module")
def decoders() -> torch.Tensor:
    """The first forty rows are the same in all members but for noise, the others each member's own; one row is zero."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(40, D))
    rows = np.stack([np.concatenate([shared + 0.05 * rng.normal(size=shared.shape), rng.normal(size=(20, D))])
                     for _ in range(MEMBERS)])  # fmt: skip
    rows[1, 59] = 0
    return torch.from_numpy(rows.astype(np.float32))


@pytest.fixture(scope="module")
def matches(decoders) -> Matches:
    flat = torch.zeros(MEMBERS, D_SAE), decoders, torch.zeros(MEMBERS, D)
    return match_ensemble(SAE(decoders.mT.clone(), *flat, k=1, seeds=tuple(range(MEMBERS))), None, assign=False)


@pytest.fixture(scope="module")
def living() -> np.ndarray:
    living = np.ones((MEMBERS, D_SAE), bool)
    living[:, 58] = False
    return living


@pytest.fixture(scope="module")
def direction_map(decoders, matches, living):
    return draw_map(decoders, matches, living)


def test_all_living_features_with_a_direction_are_drawn(direction_map, living):
    drawn = living.copy()
    drawn[1, 59] = False
    for places in (direction_map.x, direction_map.y):
        assert (np.isfinite(places) == drawn).all()
    assert "all 176 living features" in direction_map.remark
    assert "random seed 0" in direction_map.remark


def test_the_map_is_the_same_again(direction_map, decoders, matches, living):
    again = draw_map(decoders, matches, living)
    np.testing.assert_array_equal(again.x, direction_map.x)
    np.testing.assert_array_equal(again.y, direction_map.y)


def test_copies_in_other_members_lie_nearer_than_other_features(direction_map):
    place = np.stack([direction_map.x, direction_map.y], -1)[:, :40]
    apart = np.linalg.norm(place[0][:, None] - place[1][None], axis=-1)
    assert (apart.argmin(1) == np.arange(40)).mean() > 0.9


def test_of_many_a_random_choice_of_one_member_is_drawn_with_its_nearest_in_the_others(decoders, matches, living):
    found = draw_map(decoders, matches, living, most=30)
    drawn = np.isfinite(found.x)
    mine = np.flatnonzero(drawn[0])
    assert len(mine) == 10
    for slot, other in enumerate(matches.other[0]):
        nearest = matches.partner[0, mine, slot]
        assert set(np.flatnonzero(drawn[other])) == {i for i in nearest if living[other, i]}
    assert "10 features of one seed" in found.remark


def test_too_few_features_have_no_map(decoders, matches):
    nobody = np.zeros((MEMBERS, D_SAE), bool)
    nobody[0, :2] = True
    assert np.isnan(draw_map(decoders, matches, nobody).x).all()
