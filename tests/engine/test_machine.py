"""Working arrays: in memory while they are small, else in a file that leaves nothing behind."""

import numpy as np
import pytest

from seedscope.engine import machine


@pytest.mark.parametrize("share", [1, 0])
def test_a_working_array_is_zeros_that_can_be_written(tmp_path, monkeypatch, share):
    monkeypatch.setattr(machine, "WORKING_SHARE", share)
    array = machine.working_array((300, 7), np.float32, tmp_path / "scratch")
    assert isinstance(array, np.memmap) == (share == 0)
    assert array.shape == (300, 7)
    assert array.dtype == np.float32
    assert not array.any()
    array[:, 3] = np.arange(300)
    assert array.sum() == 300 * 299 / 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_a_folder_and_of_no_numbers_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "WORKING_SHARE", 0)
    assert not isinstance(machine.working_array((3, 4), float, None), np.memmap)
    assert machine.working_array((0, 4), float, tmp_path).shape == (0, 4)
