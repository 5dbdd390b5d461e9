"""Matching members read from their files: the same numbers however few are in memory, and never more than were allowed."""

import weakref

import numpy as np
import pytest
import torch

from seedscope.engine.matching import match
from seedscope.engine.matching.match import (
    PairMatches,
    computed_fields,
    match_ensemble,
    matched_pairs,
    members_at_once,
    null_cosines,
)
from seedscope.engine.matching.spool import spooled
from seedscope.engine.saes import sae
from seedscope.engine.saes.stored import StoredMembers
from support.studies import members_that_agree

N, D_SAE = 5, 48


class Alive:
    """Counts the tensors that were noted and not yet given back."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._gone)
        return tensor

    def _gone(self) -> None:
        self.now -= 1


@pytest.fixture
def members() -> sae.SAE:
    return members_that_agree(members=N, d_sae=D_SAE)


@pytest.fixture
def stored(members, tmp_path) -> StoredMembers:
    members.save(tmp_path / "saes")
    return StoredMembers(tmp_path / "saes", members.seeds)


@pytest.fixture
def live() -> np.ndarray:
    return np.random.default_rng(0).random((N, D_SAE)) < 0.8


def in_files(stored: StoredMembers, live: np.ndarray | None, folder, *, assign: bool, at_once: int):
    """Every member's matches, spooled."""
    computed = computed_fields(assign=assign, live=live is not None)
    with spooled(folder, N, D_SAE, computed) as spool:
        for pair in matched_pairs(stored, live, assign=assign, at_once=at_once):
            spool.add(pair)
        yield from (spool.take(member) for member in range(N))
        assert not list(folder.iterdir())
    assert not folder.exists()


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("activity", [False, True])
def test_matches_are_the_same_to_the_bit_however_few_members_are_in_memory(
    members, stored, live, tmp_path, at_once, assign, activity
):
    live = live if activity else None
    expected = match_ensemble(members, live, assign=assign)
    for index, mine in enumerate(in_files(stored, live, tmp_path / "spool", assign=assign, at_once=at_once)):
        for name, array in mine._asdict().items():
            whole = getattr(expected, name)[index]
            assert (array.dtype, array.shape) == (whole.dtype, whole.shape), name
            assert array.tobytes() == np.ascontiguousarray(whole).tobytes(), name


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_no_more_members_are_in_memory_than_were_allowed(stored, live, monkeypatch, at_once):
    alive, make = Alive(), match.dictionary

    def counted(*given, **settings):
        made = make(*given, **settings)
        alive.note(made.decoder)
        return made

    monkeypatch.setattr(match, "dictionary", counted)
    pairs = [(pair.first, pair.second) for pair in matched_pairs(stored, live, assign=False, at_once=at_once)]
    assert sorted(pairs) == [(i, j) for i in range(N) for j in range(i + 1, N)]
    assert (alive.most, alive.now) == (at_once, 0)


def test_files_are_read_one_member_at_a_time(stored, monkeypatch):
    alive, read = Alive(), StoredMembers.decoder_rows
    monkeypatch.setattr(StoredMembers, "decoder_rows", lambda *given: alive.note(read(*given)))
    for _ in matched_pairs(stored, None, assign=False, at_once=2):
        assert alive.now == 0  # what is kept are unit rows
    null_cosines(stored, "haar")
    assert alive.most <= 2  # the next is read before the last is let go


@pytest.mark.parametrize("kind", match.NULL_KINDS)
def test_nulls_are_the_same_from_files(members, stored, kind):
    one, other = null_cosines(members, kind, n_anchors=20), null_cosines(stored, kind, n_anchors=20)
    assert one.cosine.tobytes() == other.cosine.tobytes()
    np.testing.assert_array_equal(one.feature, other.feature)


def test_a_quarter_of_what_is_free_is_filled_with_members(stored, monkeypatch):
    size = 4 * D_SAE * (stored.d_in + stored.d_out)
    for free, at_once in ((0, 2), (4 * 3 * size, 3), (4 * 4 * size - 1, 3)):
        monkeypatch.setattr(match, "free_memory", lambda device, free=free: free)
        assert members_at_once(stored, "cpu") == at_once


def test_a_pair_without_any_direction_is_written_as_no_match(tmp_path):
    nothing = members_that_agree(members=3, d_sae=D_SAE, undirected=D_SAE)  # of the first member
    nothing.save(tmp_path / "saes")
    stored = StoredMembers(tmp_path / "saes", nothing.seeds)
    expected = match_ensemble(nothing, None, assign=True)
    with spooled(tmp_path / "spool", 3, D_SAE, computed_fields(assign=True, live=False)) as spool:
        for pair in matched_pairs(stored, None, assign=True):
            spool.add(pair)
        for index in range(3):
            mine = spool.take(index)
            for name in PairMatches._fields:
                np.testing.assert_array_equal(getattr(mine, name), getattr(expected, name)[index])


def test_what_an_interrupted_run_left_is_removed(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "member-7").write_bytes(b"x")
    with spooled(folder, N, D_SAE, ["partner"]):
        assert len(list(folder.iterdir())) == N
        assert not (folder / "member-7").exists()
    assert not folder.exists()


def test_stored_members_are_those_in_memory(members, stored):
    sizes = ("n_members", "d_sae", "d_in", "d_out", "convention", "seeds")
    assert [getattr(stored, name) for name in sizes] == [getattr(members, name) for name in sizes]
    for index in range(N):
        for rows in ("decoder_rows", "encoder_rows"):
            of_file, of_memory = getattr(stored, rows)(index), getattr(members, rows)(index)
            assert torch.equal(of_file, of_memory)
            assert of_file.stride() == of_memory.stride()


def test_members_of_different_sizes_are_refused(members, tmp_path):
    members.save(tmp_path)
    members_that_agree(members=1, d_sae=24, shared=8).save(tmp_path)
    with pytest.raises(ValueError, match=r"\(16, 24, 16\), \(16, 48, 16\)"):
        StoredMembers(tmp_path, members.seeds)
    with pytest.raises(FileNotFoundError):
        StoredMembers(tmp_path, (0, 77))
