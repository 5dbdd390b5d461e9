"""Activity against brute force on a dense (position, feature) matrix."""

import numpy as np
import pytest
import torch

from seedscope.engine.activations.harvest import PADDING, TokenSet
from seedscope.engine.features.activity import (
    AFTER,
    BEFORE,
    N_INTERVALS,
    N_PER_INTERVAL,
    N_SILENT,
    N_TOP,
    Activity,
    ActivityPass,
)
from seedscope.engine.saes.sae import SAE, Codes

N_CTX, N_WINDOWS, D_SAE, K, BOS = 48, 70, 12, 3, 0
DEAD = 11


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    """Seven documents of ten windows; the last window of each is padded by another length."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 9, size=(N_WINDOWS, N_CTX)).astype(np.int32)
    ids[:, 0] = BOS
    document = np.repeat(np.arange(7), 10).astype(np.int32)
    for index in range(7):
        ids[10 * index + 9, N_CTX - 6 * index :] = PADDING
    start = (np.arange(N_WINDOWS) % 10 * (N_CTX - 1)).astype(np.int32)
    return TokenSet(ids, document, start, [f"doc{i}" for i in range(7)], BOS)


@pytest.fixture(scope="module")
def positions(tokens) -> np.ndarray:
    ids = tokens.ids.reshape(-1)
    return np.flatnonzero((ids != BOS) & (ids != PADDING))


@pytest.fixture(scope="module")
def firings(positions) -> tuple[np.ndarray, np.ndarray]:
    """Random codes (tokens, K): distinct features, a third of the values zero; feature 10 is rare, 11 dead."""
    rng = np.random.default_rng(1)
    weight = np.r_[np.linspace(3, 0.5, 10), 0.03, 0]
    indices = np.stack([rng.choice(D_SAE, K, replace=False, p=weight / weight.sum()) for _ in positions])
    values = rng.gamma(2.0, size=indices.shape) * (rng.random(indices.shape) < 0.67)
    return indices, values.astype(np.float32)


@pytest.fixture(scope="module")
def norms() -> np.ndarray:
    return np.linspace(0.5, 3, D_SAE).astype(np.float32)


@pytest.fixture(scope="module")
def dense(firings, positions, norms) -> np.ndarray:
    """(positions, features) activations a_i * ||d_i||; positions in the flat token set, also those that do not count."""
    indices, values = firings
    matrix = np.zeros((N_WINDOWS * N_CTX, D_SAE), np.float32)
    matrix[positions[:, None], indices] = values * norms[indices]
    return matrix


@pytest.fixture(scope="module")
def activity(firings, positions, norms, tokens) -> Activity:
    """The second of two members, fed in three batches of unequal size; the first member fires nowhere."""
    indices, values = (torch.from_numpy(a) for a in firings)
    decoder = torch.zeros(2, D_SAE, 4)
    decoder[..., 1] = torch.from_numpy(norms)
    zeros = torch.zeros(2, D_SAE)
    sae = SAE(decoder.transpose(1, 2), zeros, decoder, torch.zeros(2, 4), k=K, seeds=(0, 1))
    collected = ActivityPass(sae)
    for part in np.array_split(np.arange(len(positions)), [7, 1500]):
        codes = Codes(
            torch.stack([torch.zeros_like(values[part]), values[part]], 1), torch.stack([indices[part]] * 2, 1)
        )
        collected.add(codes, positions[part])
    assert collected.finish(0, tokens).n_active.sum() == 0
    return collected.finish(1, tokens)


def collect(firings, positions, norms, folder=None, **options) -> ActivityPass:
    """One member, fed in batches of 100 tokens."""
    indices, values = (torch.from_numpy(a)[:, None] for a in firings)
    decoder = torch.zeros(1, D_SAE, 4)
    decoder[..., 1] = torch.from_numpy(norms)
    sae = SAE(decoder.transpose(1, 2), torch.zeros(1, D_SAE), decoder, torch.zeros(1, 4), k=K, seeds=(0,))
    collected = ActivityPass(sae, folder=folder, **options)
    for part in np.array_split(np.arange(len(positions)), len(positions) // 100):
        collected.add(Codes(values[part], indices[part]), positions[part])
    return collected


def test_members_summarised_side_by_side_are_those_summarised_in_turn(make_sae, tokens):
    sae = make_sae(members=5, d_in=4, d_sae=30, k=3, dtype=np.float32)
    rows = torch.randn(int(tokens.counted.sum()), 4, generator=torch.Generator().manual_seed(0))
    positions = np.flatnonzero(tokens.counted)
    first, second = ActivityPass(sae), ActivityPass(sae)
    for collected in (first, second):
        with torch.no_grad():
            collected.add(sae.encode(rows), positions)
    side_by_side = list(first.summaries(tokens, at_once=2))
    assert len(side_by_side) == 5
    for member, found in enumerate(side_by_side):
        alone = second.finish(member, tokens)
        for mine, theirs in zip((*found[:-3], *found.contexts), (*alone[:-3], *alone.contexts), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("held", [0, 999, 10**6])
@pytest.mark.parametrize("at_once", [1, 700, 10**6])
def test_nothing_depends_on_how_much_is_held_and_how_much_is_finished_at_once(
    activity, firings, positions, norms, tokens, tmp_path, held, at_once
):
    options = {"folder": tmp_path, "held_firings": held, "finished_firings": at_once}
    found = collect(firings, positions, norms, **options).finish(0, tokens)
    assert not list(tmp_path.iterdir())
    for mine, theirs in zip((*found[:-3], *found.contexts), (*activity[:-3], *activity.contexts), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype


def test_features_without_a_direction_never_fire(firings, positions, norms, tokens):
    broken = norms.copy()
    broken[[0, 1, 2]] = 0, np.nan, np.inf
    found = collect(firings, positions, broken).finish(0, tokens)
    whole = collect(firings, positions, norms).finish(0, tokens)
    assert not found.n_active[:3].any()
    np.testing.assert_array_equal(found.n_active[3:], whole.n_active[3:])
    assert np.isfinite(found.mean_activation).all()


def test_counts_means_and_maxima_are_those_of_the_dense_matrix(activity, dense, positions):
    active = dense > 0
    assert activity.n_tokens == len(positions)
    np.testing.assert_array_equal(activity.n_active, active.sum(0))
    np.testing.assert_array_equal(activity.max_activation, dense.max(0))
    np.testing.assert_allclose(activity.mean_activation, dense.sum(0) / np.maximum(active.sum(0), 1), rtol=1e-5)
    assert activity.n_active[DEAD] == activity.mean_activation[DEAD] == activity.max_activation[DEAD] == 0


def test_histograms_count_every_firing_once_in_bins_that_span_the_member(activity, dense):
    edges = activity.histogram_edges
    assert (edges[0], edges[-1]) == pytest.approx((dense[dense > 0].min(), dense.max()))
    np.testing.assert_allclose(np.diff(np.log(edges)), np.log(edges[-1] / edges[0]) / (len(edges) - 1), rtol=1e-3)
    for feature in range(D_SAE):
        values = dense[:, feature][dense[:, feature] > 0].astype(np.float64)
        counted, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges.astype(np.float64))
        np.testing.assert_array_equal(activity.histogram[feature], counted)


def test_top_tokens_are_the_types_a_feature_fires_on_most(activity, dense, tokens):
    ids = tokens.ids.reshape(-1)
    for feature in range(D_SAE):
        counts = np.bincount(ids[dense[:, feature] > 0], minlength=9)
        wanted = sorted((token for token in range(9) if counts[token]), key=lambda token: (-counts[token], token))[:5]
        got = activity.top_token_ids[feature]
        assert got[got >= 0].tolist() == wanted
        assert activity.top_token_counts[feature][got >= 0].tolist() == counts[wanted].tolist()
        assert (activity.top_token_counts[feature][got < 0] == 0).all()


# -- contexts ----------------------------------------------------------------------------------------------------


def per_feature(activity: Activity, feature: int, top: bool) -> np.ndarray:
    c = activity.contexts
    return np.flatnonzero((c.feature == feature) & ((c.group == 0) == top))


def peak_position(activity: Activity, i: int, tokens: TokenSet) -> tuple[int, int]:
    """(window, offset) of a context's peak, from the document and the position in it."""
    c = activity.contexts
    window = int(c.document[i]) * 10 + int(c.position[i]) // (N_CTX - 1)
    return window, int(c.position[i]) % (N_CTX - 1) + 1


def test_top_contexts_are_the_strongest_windows_in_falling_order(activity, dense, tokens):
    by_window = dense.reshape(N_WINDOWS, N_CTX, D_SAE)
    for feature in range(D_SAE):
        strongest = by_window[:, :, feature].max(1)
        wanted = np.argsort(-strongest, kind="stable")[: min(N_TOP, (strongest > 0).sum())]
        got = [peak_position(activity, i, tokens) for i in per_feature(activity, feature, top=True)]
        assert [window for window, _ in got] == wanted.tolist()
        assert [offset for _, offset in got] == by_window[wanted, :, feature].argmax(1).tolist()
    assert len(per_feature(activity, 0, top=True)) == N_TOP == 20


def test_interval_contexts_are_other_windows_with_peaks_in_their_fifth(activity, dense, tokens):
    by_window = dense.reshape(N_WINDOWS, N_CTX, D_SAE)
    c, seen_groups = activity.contexts, set()
    for feature in range(D_SAE):
        top = {peak_position(activity, i, tokens)[0] for i in per_feature(activity, feature, top=True)}
        chosen = [i for i in per_feature(activity, feature, top=False) if c.group[i] <= N_INTERVALS]
        windows = [peak_position(activity, i, tokens)[0] for i in chosen]
        assert len(set(windows)) == len(windows)
        assert not top & set(windows)
        peaks, rest = by_window[:, :, feature].max(1), sorted(set(range(N_WINDOWS)) - top)
        fifth = np.ceil(N_INTERVALS * peaks / max(peaks.max(), 1e-9))
        for group in range(1, N_INTERVALS + 1):
            drawn = [w for i, w in zip(chosen, windows, strict=True) if c.group[i] == group]
            there = [w for w in rest if peaks[w] > 0 and fifth[w] == N_INTERVALS + 1 - group]
            assert set(drawn) <= set(there)
            assert len(drawn) == min(N_PER_INTERVAL, len(there))
            seen_groups |= {group} if drawn else set()
    assert len(seen_groups) >= 3


def test_a_context_shows_its_window_around_the_peak_with_the_activations_there(activity, dense, tokens):
    c = activity.contexts
    by_window = dense.reshape(N_WINDOWS, N_CTX, D_SAE)
    for i in range(len(c.feature)):
        window, offset = peak_position(activity, i, tokens)
        n_real = (tokens.ids[window] != PADDING).sum()
        shown = slice(max(offset - BEFORE, 1), min(offset + AFTER + 1, n_real))
        length = c.length[i]
        assert c.token_ids[i, :length].tolist() == tokens.ids[window, shown].tolist()
        np.testing.assert_array_equal(c.activations[i, :length], by_window[window, shown, c.feature[i]])
        assert shown.start + c.peak[i] == offset
        if c.group[i] <= N_INTERVALS:
            assert c.activations[i, c.peak[i]] == by_window[window, :, c.feature[i]].max()


def test_silent_contexts_are_different_windows_in_which_the_feature_is_never_active(activity, dense, tokens):
    by_window, c = dense.reshape(N_WINDOWS, N_CTX, D_SAE), activity.contexts
    silent = np.flatnonzero(c.group == N_INTERVALS + 1)
    assert len(silent) >= N_SILENT
    for feature in range(D_SAE):
        mine = [i for i in silent if c.feature[i] == feature]
        windows = [peak_position(activity, i, tokens)[0] for i in mine]
        assert len(set(windows)) == len(windows) <= N_SILENT
        assert not by_window[windows, :, feature].any()
        if not dense[:, feature].any():
            assert not mine


def test_padding_and_bos_are_in_no_context(activity):
    c = activity.contexts
    for i in range(len(c.feature)):
        assert not np.isin(c.token_ids[i, : c.length[i]], [PADDING, BOS]).any()


def test_contexts_are_sorted_and_ranked_within_their_group(activity):
    c = activity.contexts
    keys = list(zip(c.feature.tolist(), c.group.tolist(), c.rank.tolist(), strict=True))
    assert keys == sorted(set(keys))
    for feature, group in {key[:2] for key in keys}:
        held = np.flatnonzero((c.feature == feature) & (c.group == group))
        assert c.rank[held].tolist() == list(range(len(held)))
        assert (np.diff(c.activations[held, c.peak[held]]) <= 0).all()
