"""Examples against brute force on a dense (position, feature) matrix."""

import numpy as np
import pytest

from seedscope.engine.activations.harvest import PADDING, TokenSet
from seedscope.engine.features.examples import KINDS, LENGTH, N_CONTEXTS, N_NEAR, ContextGrid

N_CTX, N_WINDOWS, BOS = 41, 160, 0
TEXTS = [
    "<bos>",
    *(f"{word}{end}" for word in ("fold", " fold", "Folds", "foliage", "xylem") for end in ("", "")),
    *"abcdefghi",
]
WORDS, DEAD, DENSE, RARE = range(5), 5, 6, 7  # features 0 to 4 fire on two types each


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    """Eight documents of twenty windows, the last of each padded; BOS also stands in the middle of some windows."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, len(TEXTS), size=(N_WINDOWS, N_CTX)).astype(np.int32)
    ids[:, 0] = BOS
    ids[3::11, 17] = BOS
    for index in range(8):
        ids[20 * index + 19, N_CTX - 5 * index :] = PADDING
    ids[39, 1:] = PADDING  # nothing but BOS
    document = np.repeat(np.arange(8), 20).astype(np.int32)
    start = (np.arange(N_WINDOWS) % 20 * (N_CTX - 1)).astype(np.int32)
    return TokenSet(ids, document, start, [f"doc{i}" for i in range(8)], BOS)


@pytest.fixture(scope="module")
def dense(tokens) -> np.ndarray:
    """(features, positions) activations."""
    rng = np.random.default_rng(1)
    flat, counted = tokens.ids.ravel(), tokens.counted.ravel()
    matrix = rng.gamma(2.0, size=(8, len(flat))).astype(np.float32) * counted
    for feature in WORDS:
        on = np.isin(flat, [2 * feature + 1, 2 * feature + 2])
        matrix[feature] *= on & (rng.random(len(flat)) < (0.7, 1.0, 0.3, 1.0, 1.0)[feature])
    matrix[DEAD] = 0
    matrix[DENSE] *= rng.random(len(flat)) < 0.15
    matrix[RARE] *= np.arange(len(flat)) == np.flatnonzero(counted)[1000]
    return matrix


def draw(tokens, dense, **options):
    feature, position = np.nonzero(dense)
    return ContextGrid(tokens, TEXTS, **options).draw(feature, position.astype(np.int32), dense[feature, position])


@pytest.fixture(scope="module")
def examples(tokens, dense):
    return draw(tokens, dense)


def every_context(tokens) -> dict[int, int]:
    """start: length of all contexts, one by one."""
    found = {}
    for window in range(N_WINDOWS):
        n_real = int((tokens.ids[window] != PADDING).sum())
        for first in range(1, n_real, LENGTH):
            found[window * N_CTX + first] = min(LENGTH, n_real - first)
    return found


def halves(tokens, examples) -> dict[int, int]:
    """{document: half} as the examples say."""
    document = tokens.document[examples.start // N_CTX]
    pairs = set(zip(document.tolist(), examples.half.tolist(), strict=True))
    assert len(pairs) == len(dict(pairs))  # no document is in both
    return dict(pairs)


def test_contexts_lie_on_the_grid_and_hold_what_the_feature_does_there(tokens, dense, examples):
    grid = every_context(tokens)
    for feature, kind, start, length, mask, peak, peak_at in zip(
        *(np.delete(np.array(examples, dtype=object), 1, 0)), strict=True
    ):
        assert grid[start] == length
        there = dense[feature, start : start + length]
        assert [bool(mask >> i & 1) for i in range(LENGTH)] == [*(there > 0), *[False] * (LENGTH - length)]
        assert (KINDS[kind] == "active") == bool(there.any())
        assert (peak, peak_at) == ((there.max(), there.argmax()) if there.any() else (0, 0))


def test_as_many_as_there_are_up_to_the_limits(tokens, dense, examples):
    half_of, grid = halves(tokens, examples), every_context(tokens)
    for feature in range(len(dense)):
        for half in (0, 1):
            starts = [s for s in grid if half_of[tokens.document[s // N_CTX]] == half]
            active = [s for s in starts if dense[feature, s : s + grid[s]].any()]
            mine = (examples.feature == feature) & (examples.half == half)
            n_silent = (mine & (examples.kind != 0)).sum()
            if feature == DEAD:
                assert not mine.any()
                continue
            assert (mine & (examples.kind == 0)).sum() == min(N_CONTEXTS, len(active))
            assert n_silent == min(N_CONTEXTS, len(starts) - len(active))
            assert len(set(examples.start[mine])) == mine.sum()


def test_near_misses_hold_its_most_frequent_types_then_types_alike(tokens, dense, examples):
    half_of, grid, ids = halves(tokens, examples), every_context(tokens), tokens.ids.ravel()
    fold = range(1, 7)
    for feature in WORDS:
        counts = np.bincount(ids[dense[feature] > 0], minlength=len(TEXTS))
        own = sorted(np.flatnonzero(counts), key=lambda t: (-counts[t], t))
        family = [t for t in fold if t not in own] if feature < 3 else []
        alike = {3: list(fold)}.get(feature, [7, 8] if feature < 3 else [])  # foliage and fold begin alike
        tiers = [[t] for t in own] + [[t for t in family]] + [alike]
        for half in (0, 1):
            silent = [
                s for s in grid
                if half_of[tokens.document[s // N_CTX]] == half and not dense[feature, s : s + grid[s]].any()
            ]  # fmt: skip
            mine = (examples.feature == feature) & (examples.half == half) & (KINDS.index("near miss") == examples.kind)
            got, left = set(examples.start[mine].tolist()), N_NEAR
            for tier in tiers:
                there = {s for s in silent if np.isin(ids[s : s + grid[s]], tier).any()}
                silent = [s for s in silent if s not in there]
                assert len(got & there) == min(left, len(there))
                left -= len(got & there)
            assert len(got) == N_NEAR - left


def test_halves_are_balanced_and_none_is_empty(tokens, examples):
    half_of = halves(tokens, examples)
    assert set(half_of) == set(range(8))
    sizes = [sum(int(tokens.counted[tokens.document == d].sum()) for d in half_of if half_of[d] == h) for h in (0, 1)]
    assert min(sizes) > 0.45 * sum(sizes)


def test_two_documents_are_one_half_each_and_a_single_one_is_cut(tokens, dense):
    for n, windows in ((2, slice(0, 40)), (1, slice(0, 20))):
        part = tokens._replace(ids=tokens.ids[windows], document=tokens.document[windows], start=tokens.start[windows])
        found = draw(part, dense[:, : part.ids.size])
        assert set(found.half) == {0, 1}
        if n == 2:
            assert len(halves(part, found)) == 2
        else:
            assert found.start[found.half == 0].max() < found.start[found.half == 1].min()


def test_a_features_examples_depend_on_nothing_but_its_own_firings_and_the_seed(tokens, dense, examples):
    alone = np.zeros_like(dense)
    alone[2] = dense[2]
    for mine, whole in zip(draw(tokens, alone), examples, strict=True):
        np.testing.assert_array_equal(mine, whole[examples.feature == 2])
        assert mine.dtype == whole.dtype
    assert not np.array_equal(draw(tokens, dense, seed=1).start, examples.start)


def test_they_are_sorted(examples):
    keys = list(zip(examples.feature.tolist(), examples.half.tolist(), examples.kind.tolist(), strict=True))
    assert keys == sorted(keys)


def test_draws_are_even(tokens, dense):
    """Over seeds, every active context of a feature with more than enough is drawn about equally often."""
    only = np.zeros_like(dense)
    only[DENSE] = dense[DENSE]
    feature, position = np.nonzero(only)
    times: dict[int, int] = {}
    for seed in range(60):
        found = ContextGrid(tokens, TEXTS, seed=seed).draw(feature, position, only[feature, position])
        for start in found.start[(found.kind == 0) & (found.half == 0)]:
            times[start] = times.get(start, 0) + 1
    counts = np.array(list(times.values()))
    expected = 60 * N_CONTEXTS / len(counts)
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()
