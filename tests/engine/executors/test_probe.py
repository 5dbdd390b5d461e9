"""What makes a node unfit for units, in one line each."""

from pathlib import Path

import pytest

from seedscope.engine.executors.probe import asking, called_on_node, code_digest, expected_in, problem
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.studies.studyfile.executor import executor_named


def test_this_machine_is_fit_for_its_own_units(tmp_path):
    expected = expected_in(tmp_path)
    found = asking()(expected.token)
    assert found["code"] == code_digest()
    assert problem(found, expected) is None
    assert called_on_node(expected, 1, Path.exists, (tmp_path,)) is True


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ({"version": None}, "node here has no seedscope for python, expected version 1.0"),
        ({"version": "0.9"}, "node here has seedscope 0.9, expected 1.0"),
        ({"code": "abc"}, "with other code than this machine's (digest abc, expected cde)"),
        ({"sees": False}, "does not see the files that this machine writes under /root, expected a folder that all"),
    ],
)
def test_a_node_that_lacks_something_is_told_of_in_one_line(tmp_path, has, says):
    expected = expected_in(tmp_path)._replace(version="1.0", code="cde", token="/root/.shared-0")
    found = {"host": "here", "python": "python", "version": "1.0", "code": "cde", "sees": True} | has
    told = problem(found, expected)
    assert told is not None
    assert says in told
    assert "\n" not in told


def test_a_unit_looks_at_its_node_before_it_begins(tmp_path):
    expected = expected_in(tmp_path)
    Path(expected.token).unlink()
    with pytest.raises(ValueError, match="does not see the files"):
        called_on_node(expected, 1, Path.exists, (tmp_path,))


def test_a_command_line_names_an_executor_in_the_place_of_a_files():
    file = ExecutorSettings("ray", address="h:1", cpus=2)
    assert executor_named(None, [], file) == file
    assert executor_named("ray", ["address=other:2"], file) == ExecutorSettings("ray", address="other:2", cpus=2)
    assert executor_named("slurm", ["partition=gpu", "memory=1.5"], file) == ExecutorSettings(
        "slurm", partition="gpu", memory=1.5
    )
    assert executor_named(None, ["workers=3"]) == ExecutorSettings(workers=3)


@pytest.mark.parametrize(
    ("kind", "option", "says"),
    [
        ("ray", "gpus", "expected KEY=VALUE"),
        ("ray", "gpus=many", 'gpus = "many", expected a whole number of at least 0'),
        ("ray", "partition=a", 'partition is a setting of slurm, and kind = "ray"'),
        ("slurm", "nodes=3", "nodes is not known here"),
    ],
)
def test_a_setting_that_is_none_is_refused(kind, option, says):
    with pytest.raises(ValueError, match="--executor-option") as told:
        executor_named(kind, [option])
    assert says in str(told.value)
