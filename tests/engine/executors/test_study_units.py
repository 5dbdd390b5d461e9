"""A whole study through units: in processes beside this one it comes out as in this one, to the last bit."""

from pathlib import Path

import pytest

from seedscope.engine.executors.settings import ExecutorSettings
from support.units import digests, run_with, write_study_file


@pytest.fixture(scope="module")
def file(tmp_path_factory, corpus) -> Path:
    return write_study_file(tmp_path_factory.mktemp("file"), corpus)


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory) -> dict[str, str]:
    """The digests of the study, run in this process, two members at a time."""
    root = tmp_path_factory.mktemp("alone")
    return digests(run_with(file, root, ExecutorSettings(cpus=1, members=2)), root / "copies")


@pytest.mark.slow  # the same units as on Ray, where the suite compares them
def test_processes_give_the_same_study_to_the_last_bit(file, alone, tmp_path):
    study = run_with(file, tmp_path, ExecutorSettings(workers=2, cpus=1, members=2))
    assert digests(study, tmp_path / "copies") == alone
    assert not (study / "scratch").exists()
