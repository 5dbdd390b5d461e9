"""The l1 that is found for an L0 reaches it, is the same when the search was stopped, and is not sought twice."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.progress import Progress
from seedscope.engine.training.calibrate import NEAR, calibrated
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.trace import Trace

ASKED = 3.0
CONFIG = TrainConfig(variant="relu", d_sae=48, n_tokens=32_768, batch=128, lr=3e-3, seeds=(4, 1, 7))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Sums of three of 60 directions each, in 16 dimensions."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(60, 16)).astype(np.float32)
    codes = rng.random((40_000, 60)).argsort(1)[:, :3]
    return (directions[codes] * rng.exponential(size=(40_000, 3, 1)).astype(np.float32)).sum(1)


class Counts(Progress):
    """Counts trainings, and dies in one of them."""

    def __init__(self, dies_in: int | None = None) -> None:
        super().__init__(quiet=True)
        self.tried, self._dies_in = 0, dies_in

    @contextmanager
    def stage(self, name: str, unit: str):
        with super().stage(name, unit) as report:
            self.tried += 1
            if self.tried == self._dies_in:
                raise KeyboardInterrupt
            yield report


def search(rows, path, progress, config=CONFIG, asked=ASKED):
    return calibrated(lambda: rows, config, asked, name="e", kept=path / "l1.json", key=f"{asked}", progress=progress)


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    return search(rows, tmp_path_factory.mktemp("found"), Counts())


def test_members_trained_with_it_reach_the_asked_l0(rows, found):
    trace = Trace(n_points=2)
    train_ensemble(rows, replace(CONFIG, l1=found.l1), trace=trace)
    last = max(trace.points, key=lambda point: point.step)
    assert np.abs(np.array(last.l0) / ASKED - 1).max() < NEAR
    other = Trace(n_points=2)
    train_ensemble(rows, CONFIG, trace=other)
    assert np.abs(np.array(other.points[-1].l0) / ASKED - 1).min() > 2 * NEAR


def test_a_stopped_search_goes_on_behind_its_last_training_and_a_finished_one_trains_nothing(rows, found, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(rows, tmp_path, Counts(dies_in=3))
    again = Counts()
    assert search(rows, tmp_path, again) == found
    assert again.tried == len(found.pilots) - 2
    over = Counts()
    assert search(rows, tmp_path, over) == found
    assert over.tried == 0


def test_whole_trainings_decide_and_all_that_were_made_are_told(found):
    assert found.pilots[-1].n_tokens == CONFIG.n_tokens
    assert min(pilot.n_tokens for pilot in found.pilots) < CONFIG.n_tokens
    assert f"l1 = {found.l1:.4g}" in found.says
    assert found.asked == ASKED


def test_what_cannot_be_reached_ends_and_is_told(rows, tmp_path):
    few = replace(CONFIG, n_tokens=2_560)
    found = search(rows, tmp_path, Counts(), few, 47.9)
    assert len(found.pilots) <= 9
    assert abs(found.pilots[-1].l0 / 47.9 - 1) > NEAR
    assert f"{found.pilots[-1].l0:.2f}" in found.says
