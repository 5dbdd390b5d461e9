"""Does the paper's claim hold? The verdict from means and spreads, case by case."""

import pytest

from seedscope.app.findings.span_claim import DEVIATIONS, NEARLY, EnergyAtRank, compare, judge_claim

CHANCE = EnergyAtRank(0.1, None, 0)


def levels(cross: float, within: float = 0.5, *, spread: float = 0.01, n_pairs: int = 56, **controls: float) -> dict:
    means = {"within": within, "cross": cross} | controls
    return {name: EnergyAtRank(mean, spread, n_pairs) for name, mean in means.items()} | {"random_subspace": CHANCE}


def test_nearly_its_own_and_far_above_a_random_set_holds_for_unstable_features_in_particular():
    claim = judge_claim(levels(0.48, random_set=0.3, stable=0.2))
    assert claim.holds
    assert claim.is_particular
    assert claim.kept == pytest.approx(0.38 / 0.4)
    assert claim.against == {"random_set": "more", "stable": "more", "random_subspace": "more"}


def test_no_more_than_a_random_set_holds_but_says_nothing_of_unstable_features():
    claim = judge_claim(levels(0.48, random_set=0.47, stable=0.2))
    assert (claim.holds, claim.is_particular, claim.against["random_set"]) == (True, False, "equal")


def test_less_than_a_random_set_is_told_from_as_much():
    claim = judge_claim(levels(0.48, random_set=0.6))
    assert (claim.holds, claim.is_particular, claim.against["random_set"]) == (True, False, "less")
    assert "stable" not in claim.against


@pytest.mark.parametrize(
    ("cross", "carries"), [(0.1 + 0.4 * NEARLY + 0.001, "nearly"), (0.3, "partly"), (0.11, "no"), (0.05, "no")]
)
def test_what_is_kept_above_chance_decides_how_far_the_claim_holds(cross, carries):
    claim = judge_claim(levels(cross))
    assert claim.carries == carries
    assert claim.holds == (carries == "nearly")
    assert claim.kept == pytest.approx((cross - 0.1) / 0.4)


def test_where_not_even_its_own_span_beats_chance_there_is_nothing_to_share():
    claim = judge_claim(levels(0.3, within=0.11))
    assert (claim.carries, claim.kept, claim.holds) == ("nothing", None, False)


def test_two_members_are_too_few_to_set_against_controls():
    claim = judge_claim(levels(0.48, random_set=0.3, n_pairs=2))
    assert claim.against == {"random_set": None, "random_subspace": None}
    assert claim.is_particular is None


@pytest.mark.parametrize("stops", ["cross", "within", "random_subspace"])
def test_a_curve_that_stops_before_the_rank_gives_no_verdict(stops):
    held = levels(0.48)
    del held[stops]
    assert judge_claim(held) is None


def test_a_wider_spread_makes_the_same_difference_none():
    assert compare(EnergyAtRank(0.5, 0.01, 9), EnergyAtRank(0.45, 0.01, 9)) == "more"
    assert compare(EnergyAtRank(0.45, 0.01, 9), EnergyAtRank(0.5, 0.01, 9)) == "less"
    assert compare(EnergyAtRank(0.5, 0.05, 9), EnergyAtRank(0.45, 0.01, 9)) == "equal"
    assert compare(EnergyAtRank(0.5, 0.02, 9), EnergyAtRank(0.5 - DEVIATIONS * 0.0201, None, 0)) == "more"
