"""What counterparts do, against dense codes: correlations by NumPy, scores by putting the counterpart in place."""

import numpy as np
import pytest
import torch

from seedscope.engine.contract.stability import seed_bootstrap_ratio
from seedscope.engine.contract.tables.function import SUBSTITUTES
from seedscope.engine.features.ablation import AblationPass
from seedscope.engine.features.cofiring import correlation, jaccard, moments, pair_sums, varies
from seedscope.engine.features.counterparts import density_control, hard_negative, most_alike, runner_up
from seedscope.engine.features.firings import FiringSpool
from seedscope.engine.features.function import MemberFunction, OfKind, from_arrays
from seedscope.engine.features.function_summary import summarise
from seedscope.engine.features.substitution import Gains, scores, set_score
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE
from support.golden import explained_variance, topk_codes

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
N = 240
PAIRS = np.array([(i, j) for i in range(16) for j in range(16)]).T


def rows_of(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, 6)) * 2 + 1


def collect(sae: SAE, rows: np.ndarray, **options: int) -> tuple[FiringSpool, AblationPass]:
    """Both passes, in uneven batches; positions leave gaps, as where tokens do not count."""
    firings, gains = FiringSpool(sae, **options), AblationPass(sae, pair_numbers=0, across=True)
    with torch.no_grad():
        for first in range(0, len(rows), 77):
            part = torch.from_numpy(rows[first : first + 77])
            codes = sae.encode(part)
            firings.add(codes, 3 * np.arange(first, first + len(part)))
            gains.add(part, codes)
    return firings, gains


@pytest.fixture(scope="module")
def sae(make_sae) -> SAE:
    return make_sae(members=2, d_in=6, d_sae=16, k=4)


def dense(sae: SAE, member: int, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    t = {name: getattr(sae, name)[member].detach().numpy() for name in TENSORS}
    return topk_codes(rows, t["W_enc"], t["b_enc"], t["b_dec"], sae.k), t


@pytest.mark.parametrize("held", [2**24, 100])  # in memory, and in several files that are merged
def test_correlation_and_overlap_are_those_of_dense_activations(sae, held):
    rows = rows_of()
    firings, _ = collect(sae, rows, held_firings=held)
    own = [moments(firings, member) for member in (0, 1)]
    sums = pair_sums(firings, 0, 1, *PAIRS)
    found = correlation(sums, *own, *PAIRS, N)
    overlap = jaccard(sums.together, own[0].n_active[PAIRS[0]], own[1].n_active[PAIRS[1]])
    acts = []
    for member in (0, 1):
        codes, t = dense(sae, member, rows)
        acts.append(codes * np.linalg.norm(t["W_dec"], axis=1))
    expected = np.nan_to_num(np.corrcoef(acts[0].T, acts[1].T)[:16, 16:])
    fires = [a > 0 for a in acts]
    both = fires[0].T.astype(int) @ fires[1].astype(int)
    either = (fires[0][:, :, None] | fires[1][:, None, :]).sum(0)
    np.testing.assert_array_equal(sums.together.reshape(16, 16), both)
    np.testing.assert_allclose(overlap.reshape(16, 16), both / either)
    np.testing.assert_allclose(found.reshape(16, 16), np.where(both > 0, expected, 0), atol=1e-6)
    assert (both == 0).any()
    assert (both > 0).sum() > 100


def codes_of(values: np.ndarray):
    """Codes of two members of three features each, from dense activations (tokens, members, 3)."""
    from seedscope.engine.saes.sae import Codes

    index = np.broadcast_to(np.arange(3), values.shape).copy()
    return Codes(torch.from_numpy(values), torch.from_numpy(index))


def test_what_never_fires_never_fires_together_or_is_constant_correlates_with_nothing(make_sae):
    sae = make_sae(members=2, d_in=4, d_sae=3, k=3)
    values = np.zeros((8, 2, 3))
    values[:, 0, 0] = 0.7  # constant
    values[:4, 0, 1] = [1, 2, 3, 4]
    values[4:, 1, 0] = [1, 2, 3, 4]  # never with the former
    values[:, 1, 1] = np.arange(1, 9)  # the third features never fire
    firings = FiringSpool(sae)
    firings.add(codes_of(values), np.arange(8))
    own = [moments(firings, member) for member in (0, 1)]
    pairs = np.divmod(np.arange(9), 3)
    sums = pair_sums(firings, 0, 1, *pairs)
    found = correlation(sums, *own, *pairs, 8).reshape(3, 3)
    expected = np.corrcoef(values[:, 0, 1], values[:, 1, 1])[0, 1]
    np.testing.assert_allclose(found, [[0, 0, 0], [0, expected, 0], [0, 0, 0]], atol=1e-6)
    assert np.isfinite(jaccard(sums.together, own[0].n_active[pairs[0]], own[1].n_active[pairs[1]])).all()
    assert varies(own[0], 8).tolist() == [False, True, False]


def brute_force(rows, codes, decoder, bias, feature, put) -> tuple[float, float, float, float]:
    """EV of the SAE itself, without the feature, with `put` (tokens, d_in) in its place, and with both."""
    whole = codes @ decoder + bias
    without = whole - codes[:, [feature]] * decoder[feature]
    return tuple(explained_variance(rows, each) for each in (whole, without, without + put, whole + put))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0)])
def test_scores_are_those_of_the_counterpart_put_in_place(sae, a, b):
    rows = rows_of()
    firings, gains = collect(sae, rows)
    (codes, t), (others, u) = dense(sae, a, rows), dense(sae, b, rows)
    first, second = PAIRS
    worth = 2 * gains.along(a, a) + gains.diagonal(a)
    unit = [x["W_dec"] / np.linalg.norm(x["W_dec"], axis=1, keepdims=True) for x in (t, u)]
    cosine = (unit[0][first] * unit[1][second]).sum(1)
    product = pair_sums(firings, a, b, first, second).scaled
    of_b = Gains(gains.along(b, a), gains.diagonal(b))
    found = scores(worth[first], of_b, second, product, cosine)
    n_scaled = 0
    for at, (i, j) in enumerate(zip(first, second, strict=True)):
        put = others[:, [j]] * u["W_dec"][j]
        ev, without, with_it, _ = brute_force(rows, codes, t["W_dec"], t["b_dec"], i, put)
        if ev <= without:
            assert np.isnan([found.raw[at], found.scaled[at], found.beside[at]]).all()
            continue
        assert found.raw[at] == pytest.approx((with_it - without) / (ev - without), abs=1e-5)
        for name, start in (("scaled", without), ("beside", ev)):
            # Of factors on a fine grid none serves better, and the best of them nearly as well.
            left = rows - (codes @ t["W_dec"] + t["b_dec"])
            left = left + codes[:, [i]] * t["W_dec"][i] if name == "scaled" else left
            best = max((put * left).sum() / (put**2).sum(), 0) if put.any() else 0
            reached = explained_variance(rows, rows - left + best * put)
            assert getattr(found, name)[at] == pytest.approx((reached - start) / (ev - without), abs=1e-5)
            n_scaled += best > 0
        assert found.scaled[at] >= max(found.raw[at] - 1e-9, 0)
    assert n_scaled > 20


def test_a_feature_in_its_own_place_loses_nothing(make_sae):
    one = make_sae(members=1, d_in=6, d_sae=16, k=4)
    twice = SAE(*(torch.cat([getattr(one, name)] * 2) for name in TENSORS), k=4, seeds=(0, 1))
    firings, gains = collect(twice, rows_of())
    same = np.arange(16)
    worth = 2 * gains.along(0, 0) + gains.diagonal(0)
    product = pair_sums(firings, 0, 1, same, same).scaled
    found = scores(worth, Gains(gains.along(1, 0), gains.diagonal(1)), same, product, np.ones(16))
    defined = worth > 0
    assert defined.sum() >= 3
    np.testing.assert_allclose(found.raw[defined], 1, atol=1e-5)


def test_scores_where_an_sae_normalises_its_input_hold_its_scales():
    """The counterpart's activations are multiplied by the token's scale, in the member that it comes from as in its new place."""
    rng = np.random.default_rng(3)
    convention = Convention("topk", k=3, normalize="layer_norm")
    tensors = {
        name: torch.from_numpy(rng.normal(size=(2, *shape)))
        for name, shape in {"W_enc": (6, 10), "b_enc": (10,), "W_dec": (10, 6), "b_dec": (6,)}.items()
    }
    sae = SAE(**tensors, convention=convention, seeds=(0, 1))
    rows = rows_of(7) * rng.uniform(0.2, 4, (N, 1))
    firings, gains = collect(sae, rows)
    with torch.no_grad():
        x = torch.from_numpy(rows)
        codes = sae.encode(x)
        weights = (
            torch.zeros(N, 2, 10, dtype=torch.float64).scatter_add_(2, codes.indices, sae.coefficients(codes)).numpy()
        )
        whole = sae(x)[:, 0].numpy()
    a, b = (sae.W_dec[m].detach().numpy() for m in (0, 1))
    first, second = np.divmod(np.arange(100), 10)
    cosine = ((a / np.linalg.norm(a, axis=1)[:, None])[first] * (b / np.linalg.norm(b, axis=1)[:, None])[second]).sum(1)
    worth = 2 * gains.along(0, 0) + gains.diagonal(0)
    product = pair_sums(firings, 0, 1, first, second).scaled
    found = scores(worth[first], Gains(gains.along(1, 0), gains.diagonal(1)), second, product, cosine).raw
    checked = 0
    for at, (i, j) in enumerate(zip(first, second, strict=True)):
        without = whole - weights[:, 0, [i]] * a[i]
        ev = [explained_variance(rows, each) for each in (whole, without, without + weights[:, 1, [j]] * b[j])]
        if ev[0] > ev[1]:
            assert found[at] == pytest.approx((ev[2] - ev[1]) / (ev[0] - ev[1]), abs=1e-4)
            checked += 1
    assert checked >= 20


def test_several_features_serve_with_the_factors_of_least_squares():
    rng = np.random.default_rng(0)
    left, put = rng.normal(size=(50, 4)), rng.normal(size=(3, 50, 4))  # residual without the feature; what each adds
    flat = put.reshape(3, -1)
    factors = np.linalg.lstsq(flat.T, left.ravel(), rcond=None)[0]
    gained = (left**2).sum() - ((left - np.tensordot(factors, put, 1)) ** 2).sum()
    score, found = set_score(5.0, flat @ left.ravel(), flat @ flat.T)
    assert score == pytest.approx(gained / 5)
    np.testing.assert_allclose(found, factors)
    twins = np.concatenate([flat, flat])  # the same features twice
    assert set_score(5.0, twins @ left.ravel(), twins @ twins.T)[0] == pytest.approx(gained / 5)


def test_counterparts_are_chosen_among_the_nearest():
    nearest = np.array([[4, 2, 7, -1], [1, 3, 0, 2], [-1, -1, -1, -1]])
    cosine = np.array([[0.9, 0.6, 0.4, -1], [0.8, 0.75, 0.72, 0.71], [-1, -1, -1, -1]], np.float32)
    fires = np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
    assert runner_up(nearest, np.array([4, 1, -1])).tolist() == [2, 3, -1]
    assert runner_up(nearest, np.array([2, 1, -1])).tolist() == [4, 3, -1]  # a tie that matching broke otherwise
    assert hard_negative(nearest, cosine, fires, 0.7).tolist() == [7, -1, -1]  # 2 never fires
    alike = np.array([[0.1, 0.9, 0.1, 0], [0.2, 0.5, 0.5, 0.9], [0, 0, 0, 0.0]])
    assert most_alike(nearest, alike, fires, np.array([True, True, True])).tolist() == [4, 0, -1]  # ties: lowest index
    assert most_alike(nearest, alike, fires, np.array([True, False, True])).tolist() == [4, -1, -1]


def test_the_control_has_the_feature_s_density_and_is_none_of_the_nearest():
    rng = np.random.default_rng(1)
    counts, others = rng.integers(1, 1000, 300), rng.integers(0, 1000, 300)
    others[::3] = 0
    nearest = rng.integers(0, 300, (300, 8))
    counts[:5] = 0
    drawn = density_control(counts, others, nearest, np.random.default_rng(0))
    assert (drawn[:5] == -1).all()
    some = np.flatnonzero(drawn >= 0)
    assert len(some) > 280
    assert (others[drawn[some]] > 0).all()
    assert not (drawn[some, None] == nearest[some]).any()
    ranked = np.sort(others[others > 0])
    assert np.abs(np.searchsorted(ranked, others[drawn[some]]) - np.searchsorted(ranked, counts[some])).max() <= 11
    assert (density_control(counts, np.zeros(300, int), nearest, rng) == -1).all()


def member(rng: np.random.Generator, living: np.ndarray, raw: np.ndarray) -> MemberFunction:
    kind = OfKind.none(*raw.shape)
    kind.partner[:] = rng.integers(0, 9, raw.shape)
    kind.correlation[:] = rng.uniform(-0.2, 1, raw.shape)
    kind.raw[:], kind.scaled[:], kind.beside[:] = raw, np.maximum(raw, 0), 0
    return MemberFunction({"argmax": kind, "active": kind}, living)


def test_a_summary_counts_pairs_and_features_of_its_bucket():
    rng = np.random.default_rng(0)
    raw = np.array([[0.9, 0.9], [0.9, 0.1], [0.8, np.float32(0.8)], [np.nan, np.nan]], np.float32)
    members = [member(rng, np.ones(4, bool), raw) for _ in range(3)]
    names = [np.array(["stable", "stable", "unstable", "stable"])] * 3
    rows = {(row.bucket, row.kind): row for row in summarise("e", members, names, 0.05)}
    stable = rows["stable", "argmax"]
    assert (stable.n_features, stable.n_pairs, stable.n_scored) == (9, 18, 12)
    assert stable.raw_share == pytest.approx(0.75)
    assert stable.always_share == pytest.approx(0.5)
    assert stable.raw_share_low <= 0.75 <= stable.raw_share_high
    assert rows["unstable", "argmax"].raw_share == 1  # SUBSTITUTES itself reaches
    assert rows["middle", "argmax"].n_pairs == 0
    assert rows["middle", "argmax"].correlation is rows["middle", "argmax"].raw_share is None
    assert rows["living", "argmax"].n_pairs == 24
    assert SUBSTITUTES == 0.8


def test_two_members_have_no_interval():
    assert seed_bootstrap_ratio(np.array([[0, 1], [1, 0.0]]), np.array([[0, 2], [2, 0.0]])) is None
    many = np.ones((6, 6)) - np.eye(6)
    assert seed_bootstrap_ratio(many, 2 * many) == pytest.approx((0.5, 0.5))


def test_arrays_of_a_part_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    function = member(rng, np.array([True, True, False]), rng.normal(size=(3, 2)).astype(np.float32))
    np.savez(tmp_path / "part.npz", **function.as_arrays())
    with np.load(tmp_path / "part.npz") as arrays:
        again = from_arrays(arrays)
    assert set(again.kinds) == {"argmax", "active"}
    np.testing.assert_array_equal(again.active_correlation, function.kinds["active"].correlation)
    means = function.kinds["argmax"].correlation.mean(1)
    np.testing.assert_allclose(again.mean_correlation, [means[0], means[1], np.nan], rtol=1e-6)
    medians = np.median(function.kinds["argmax"].raw, axis=1)
    np.testing.assert_allclose(again.median_substitution, [medians[0], medians[1], np.nan], rtol=1e-6)
