"""Units on a real SLURM cluster, started on this machine by the test: `make test-cluster` installs what it needs."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedscope.engine.bench.executors import waiting_units
from seedscope.engine.executors.open_executor import opened
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import LostUnitError, run_units
from support.slurm import is_installed, slurm_cluster
from support.units import digests, run_with, write_study_file

pytestmark = pytest.mark.cluster
ON = ExecutorSettings("slurm", cpus=1, partition="main")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    pytest.importorskip("submitit")
    if not is_installed():
        pytest.skip("SLURM is not installed: make test-cluster")
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as config:
        yield config


def queue(*options: str) -> list[str]:
    """JOB_TASK of what waits or runs."""
    return subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i", *options], capture_output=True, text=True, check=True
    ).stdout.split()


def emptied(within_s: float = 60.0) -> bool:
    """Whether nothing waits or runs after a while: a job that has written its result stays in the queue until SLURM ends it."""
    until = time.monotonic() + within_s
    while queue() and time.monotonic() < until:
        time.sleep(0.5)
    return not queue()


def test_a_study_comes_out_of_a_cluster_as_of_this_process_to_the_last_bit(cluster, corpus, tmp_path):
    file = write_study_file(tmp_path / "file", corpus, seeds=2)
    alone = run_with(file, tmp_path / "alone", ExecutorSettings(cpus=1, members=1))
    study = run_with(file, tmp_path / "root", ExecutorSettings("slurm", cpus=1, partition="main", members=1))
    assert digests(study, tmp_path / "copies") == digests(alone, tmp_path / "copies-alone")
    assert any("array=" in path.read_text() for path in (tmp_path / "root" / ".slurm-logs").glob("*submission*.sh"))
    assert emptied()


def test_a_job_that_is_requeued_runs_again_and_one_that_is_cancelled_is_submitted_again(cluster, tmp_path):
    (tmp_path / "short").mkdir()
    units, said, done_first = [*waiting_units(tmp_path / "short", 1, 0.2), *waiting_units(tmp_path, 3, 6)], [], {}
    acted: list[str] = []

    def act(done: int, total: int) -> None:
        done_first.update({unit.result: unit.result.stat().st_mtime_ns for unit in units if unit.result.exists()})
        until = time.monotonic() + 20
        while done == 1 and not acted and time.monotonic() < until:
            if len(running := queue("-t", "R")) == 2:
                acted.extend(running)
                subprocess.run(["scontrol", "requeue", running[0]], check=True)
                subprocess.run(["scancel", running[1]], check=True)

    with opened(ON, tmp_path) as executor:
        run_units(executor, units, report=act, say=said.append)
    assert len(acted) == 2
    assert ["left the queue without a result" in line for line in said] == [True]
    assert all(unit.result.read_text() == "done" for unit in units)
    assert {path: path.stat().st_mtime_ns for path in done_first} == done_first


def test_one_that_is_cancelled_is_told_of_and_one_that_is_always_cancelled_ends_the_run(cluster, tmp_path):
    with opened(ExecutorSettings("slurm", cpus=1, retries=0), tmp_path) as executor:
        (unit,) = waiting_units(tmp_path, 1, 60)
        future = executor.submit(unit.function, *unit.arguments)
        until = time.monotonic() + 60
        while not (jobs := queue()) and time.monotonic() < until:
            time.sleep(0.1)
        subprocess.run(["scancel", *jobs], check=True)
        with pytest.raises(LostUnitError, match="left the queue without a result"):
            future.result(60)


def test_what_runs_ends_with_the_command(cluster, tmp_path):
    (tmp_path / "long").mkdir()

    def stop(done: int, total: int) -> None:
        if queue():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(ON, tmp_path) as executor:
        run_units(executor, [*waiting_units(tmp_path, 3, 0), *waiting_units(tmp_path / "long", 3, 120)], report=stop)
    assert emptied()


def test_an_error_of_a_unit_is_its_own(cluster, tmp_path):
    with (
        opened(ON, tmp_path) as executor,
        pytest.raises(FileNotFoundError, match="nowhere"),
    ):
        executor.submit(shutil.copyfile, str(tmp_path / "nowhere"), str(tmp_path / "to")).result(60)


def test_a_partition_that_is_none_is_refused_before_anything_is_submitted(cluster, tmp_path):
    with (
        pytest.raises(ValueError, match="partition is 'gpu', expected one of the cluster's: main"),
        opened(ExecutorSettings("slurm", partition="gpu"), tmp_path),
    ):
        pass


def test_a_controller_that_does_not_answer_is_told_of_in_one_line(cluster, tmp_path, monkeypatch):
    other = tmp_path / "slurm.conf"
    other.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=20999", cluster.read_text()) + "MessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(other))
    with pytest.raises(ValueError, match="controller does not answer") as told, opened(ON, tmp_path):
        pass
    assert "\n" not in str(told.value)


def test_a_folder_that_nodes_do_not_share_is_told_of_before_work_begins(cluster, tmp_path, monkeypatch):
    """The node looks where this machine wrote; what is removed meanwhile is not seen there."""
    from seedscope.engine.executors import open_executor

    hidden = open_executor.expected_in

    def elsewhere(root: Path):
        expected = hidden(root)
        Path(expected.token).unlink()
        return expected

    monkeypatch.setattr(open_executor, "expected_in", elsewhere)
    with pytest.raises(ValueError, match="does not see the files"), opened(ON, tmp_path):
        pass


def test_without_slurm_one_line_says_where_to_run(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="found no sbatch on this machine"), opened(ON, tmp_path / "root"):
        pass
