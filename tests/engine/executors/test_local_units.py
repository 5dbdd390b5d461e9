"""Units in this process and in others: run once, repeated when lost, ended with whoever asked."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from seedscope.engine.bench.executors import wait_and_write, waiting_units
from seedscope.engine.executors.local import LocalProcesses, ThisProcess
from seedscope.engine.executors.open_executor import opened
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import LostUnitError, Unit, run_units


class Counted(ThisProcess):
    """This process, which counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def submit(self, function, /, *arguments) -> Future:
        self.calls += 1
        return super().submit(function, *arguments)


def test_what_is_finished_is_not_repeated(tmp_path):
    units = waiting_units(tmp_path, 4, 0)
    units[2].result.write_text("from before")
    told, executor = [], Counted()
    run_units(executor, units, report=lambda *at: told.append(at))
    assert executor.calls == 3
    assert units[2].result.read_text() == "from before"
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    run_units(executor, units)
    assert executor.calls == 3


def test_processes_run_units_beside_this_one_and_a_killed_one_loses_its_unit_alone(tmp_path):
    said = []
    with opened(ExecutorSettings(workers=2, cpus=1), tmp_path) as executor:
        units = waiting_units(tmp_path, 6, 0.5)
        killed = False

        def kill_one(done: int, total: int) -> None:
            nonlocal killed
            if done and not killed:
                killed = True
                os.kill(next(iter(executor._pool._processes)), signal.SIGKILL)

        run_units(executor, units, report=kill_one, say=said.append)
    assert killed
    assert all(unit.result.read_text() == "done" for unit in units)
    assert any("begun again" in line for line in said)


def test_an_error_of_a_unit_is_raised_as_it_was(tmp_path):
    missing = tmp_path / "missing" / "unit"
    with (
        pytest.raises(FileNotFoundError, match="missing"),
        opened(ExecutorSettings(workers=2, cpus=1), tmp_path) as executor,
    ):
        run_units(executor, [Unit(wait_and_write, (0, str(missing)), missing)])


def test_a_unit_that_is_lost_again_and_again_ends_the_run(tmp_path):
    with opened(ExecutorSettings(workers=2, cpus=1, retries=1), tmp_path) as executor:
        lost = Unit(os.abort, (), tmp_path / "never")
        with pytest.raises(LostUnitError, match="lost 2 times"):
            run_units(executor, [lost])


def test_a_result_that_is_not_to_be_seen_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("seedscope.engine.executors.unit.SEEN_WITHIN_S", 0.3)
    elsewhere = Unit(wait_and_write, (0, str(tmp_path / "there")), tmp_path / "here")
    with pytest.raises(FileNotFoundError, match="all nodes share"):
        run_units(ThisProcess(), [elsewhere])


def test_workers_end_with_their_parent(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from seedscope.engine.bench.executors import waiting_units
from seedscope.engine.executors.local import LocalProcesses
from seedscope.engine.executors.unit import run_units
if __name__ == "__main__":
    pool = LocalProcesses(1, 1)
    futures = pool.submit_all([(unit.function, unit.arguments) for unit in waiting_units(Path({str(tmp_path)!r}), 2, 30)])
    print(next(iter(pool._pool._processes)), flush=True)
    os._exit(1)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    worker = int(subprocess.run([sys.executable, script], capture_output=True, text=True, check=False).stdout)
    until = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "dask"}, "expected one of local, ray, slurm"),
        ({"kind": "ray", "partition": "gpu"}, "executor ray has no setting partition"),
        ({"kind": "slurm", "address": "h:1"}, "executor slurm has no setting address"),
        ({"gpus": 1}, "executor local has no setting gpus"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ExecutorSettings(**settings)


def test_nothing_loads_an_engine_that_was_not_chosen():
    code = (
        "import seedscope.engine.executors.open_executor, sys; print({'ray', 'submitit', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_more_processes_than_one_are_asked_for_by_name(tmp_path):
    with opened(ExecutorSettings(), tmp_path) as executor:
        assert executor.is_here
    with opened(ExecutorSettings(workers=2), tmp_path) as executor:
        assert isinstance(executor, LocalProcesses)
