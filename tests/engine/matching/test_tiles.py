"""Tiles hold every pair once, and what is put together from their files is what one process finds."""

from itertools import combinations

import numpy as np
import pytest

from seedscope.engine.matching.match import PairMatches, computed_fields, match_ensemble
from seedscope.engine.matching.tiles import MatchTask, TiledMatches, match_tile, tiles
from support.studies import members_that_agree


@pytest.mark.parametrize("n_members", [2, 3, 8, 9, 17, 96])
def test_tiles_hold_every_pair_once(n_members):
    pairs = [
        (i, j) for tile in tiles(n_members) for i in range(*tile.anchors) for j in range(*tile.comparisons) if i < j
    ]
    assert sorted(pairs) == list(combinations(range(n_members), 2))
    assert sum(tile.n_pairs for tile in tiles(n_members)) == len(pairs)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_matches_in_tiles_are_those_of_one_process(tmp_path, assign, n_blocks, monkeypatch):
    members = members_that_agree(members=5, d_sae=48)
    members.save(tmp_path / "saes")
    live = np.random.default_rng(0).random((5, 48)) < 0.8
    np.save(tmp_path / "live.npy", live)
    monkeypatch.setattr("seedscope.engine.matching.tiles.tiles", lambda n, made=tiles(5, n_blocks): made)
    task = MatchTask(str(tmp_path / "saes"), members.seeds, str(tmp_path / "live.npy"), assign, "cpu")
    for tile in tiles(5, n_blocks):
        match_tile(task, tile, str(tile.path(tmp_path)))
    tiled = TiledMatches(tmp_path, 5, 48, computed_fields(assign=assign, live=True))
    expected = match_ensemble(members, live, assign=assign)
    for member in range(5):
        found = tiled.take(member)
        for name in (*PairMatches._fields, "gap", "other"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)[member]), name
