"""p_hat, its uncertainty and its bucket, against SciPy's own intervals and exact fractions."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import beta, binomtest

from seedscope.engine.contract import stability
from seedscope.engine.contract.stability import BUCKETS, bucket_bounds, buckets, count_matches, is_match, score

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


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(0, 6)), elements=st.floats(-1, 1, width=32)))
def test_counts_on_the_grid_are_those_at_each_threshold(cosines):
    found = stability.count_on_grid(cosines)
    for i in (0, 1, 35, 69, 70, 71, 99, 100):
        assert found[:, i].tolist() == count_matches(cosines, i / 100).tolist()


def test_every_threshold_of_the_grid_is_inclusive():
    thetas = [np.float32(i / 100) for i in range(101)]
    found = stability.count_on_grid(np.array(thetas)[:, None])
    assert (found == np.tri(101)).all()


def test_bucket_shares_are_those_of_counting_by_hand():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(0.3, 1, (200, 20)).astype(np.float32)
    thetas = [0.35, 0.7, 0.95]
    shares = stability.bucket_shares(np.stack([count_matches(cosines, t) for t in thetas], 1), 20)
    for i, theta in enumerate(thetas):
        p = np.array([sum(c >= np.float32(theta) for c in row) / 20 for row in cosines])
        assert shares["stable"][i] == pytest.approx((p > 0.949).mean())
        assert shares["unstable"][i] == pytest.approx((p < 0.051).mean())
        assert shares["middle"][i] == pytest.approx(((p > 0.051) & (p < 0.949)).mean())


def counted(matched: np.ndarray) -> np.ndarray:
    """Features by their number of matches."""
    return np.bincount(matched.sum(1), minlength=matched.shape[1] + 1)


def test_convergence_ends_at_the_whole_and_is_immediate_where_all_seeds_agree():
    mixed = np.random.default_rng(1).random((300, 9)) < 0.5
    found = stability.convergence(counted(mixed))
    assert found.n.tolist() == list(range(1, 10))
    assert found.same_bucket[-1] == pytest.approx(1)
    assert found.error[-1] == pytest.approx(0, abs=1e-12)
    assert found.error[0] > found.error[4] > 0
    agreed = np.repeat(np.random.default_rng(2).random((50, 1)) < 0.5, 6, axis=1)
    settled = stability.convergence(counted(agreed))
    np.testing.assert_allclose(settled.same_bucket, 1)
    np.testing.assert_allclose(settled.error, 0, atol=1e-12)


def test_convergence_is_the_mean_over_every_choice_of_comparisons():
    """Against enumeration: all subsets of the comparisons of every feature."""
    matched = np.random.default_rng(3).random((12, 6)) < np.linspace(0, 1, 12)[:, None]
    epsilon = 0.2
    found = stability.convergence(counted(matched), epsilon=epsilon)
    none_dead = np.zeros(12, bool)
    final = buckets(matched.sum(1), 6, none_dead, epsilon)
    for n in range(1, 7):
        chosen = [matched[:, list(subset)].sum(1) for subset in combinations(range(6), n)]
        same = np.mean([buckets(x, n, none_dead, epsilon) == final for x in chosen])
        error = np.mean([np.abs(x / n - matched.mean(1)) for x in chosen])
        assert found.same_bucket[n - 1] == pytest.approx(same)
        assert found.error[n - 1] == pytest.approx(error)


def drawn_ensemble(rng: np.random.Generator, p: np.ndarray, n_members: int) -> tuple[np.ndarray, np.ndarray]:
    """Members that hold direction i with probability p_i: a feature matches where another member holds its direction."""
    held = rng.random((n_members, len(p))) < p
    matched = [np.delete(held, member, axis=0)[:, held[member]].T for member in range(n_members)]
    return np.concatenate(matched), np.repeat(np.arange(n_members), held.sum(1))


def test_the_band_over_seeds_covers_and_one_over_pooled_features_does_not():
    """Repeated ensembles from one source: the mean curve lies in the 95 % band about that often, unlike with DKW."""
    p, rng, at = np.random.default_rng(1).beta(1.5, 1.5, 200), np.random.default_rng(0), 13
    ensembles = [drawn_ensemble(rng, p, 24) for _ in range(80)]
    bands = [stability.seed_bootstrap_band(*ensemble, 24, n_draws=100) for ensemble in ensembles]
    truth = np.mean([band.cdf[at] for band in bands])
    by_seeds = np.mean([band.low[at] <= truth <= band.high[at] for band in bands])
    pooled = [
        abs(band.cdf[at] - truth) <= stability.dkw_half_width(len(e[0]))
        for band, e in zip(bands, ensembles, strict=True)
    ]
    assert by_seeds >= 0.85
    assert np.mean(pooled) < 0.85


def test_the_cdf_counts_features_and_lies_in_its_band_of_shares():
    matched, anchor = drawn_ensemble(np.random.default_rng(2), np.full(30, 0.5), 6)
    band = stability.seed_bootstrap_band(matched, anchor, 6)
    share = matched.mean(1)
    np.testing.assert_allclose(band.p, np.arange(6) / 5)
    np.testing.assert_allclose(band.cdf, [(share <= p + 1e-9).mean() for p in band.p])
    assert (band.low <= band.high).all()
    assert band.cdf[-1] == band.low[-1] == band.high[-1] == 1


def test_one_anchor_is_known_to_the_dkw_half_width():
    """Massart's constant: 1.358 / sqrt(n) at 95 %."""
    assert stability.dkw_half_width(10_000) == pytest.approx(0.01358, abs=1e-5)
