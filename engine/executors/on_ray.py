"""The executor of a Ray cluster: Ray schedules, retries and places; only paths and plain values pass through its object store."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seedscope.engine.executors.probe import Expected, asking, called_on_node, problem
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.executors.unit import Call, LostUnitError

CONNECT_S, PROBE_S = 3.0, 60.0
GIGABYTE = 10**9
SETTINGS_FRAME = 4
START = 'start one with `ray start --head`, and name it with address = "HOST:PORT" or $RAY_ADDRESS'


class RayExecutor:
    """Calls as tasks of a cluster; raises ValueError, in one line, where there is none that can take them.

    Lost tasks are begun again by Ray, `retries` times; `local` as address starts a cluster here, with the cores of this machine.
    """

    is_here, retries = False, 0

    def __init__(self, settings: ExecutorSettings, threads: int, expected: Expected) -> None:
        self.threads, self.members = threads, settings.members
        self.device: str | None = "cuda" if settings.gpus else "cpu"
        self._expected, self._running = expected, set[Any]()
        self._owns = not ray.is_initialized()
        if self._owns:
            _connect(settings.address or os.environ.get("RAY_ADDRESS") or "auto")
        memory = {"memory": int(settings.memory * GIGABYTE)} if settings.memory else {}
        self._task = ray.remote(called_on_node).options(
            num_cpus=threads, num_gpus=settings.gpus, max_retries=settings.retries, name="seedscope unit", **memory
        )
        try:
            _require_room(threads, settings.gpus, memory.get("memory", 0))
            _require_fit_nodes(expected)
        except BaseException:
            self.shutdown(cancel=True)
            raise

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        return [self.submit(function, *arguments) for function, arguments in calls]

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        reference = self._task.remote(self._expected, self.threads, function, arguments)
        self._running.add(reference)
        future: Future[Any] = Future()

        def hand_on(ended: Future[Any]) -> None:
            self._running.discard(reference)
            if not future.set_running_or_notify_cancel():
                return
            error = ended.exception()
            if error is None:
                future.set_result(ended.result())
            else:
                future.set_exception(_plain(error))

        reference.future().add_done_callback(hand_on)
        return future

    def shutdown(self, *, cancel: bool = False) -> None:
        if cancel and ray.is_initialized():
            for reference in list(self._running):
                ray.cancel(reference, force=True)
        if self._owns:
            ray.shutdown()


def _plain(error: BaseException) -> BaseException:
    """What a unit itself raised, as it raised it; all else that Ray tells of is a lost unit."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, Exception) else RuntimeError(_line(error))
    return LostUnitError(_line(error)) if isinstance(error, RayError) else error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _connect(address: str) -> None:
    """Join a cluster, or raise ValueError; where nobody listens that is told at once, and not after Ray's own minute."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address not in ("auto", "local"):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"address of the Ray cluster is {address!r}, expected HOST:PORT, auto or local")
        try:
            if not _speaks_http2(host, int(port)):
                raise ValueError(f"something else than a Ray cluster answers at {address}; {START}")
        except OSError as error:
            raise ValueError(f"found no Ray cluster at {address} ({error.strerror or error}); {START}") from None
    here: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.WARNING, namespace="seedscope", **here)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"found no Ray cluster at {address} ({_line(error)}); {START}") from None


def _speaks_http2(host: str, port: int) -> bool:
    """Whether what listens there greets as gRPC servers do (RFC 9113, 3.4): with a frame of settings."""
    with socket.create_connection((host, port), CONNECT_S) as connection:
        connection.settimeout(CONNECT_S)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS_FRAME, 0, 0, 0, 0, 0]))
        try:
            greeting = connection.recv(9)
        except TimeoutError:
            return False
    return len(greeting) == 9 and greeting[3] == SETTINGS_FRAME


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _require_room(cpus: int, gpus: int, memory: int) -> None:
    """Raise ValueError where no node could ever take a unit: Ray would wait for one."""
    nodes = _alive()
    wanted = {"CPU": cpus, "GPU": gpus, "memory": memory}
    if any(all(node["Resources"].get(name, 0) >= n for name, n in wanted.items()) for node in nodes):
        return
    has = "; ".join(
        f"{each['Resources'].get('CPU', 0):g} CPUs, {each['Resources'].get('GPU', 0):g} GPUs, "
        f"{each['Resources'].get('memory', 0) / GIGABYTE:.1f} GB"
        for each in nodes
    )
    raise ValueError(
        f"a unit asks for {cpus} CPUs, {gpus} GPUs and {memory / GIGABYTE:.1f} GB, no node of the Ray cluster has that "
        f"({has or 'it has no nodes'}); lower cpus, gpus or memory of the executor"
    )


def _require_fit_nodes(expected: Expected) -> None:
    """Ask every node what it has; raises ValueError for the first that cannot take units."""
    ask = ray.remote(asking())
    for node in _alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            found = ray.get(
                ask.options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote(expected.token),
                timeout=PROBE_S,
            )
        except RayError as error:
            if node["NodeID"] not in [each["NodeID"] for each in _alive()]:
                continue  # it had died before, which Ray has noticed since: no unit goes there
            raise ValueError(f"node {node['NodeManagerHostname']} answers no probe ({_line(error)})") from None
        if reason := problem(found, expected):
            raise ValueError(reason)
