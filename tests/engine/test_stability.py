"""p_hat, its uncertainty and its bucket, against SciPy's own intervals and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from engine import stability
from engine.stability import BUCKETS, bucket_bounds, buckets, count_matches, is_match, score

COUNTS = [(x, n) for n in (1, 3, 7, 20, 95) for x in sorted({0, 1, n // 2, n - 1, n})]


@pytest.mark.parametrize(("x", "n"), COUNTS)
def test_intervals_are_clopper_pearson(x, n):
    found, expected = score(x, n), binomtest(x, n).proportion_ci(0.95, method="exact")
    assert found.p_hat == x / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("x", "n"), COUNTS)
@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.3])
def test_bucket_probabilities_are_those_of_the_jeffreys_posterior(x, n, epsilon):
    found, posterior = score(x, n, epsilon=epsilon), beta(x + 0.5, n - x + 0.5)
    assert found.p_stable == pytest.approx(posterior.sf(1 - epsilon), abs=1e-9)
    assert found.p_unstable == pytest.approx(posterior.cdf(epsilon), abs=1e-9)


def test_seven_comparisons_cannot_show_a_probability_of_95_percent():
    assert score(7, 7).p_stable < 0.95
    assert score(7, 7).low < 0.95


@pytest.mark.parametrize(
    ("n", "epsilon", "stable", "unstable"),
    [
        (20, 0.05, 19, 1),
        (7, 0.05, 7, 0),
        (95, 0.05, 91, 4),
        (3, 0.0, 3, 0),
        (10, 0.1, 9, 1),
        (3, 1 / 3, 2, 1),
        (1, 0.4, 1, 0),
    ],
)
def test_bucket_bounds_are_whole_comparisons(n, epsilon, stable, unstable):
    assert bucket_bounds(n, epsilon) == (stable, unstable)


@given(n=st.integers(1, 200), x=st.integers(0, 200), percent=st.integers(0, 49))
def test_buckets_follow_the_exact_fractions(n, x, percent):
    """0.05 means 5/100 here, not the float nearest to it: rounding never decides."""
    x = min(x, n)
    epsilon, share = Fraction(percent, 100), Fraction(x, n)
    expected = "stable" if share >= 1 - epsilon else "unstable" if share <= epsilon else "middle"
    assert score(x, n, epsilon=percent / 100).bucket == expected


@pytest.mark.parametrize("epsilon", [-0.01, 0.5, 1.0, float("nan")])
def test_an_epsilon_that_makes_buckets_overlap_is_refused(epsilon):
    with pytest.raises(ValueError, match=f"epsilon is {epsilon}, expected 0 <= epsilon < 0.5"):
        bucket_bounds(10, epsilon)


@pytest.mark.parametrize(("x", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_counts_that_cannot_be_are_refused(x, n):
    with pytest.raises(ValueError, match=f"{x} matches in {n} comparisons"):
        score(x, n)


def test_dead_comes_before_every_other_bucket():
    n_matched = np.array([4, 2, 0, 4, 2, 0])
    dead = np.array([True] * 3 + [False] * 3)
    assert buckets(n_matched, 4, dead).tolist() == ["dead"] * 3 + ["stable", "middle", "unstable"]
    assert score(4, 4, dead=True).bucket == "dead"
    assert set(BUCKETS) == {"stable", "middle", "unstable", "dead"}


@pytest.mark.parametrize("theta", [0.7, 0.1, 0.55, 0.95])
def test_theta_is_inclusive_at_the_precision_in_which_cosines_are_stored(theta):
    stored = np.float32(theta)
    just_below = np.nextafter(stored, np.float32(-1))
    assert is_match(np.array([stored, just_below]), theta).tolist() == [True, False]
    assert is_match([float(stored), float(just_below)], theta).tolist() == [True, False]


def test_matches_are_counted_over_the_last_axis():
    cosines = np.array([[[0.9, 0.7, 0.2], [-0.9, 0.69, 0.0]]], np.float32)
    assert count_matches(cosines).tolist() == [[2, 0]]
    assert count_matches(cosines, 0.65).tolist() == [[2, 1]]


def test_bucket_shares_are_those_of_counting_by_hand():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(0.3, 1, (200, 20)).astype(np.float32)
    thetas = [0.35, 0.7, 0.95]
    shares = stability.bucket_shares(cosines, thetas)
    for i, theta in enumerate(thetas):
        p = np.array([sum(c >= np.float32(theta) for c in row) / 20 for row in cosines])
        assert shares["stable"][i] == pytest.approx((p > 0.949).mean())
        assert shares["unstable"][i] == pytest.approx((p < 0.051).mean())
        assert shares["middle"][i] == pytest.approx(((p > 0.051) & (p < 0.949)).mean())


def test_convergence_ends_at_the_whole_and_is_immediate_where_all_seeds_agree():
    mixed = np.random.default_rng(1).random((300, 9)) < 0.5
    found = stability.convergence(mixed)
    assert found.n.tolist() == list(range(1, 10))
    assert found.same_bucket[-1] == 1
    assert found.error[-1] == 0
    assert found.error[0] > found.error[4] > 0
    agreed = np.repeat(np.random.default_rng(2).random((50, 1)) < 0.5, 6, axis=1)
    settled = stability.convergence(agreed)
    assert (settled.same_bucket == 1).all()
    assert (settled.error == 0).all()


def test_the_error_of_one_comparison_is_the_distance_to_the_final_share():
    matched = np.array([[True, False, False, False]])
    found = stability.convergence(matched, n_orders=4000)
    assert found.error[0] == pytest.approx(0.25 * 0.75 + 0.75 * 0.25, abs=0.02)
