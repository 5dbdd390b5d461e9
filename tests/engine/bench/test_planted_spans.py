"""Planted spans hold what they say, and the bars that the search has to reach hold at a small size."""

from dataclasses import replace

import numpy as np
import pytest

from seedscope.engine.bench import planted_spans
from seedscope.engine.bench.planted_spans import PlantedSpans, plant, recover, without_counterparts

SMALL = PlantedSpans(d=64, n_seeds=5, ranks=(4, 6, 8), n_alone=60, n_shared=30)


def test_an_ensemble_holds_what_was_planted():
    ensemble = plant(SMALL)
    assert np.bincount(ensemble.block + 2).tolist() == [30, 60, 6, 9, 12]
    for rows in ensemble.decoders:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        for block, span in enumerate(ensemble.spans):
            inside = ((rows[ensemble.block == block] @ span) ** 2).sum(1)
            assert inside.min() > 0.95
    shared = ensemble.spans[0].T @ ensemble.spans[1]
    assert np.linalg.svd(shared, compute_uv=False)[0] == pytest.approx(1, abs=1e-5)  # the direction they have in common


def test_shared_features_have_counterparts_and_most_of_the_blocks_have_none():
    ensemble = plant(SMALL)
    unstable = without_counterparts(ensemble, 0.9)
    assert not unstable[:, ensemble.block == planted_spans.SHARED].any()
    assert unstable[:, ensemble.block == planted_spans.ALONE].all()
    assert unstable[:, ensemble.block >= 0].mean() > 0.8


def test_the_bars_hold_at_a_small_size():
    recovery = recover(SMALL)
    assert recovery.rand >= planted_spans.GOAL_RAND
    assert recovery.overlap >= planted_spans.GOAL_OVERLAP
    assert recovery.n_found == recovery.n_kept == 3
    assert recovery.n_false == 0


def test_lines_say_the_figures_and_nothing_is_kept_of_noise():
    blocks, bare = planted_spans.lines(config=replace(SMALL, n_alone=40), n_null=2)
    assert "3 of 3 blocks" in blocks.figure
    assert bare.numbers["with_false"] == 0


@pytest.mark.slow
def test_a_size_is_measured_in_a_process_of_its_own():
    line = planted_spans.at_size(SMALL)
    assert line.ours_s is not None
    assert line.ours_s > 0
    assert line.work.startswith("search for shared spans, 5 x 117 x 64, 3 blocks planted")
    assert line.numbers["n_found"] == 3
    assert "peak of the process" in line.remark
