"""Units on a real Ray cluster of several nodes on this machine; skipped where Ray is not installed."""

import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedscope.engine.bench.executors import waiting_units
from seedscope.engine.executors.open_executor import opened
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import Unit, run_units
from support.units import digests, run_with, write_study_file

SMALLEST_STORE = 80 * 2**20  # bytes: Ray takes no less than 75 MiB
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Nodes that are killed are to be found dead within seconds.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
# Ray's driver leaves its connections to the collector of garbage.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that takes no units and two nodes of one core each, with object stores as small as Ray allows."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args=_node(0))
        made.add_node(**_node(1))
        made.add_node(**_node(1))
        yield made
        made.shutdown()


def _node(cores: int, **more: Any) -> dict[str, Any]:
    return {"num_cpus": cores, "object_store_memory": SMALLEST_STORE, "include_dashboard": False} | more


def on(cluster: Any, **more: Any) -> ExecutorSettings:
    return ExecutorSettings("ray", cpus=1, address=cluster.address, **more)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus) -> tuple[Path, dict[str, str]]:
    """A study file, and the digests of the study that this process makes of it, two members trained at a time."""
    file = write_study_file(tmp_path_factory.mktemp("file"), corpus)
    root = tmp_path_factory.mktemp("alone")
    return file, digests(run_with(file, root, ExecutorSettings(cpus=1, members=2)), root / "copies")


def test_where_no_cluster_is_one_line_says_so_within_seconds(tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ValueError, match=f"found no Ray cluster at {address}"),
        opened(ExecutorSettings("ray", address=address), tmp_path),
    ):
        pass
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(ValueError, match=f"something else than a Ray cluster answers at {address}"),
            opened(ExecutorSettings("ray", address=address), tmp_path),
        ):
            pass
    with (
        pytest.raises(ValueError, match="expected HOST:PORT"),
        opened(ExecutorSettings("ray", address="here"), tmp_path),
    ):
        pass


def test_a_study_comes_out_of_a_cluster_as_of_this_process_to_the_last_bit(cluster, alone, tmp_path):
    file, expected = alone
    study = run_with(file, tmp_path, on(cluster, members=2))
    assert digests(study, tmp_path / "copies") == expected
    assert not list(tmp_path.glob(".shared-*"))


@pytest.fixture(scope="module")
def joined(cluster) -> Iterator[Any]:
    """The cluster, joined once for the tests that follow: its workers serve all of them."""
    import ray

    ray.init(address=cluster.address, namespace="seedscope", logging_level=logging.WARNING)
    yield cluster
    ray.shutdown()


def test_units_of_a_node_that_is_killed_half_way_are_repeated_alone(joined, tmp_path):
    lost = joined.add_node(**_node(1))
    units, finished = waiting_units(tmp_path, 9, 0.7), {}

    def kill(done: int, total: int) -> None:
        finished.update({unit.result: unit.result.stat().st_mtime_ns for unit in units if unit.result.exists()})
        if done >= 3 and lost in joined.worker_nodes:
            joined.remove_node(lost, allow_graceful=False)

    with opened(on(joined), tmp_path) as executor:
        run_units(executor, units, report=kill)
    assert lost not in joined.worker_nodes
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_arrays_larger_than_the_object_store_do_not_pass_through_it(joined, tmp_path):
    rows = tmp_path / "rows"
    with open(rows, "wb") as file:
        file.truncate(2 * SMALLEST_STORE)
    units = [Unit(shutil.copyfile, (str(rows), str(tmp_path / f"{i}")), tmp_path / f"{i}") for i in (0, 1)]
    with opened(on(joined), tmp_path) as executor:
        run_units(executor, units)
    assert all(unit.result.stat().st_size == 2 * SMALLEST_STORE for unit in units)


def test_an_error_of_a_unit_is_its_own(joined, tmp_path):
    with (
        opened(on(joined), tmp_path) as executor,
        pytest.raises(FileNotFoundError, match="nowhere"),
    ):
        executor.submit(shutil.copyfile, str(tmp_path / "nowhere"), str(tmp_path / "to")).result()


def test_a_unit_that_no_node_has_room_for_is_refused(joined, tmp_path):
    with (
        pytest.raises(ValueError, match="asks for 64 CPUs, 0 GPUs"),
        opened(ExecutorSettings("ray", cpus=64, address=joined.address), tmp_path),
    ):
        pass


OTHER_CODE = {
    "seedscope/__init__.py": "",
    "seedscope/engine/__init__.py": "",
    "seedscope/engine/executors/__init__.py": "",
    "seedscope/engine/executors/probe.py": "def code_digest(): return 'another'",
}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"seedscope/__init__.py": "raise ImportError('hidden', name='seedscope')"}, "has no seedscope"),
        (OTHER_CODE, "with other code than this machine's"),
    ],
    ids=["without", "other"],
)
def test_a_node_without_this_code_is_refused(joined, tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / "path" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "path" / name).write_text(text)
    other = joined.add_node(**_node(1, env_vars={"PYTHONPATH": str(tmp_path / "path")}))
    try:
        with pytest.raises(ValueError, match=says), opened(on(joined), tmp_path / "root"):
            pass
    finally:
        joined.remove_node(other)
