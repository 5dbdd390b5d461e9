"""Fates of features in dictionaries that were changed in known ways."""

import numpy as np
import pytest
import torch

from seedscope.engine.matching.fates import FATES, ORIGINS, Fates, Towards, fates_of
from support.golden import unit_rows

N, D_IN = 200, 256
THETA = 0.7


def drawn(n: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, D_IN)))


def at_cosine(rows: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    """Rows with exactly this cosine to the given ones."""
    away = np.random.default_rng(seed).standard_normal(rows.shape)
    away = unit_rows(away - (away * rows).sum(1, keepdims=True) * rows)
    return cosine * rows + (1 - cosine**2) ** 0.5 * away


def judged(old: np.ndarray, new: np.ndarray, theta: float = THETA) -> Fates:
    cosines = np.round(old @ new.T, 12)  # copies tie, however the product's kernel treats the last columns
    to_new, to_old = (Towards(c.max(1).astype(np.float32), c.argmax(1)) for c in (cosines, cosines.T))
    rows = (torch.from_numpy(each).float() for each in (old, new))
    found = fates_of(*rows, to_new, to_new, to_old, theta=theta)
    assert set(found.fate) <= set(FATES)
    assert set(found.origin) <= set(ORIGINS)
    assert set(found.parts) == set(np.flatnonzero(found.fate == "split"))
    return found


@pytest.fixture
def old() -> np.ndarray:
    return drawn(N, 0)


def test_the_same_dictionary_in_any_order_survives_whole(old):
    order = np.random.default_rng(1).permutation(N)
    for new in (old, old[order], at_cosine(old, 0.96, 2)[order]):
        found = judged(old, new)
        assert (found.fate == "survived").all()
        assert (found.origin == "kept").all()
        assert found.parts == found.joined == {}


def test_copies_of_one_direction_survive_as_they_are(old):
    twice = np.concatenate([old, old[:5]])
    found = judged(twice, twice)
    assert (found.fate == "survived").all()
    assert found.origin.tolist() == N * ["kept"] + 5 * ["beside"]


@pytest.mark.parametrize(("cosine", "fate"), [(0.951, "survived"), (0.949, "moved"), (0.701, "moved"), (0.699, "lost")])
def test_a_row_that_turns_moves_until_it_is_lost(old, cosine, fate):
    found = judged(old, np.concatenate([at_cosine(old[:50], cosine, 3), old[50:]]))
    assert (found.fate[:50] == fate).all()
    assert (found.fate[50:] == "survived").all()
    assert (found.origin[:50] == ("new" if fate == "lost" else "kept")).all()


def test_deleted_rows_are_lost_and_added_ones_new(old):
    found = judged(old, np.concatenate([old[10:], drawn(7, 4)]))
    assert found.fate.tolist() == 10 * ["lost"] + (N - 10) * ["survived"]
    assert found.origin.tolist() == (N - 10) * ["kept"] + 7 * ["new"]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_sums_of_old_rows_are_merges(old, noise):
    """Cosine .707 with both without noise; below theta with it, so that only the plane of the two reaches the sum."""
    pairs = np.concatenate([old[0:10:2], old[1:10:2]]).reshape(2, 5, D_IN)
    sums = at_cosine(unit_rows(pairs.sum(0)), 1 - noise, 5)
    found = judged(old, np.concatenate([sums, old[10:]]))
    assert found.fate.tolist() == 10 * ["merged"] + (N - 10) * ["survived"]
    assert found.origin.tolist() == 5 * ["merged"] + (N - 10) * ["kept"]
    assert {new: sorted(rows) for new, rows in found.joined.items()} == {i: [2 * i, 2 * i + 1] for i in range(5)}


@pytest.mark.parametrize("n_parts", [2, 3, 4])
@pytest.mark.parametrize("cosine", [None, 0.75])
def test_rows_that_new_ones_share_between_them_split(old, n_parts, cosine):
    """Orthogonal parts whose sum is the old row, or several new rows near it."""
    rest = old[5:]
    if cosine is None:
        basis = np.linalg.qr(np.random.default_rng(6).standard_normal((D_IN, D_IN)))[0].T
        parts = basis[: 5 * n_parts].reshape(n_parts, 5, D_IN)
        old = np.concatenate([unit_rows(parts.sum(0)), rest])
    else:
        parts = np.stack([at_cosine(old[:5], cosine, 7 + i) for i in range(n_parts)])
    found = judged(old, np.concatenate([*parts, rest]))
    assert found.fate.tolist() == 5 * ["split"] + (N - 5) * ["survived"]
    assert found.origin.tolist() == 5 * n_parts * ["split"] + (N - 5) * ["kept"]
    assert {row: sorted(new) for row, new in found.parts.items()} == {
        i: [i + 5 * part for part in range(n_parts)] for i in range(5)
    }


def test_five_equal_parts_are_too_small_to_count(old):
    basis = np.linalg.qr(np.random.default_rng(6).standard_normal((D_IN, D_IN)))[0].T
    found = judged(
        np.concatenate([unit_rows(basis[:5].sum(0, keepdims=True)), old[1:]]), np.concatenate([basis[:5], old[1:]])
    )
    assert found.fate[0] == "lost"
    assert (found.origin[:5] == "new").all()


def test_a_near_copy_beside_a_row_that_survived_is_no_split(old):
    found = judged(old, np.concatenate([old, at_cosine(old[:3], 0.9, 8)]))
    assert (found.fate == "survived").all()
    assert found.origin.tolist() == N * ["kept"] + 3 * ["beside"]


def test_a_row_that_has_its_place_in_anothers_is_merged(old):
    near = at_cosine(old[:1], 0.8, 9)
    found = judged(np.concatenate([old, near]), old)
    assert found.fate.tolist() == N * ["survived"] + ["merged"]
    assert found.joined == {0: [0, N]}


def test_a_rule_that_forms_no_pair_loses_what_nothing_shares(old):
    to_new = Towards(np.ones(N, np.float32), np.arange(N))
    none = Towards(np.full(N, -1, np.float32), np.full(N, -1))
    rows = torch.from_numpy(old).float()
    found = fates_of(rows, rows, none, to_new, to_new, theta=THETA)
    assert (found.fate == "lost").all()
    assert (found.origin == "beside").all()


@pytest.mark.parametrize("theta", [-0.1, 0.96])
def test_a_theta_at_which_fates_overlap_is_refused(old, theta):
    with pytest.raises(ValueError, match=f"theta is {theta}, expected 0 to 0.95"):
        judged(old, old, theta)


def written_out(old: np.ndarray, new: np.ndarray, theta: float, same: float = 0.95) -> tuple[list[str], list[str]]:
    """The definitions once more, one row at a time, in plain Python; rule argmax."""
    cosines = np.round(old @ new.T, 12)  # copies tie, however the product's kernel treats the last columns
    to_new, to_old = cosines.argmax(1), cosines.argmax(0)
    reach_new, reach_old = cosines.max(1) >= theta, cosines.max(0) >= theta

    def write(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> bool:
        plane = np.linalg.qr(np.stack([y, z], 1))[0]
        return bool(np.linalg.norm(plane.T @ x) >= theta)

    def writers(row: int, matrix: np.ndarray, nearest: np.ndarray, rows: np.ndarray, others: np.ndarray) -> list[int]:
        """Rows of the other side whose nearest is `row`, if two of them write it though none reaches it."""
        near = [j for j in range(len(others)) if nearest[j] == row and matrix[row, j] >= theta / 2**0.5]
        near.sort(key=lambda j: -matrix[row, j])
        alone = matrix[row].max() < theta
        return near if alone and len(near) > 1 and write(rows[row], others[near[0]], others[near[1]]) else []

    gone_to = [[j for j in range(len(new)) if to_old[j] == i and reach_old[j]] for i in range(len(old))]
    came_from = [[i for i in range(len(old)) if to_new[i] == j and reach_new[i]] for j in range(len(new))]
    parts = [gone_to[i] if len(gone_to[i]) > 1 else writers(i, cosines, to_old, old, new) for i in range(len(old))]
    sources = [
        came_from[j] if len(came_from[j]) > 1 else writers(j, cosines.T, to_new, new, old) for j in range(len(new))
    ]
    fates = []
    for i in range(len(old)):
        if cosines[i].max() >= same:
            fates.append("survived")
        elif parts[i]:
            fates.append("split")
        elif any(i in each for each in sources):
            fates.append("merged")
        else:
            fates.append("moved" if reach_new[i] else "lost")
    origins = []
    for j in range(len(new)):
        if any(to_new[i] == j and fates[i] in ("survived", "moved") for i in range(len(old))):
            origins.append("kept")
        elif any(j in parts[i] and fates[i] == "split" for i in range(len(old))):
            origins.append("split")
        elif any(fates[i] == "merged" for i in sources[j]):
            origins.append("merged")
        else:
            origins.append("beside" if reach_old[j] else "new")
    return fates, origins


def test_crowded_dictionaries_get_the_fates_that_the_definitions_give():
    """In five dimensions every fate and origin is common."""
    seen: set[str] = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        old, new = (unit_rows(rng.standard_normal((int(rng.integers(3, 14)), 5))) for _ in range(2))
        new[:2] = unit_rows(old[:2] + 0.3 * rng.random() * rng.standard_normal((2, 5)))
        theta = float(rng.uniform(0.5, 0.9))
        found = judged(old, new, theta)
        fates, origins = written_out(old, new, theta)
        assert found.fate.tolist() == fates
        assert found.origin.tolist() == origins
        seen |= {*fates, *(f"{each} row" for each in origins)}
    assert seen == {*FATES, *(f"{each} row" for each in ORIGINS)}
