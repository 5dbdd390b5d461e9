"""What stages took, kept in a study's folder."""

import json

import pytest

from seedscope.engine.contract.stage_times import FILE, read_runs, until_published
from seedscope.engine.progress import Progress


def worked(study, *, stages=("harvest",), fails=False):
    progress = Progress(quiet=True)
    with progress.timed(study):
        for name in stages:
            with progress.stage(name, "tokens") as report:
                report(3, 7)
        if fails:
            raise RuntimeError("stopped")


def test_every_stage_is_kept_with_what_it_did(tmp_path):
    worked(tmp_path, stages=("harvest", "matching"))
    (run,) = read_runs(tmp_path / FILE)
    assert [(each.stage, each.unit, each.done) for each in run.stages] == [
        ("harvest", "tokens", 3),
        ("matching", "tokens", 3),
    ]
    assert run.has_ended
    assert run.wall_s >= sum(each.wall_s for each in run.stages) - 0.01
    assert run.peak_bytes > 2**20


def test_time_of_a_stage_inside_another_is_counted_once(tmp_path):
    progress = Progress(quiet=True)
    with progress.timed(tmp_path), progress.stage("outer", "x"), progress.stage("inner", "x"):
        sum(range(3_000_000))
    (run,) = read_runs(tmp_path / FILE)
    inner, outer = run.stages
    assert (inner.stage, outer.stage) == ("inner", "outer")
    assert outer.cpu_s < inner.cpu_s  # all of the work was done inside


def test_a_run_that_failed_is_kept_and_the_next_one_stands_behind_it(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        worked(tmp_path, fails=True)
    worked(tmp_path)
    worked(tmp_path)
    runs = read_runs(tmp_path / FILE)
    assert [run.has_ended for run in runs] == [False, True, True]
    assert until_published(runs) == runs[:2]
    assert until_published(runs[:1]) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other", "version": 1, "runs": []}'])
def test_a_file_that_is_none_holds_no_runs(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert read_runs(tmp_path / FILE) == []


def test_a_file_of_another_version_is_not_read_as_this_one(tmp_path):
    worked(tmp_path)
    written = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(written | {"version": 99}))
    assert read_runs(tmp_path / FILE) == []


def test_work_goes_on_where_times_cannot_be_kept(tmp_path):
    worked(tmp_path / "not" / "there")
