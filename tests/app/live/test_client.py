"""The client of the live engine: starting, dying, refusing, and one real engine over the small study."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from scipy.optimize import linear_sum_assignment

from seedscope.app.live import process as engine_process
from seedscope.app.live.client import EngineRefusedError, LiveEngine
from seedscope.app.live.process import EngineBrokenError, EngineProcess, EngineStartingError
from seedscope.engine.contract.queries import QUEUE_LIMIT, LiveAnswer, LiveQuery, as_fields
from seedscope.engine.contract.recipe import StudyConfig
from seedscope.engine.saes.sae import SAE
from support.golden import unit_rows
from support.studies import ENSEMBLE, STUDY

# An engine that computes nothing and is up at once: dies of feature 13, waits for a file at 100 and above, else echoes the
# feature. Asked for 6 neighbours it does the one after the other; from 200 on it looks whether anybody still waits.
STUB = """
import os, sys, time, types
from seedscope.engine.contract.abandon import stop_if_abandoned
from seedscope.engine.contract.queries import LiveAnswer

class Residents:
    def __init__(self, root, device): self.gate = root / "gate"
    def version(self, query): return ""
    def status(self): return {}
    def answer(self, queries):
        while (queries[0].feature >= 100 or queries[0].k == 6) and not self.gate.exists():
            time.sleep(0.01)
            queries[0].feature < 200 or stop_if_abandoned()
        if any(query.feature == 13 for query in queries): os._exit(9)
        return [LiveAnswer(gap=float(query.feature)) for query in queries]

sys.modules["seedscope.engine.live.residents"] = types.SimpleNamespace(Residents=Residents)
from seedscope.engine.live.server import main
main()
"""
ECHO = LiveQuery("neighbours", "study")


class StubProcess(EngineProcess):
    """The stub as the engine."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", STUB, *super()._command()[5:]]


class ThreadedEngine:
    """The client in the event loop of the portal, asked from other threads."""

    portal: BlockingPortal

    def __init__(self, process: EngineProcess) -> None:
        self.process, self.engine = process, LiveEngine(process)

    @property
    def log(self) -> Path:
        return self.engine.process.log

    def ask(self, query: LiveQuery, **limits: float) -> LiveAnswer:
        return self.portal.call(partial(self.engine.ask, query, **limits))

    def answer(self, query: LiveQuery, **limits: float) -> LiveAnswer:
        return self.portal.call(partial(self.engine.answer, query, **limits))

    def asking(self, query: LiveQuery, **limits: float) -> Future[LiveAnswer]:
        """A question under way; cancelled, whoever asked is gone."""
        return self.portal.start_task_soon(partial(self.engine.ask, query, **limits))

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module", autouse=True)
def portal() -> Iterator[None]:
    with start_blocking_portal() as portal:
        ThreadedEngine.portal = portal
        yield


def StubEngine(root: Path) -> ThreadedEngine:  # noqa: N802
    return ThreadedEngine(StubProcess(root))


@pytest.fixture
def short_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of its own, beside pytest's, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def stub(short_tmp: Path, tmp_path: Path) -> Iterator[ThreadedEngine]:
    engine = StubEngine(tmp_path)
    yield engine
    engine.close()


def patiently(ask: Callable[[], LiveAnswer]) -> LiveAnswer:
    """Ask again while the engine starts, as a page does."""
    until = time.monotonic() + 30
    while True:
        try:
            return ask()
        except EngineStartingError:
            assert time.monotonic() < until
            time.sleep(0.02)


def status_of(engine: ThreadedEngine) -> dict:
    return patiently(lambda: engine.ask(LiveQuery("status"))).status


def pid_of(engine: ThreadedEngine) -> int:
    return status_of(engine)["pid"]


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_first_question_starts_the_engine_and_does_not_wait(stub: ThreadedEngine):
    with pytest.raises(EngineStartingError, match="is starting") as caught:
        stub.ask(ECHO)
    assert not caught.value.restarting
    assert patiently(lambda: stub.ask(replace(ECHO, feature=7))).gap == 7


def test_only_its_owner_can_open_the_socket(stub: ThreadedEngine, short_tmp: Path):
    pid_of(stub)
    (folder,) = short_tmp.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {".sock": 0o600, ".lock": 0o600, ".log": 0o600, ".deaths": 0o600}


def test_a_folder_that_others_can_open_is_not_used(stub: ThreadedEngine, short_tmp: Path):
    folder = short_tmp / f"seedscope-{os.getuid()}"
    folder.mkdir(mode=0o755)
    with pytest.raises(EngineBrokenError, match="only you can open"):
        stub.ask(ECHO)
    folder.rmdir()
    (short_tmp / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(short_tmp / "elsewhere")
    with pytest.raises(EngineBrokenError, match="only you can open"):
        stub.ask(ECHO)


def test_a_folder_of_somebody_else_is_not_used(stub: ThreadedEngine, monkeypatch: pytest.MonkeyPatch):
    pid_of(stub)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(EngineBrokenError, match="you own"):
        stub.ask(ECHO)


def test_a_long_temporary_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + 90 * "x")
    assert str(EngineProcess(tmp_path).log).startswith("/tmp/seedscope-")


def test_a_killed_engine_is_started_again(stub: ThreadedEngine):
    first = pid_of(stub)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not running(first))
    with pytest.raises(EngineStartingError, match="restarting") as caught:
        stub.ask(ECHO)
    assert caught.value.restarting
    assert patiently(lambda: stub.ask(ECHO)).gap == 0
    assert pid_of(stub) != first


def test_a_query_that_the_engine_died_of_twice_is_refused(stub: ThreadedEngine):
    deadly = replace(ECHO, feature=13)
    first = pid_of(stub)
    answer = patiently(lambda: stub.ask(deadly))
    assert answer.cause == "deadly"
    assert "died of this query 2 times" in answer.error
    assert patiently(lambda: stub.ask(ECHO)).gap == 0
    with pytest.raises(EngineRefusedError, match="2 times") as caught:
        stub.answer(deadly)
    assert caught.value.cause == "deadly"
    assert pid_of(stub) != first


def test_a_query_that_kills_after_its_asker_has_left_is_refused_too(stub: ThreadedEngine, tmp_path: Path):
    deadly = replace(ECHO, feature=13, k=6)
    for _ in range(2):
        pid = pid_of(stub)
        with socket.socket(socket.AF_UNIX) as leaving:
            leaving.connect(str(stub.log.with_suffix(".sock")))
            leaving.sendall(json.dumps({"query": as_fields(deadly), "time_limit_s": 20}).encode() + b"\n")
            wait_for(lambda: status_of(stub)["running"] == 1)
        wait_for(lambda: status_of(stub)["askers"] == 0)
        (tmp_path / "gate").touch()
        wait_for(lambda pid=pid: not running(pid))
        (tmp_path / "gate").unlink()
        with pytest.raises(EngineStartingError):
            stub.ask(ECHO)
    assert patiently(lambda: stub.ask(deadly)).cause == "deadly"
    assert patiently(lambda: stub.ask(ECHO)).gap == 0


def test_a_restarted_server_tries_a_deadly_query_again(stub: ThreadedEngine, tmp_path: Path):
    deadly = replace(ECHO, feature=13)
    assert patiently(lambda: stub.ask(deadly)).cause == "deadly"
    stub.close()
    other = StubEngine(tmp_path)
    pid = pid_of(other)
    with pytest.raises(EngineStartingError):
        other.ask(deadly)
    assert pid_of(other) != pid
    other.close()


def test_the_neighbours_of_a_deadly_query_are_not_blamed(stub: ThreadedEngine, tmp_path: Path):
    pid_of(stub)
    with ThreadPoolExecutor(8) as pool:
        features = [100, 13, 1, 2, 3]  # the first keeps the engine busy while the others gather
        asked = []
        for feature in features:
            asked.append(pool.submit(lambda f=feature: patiently(lambda: stub.ask(replace(ECHO, feature=f)))))
            wait_for(lambda: status_of(stub)["askers"] >= len(asked))
        (tmp_path / "gate").touch()
        answers = [future.result() for future in asked]
    assert [answer.cause or answer.gap for answer in answers] == [100, "deadly", 1, 2, 3]


def test_a_pair_that_is_matched_beside_a_deadly_query_is_not_blamed(stub: ThreadedEngine, tmp_path: Path):
    first = pid_of(stub)

    def both_are_there() -> bool:
        status = status_of(stub)
        return status["pid"] != first and (status["running"], status["waiting"]) == (1, 1)

    with ThreadPoolExecutor(2) as pool:
        pair = pool.submit(lambda: patiently(lambda: stub.ask(replace(ECHO, kind="pair", feature=100))))
        wait_for(lambda: status_of(stub)["running"] == 1)
        deadly = pool.submit(lambda: patiently(lambda: stub.ask(replace(ECHO, feature=13))))
        wait_for(lambda: deadly.done() or both_are_there())  # whichever of the two suspects comes first
        (tmp_path / "gate").touch()
        assert (pair.result().gap, deadly.result().cause) == (100, "deadly")


def test_the_time_limit_is_told(stub: ThreadedEngine):
    pid_of(stub)
    answer = stub.ask(replace(ECHO, feature=100), time_limit_s=0.1)
    assert answer.cause == "late"
    assert "no answer within 0.1 s" in answer.error


def test_a_stopped_engine_does_not_hold_its_askers(stub: ThreadedEngine):
    pid = pid_of(stub)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert stub.ask(ECHO, time_limit_s=0.1).cause == "late"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert stub.ask(ECHO).gap == 0


def test_identical_clicks_cost_one_computation(stub: ThreadedEngine, tmp_path: Path):
    pid_of(stub)
    n, answers = 1000, []
    assert n > QUEUE_LIMIT

    def click() -> None:
        answers.append(stub.ask(replace(ECHO, feature=100)).gap)

    threads = [threading.Thread(target=click) for _ in range(n)]
    for thread in threads:
        thread.start()
    (tmp_path / "gate").touch()
    for thread in threads:
        thread.join()
    assert answers == [100] * n
    status = stub.ask(LiveQuery("status")).status
    assert status["computed"] == 1
    assert status["asked"] < n / 10


def test_a_second_engine_for_the_same_root_does_not_start(stub: ThreadedEngine, tmp_path: Path):
    pid = pid_of(stub)
    again = subprocess.run(stub.process._command(), stdin=subprocess.PIPE, capture_output=True, check=False, timeout=10)
    assert (again.returncode, again.stdout, again.stderr) == (0, b"", b"")
    other = StubEngine(tmp_path)
    assert pid_of(other) == pid
    other.close()
    assert running(pid)
    assert pid_of(stub) == pid


def test_another_worker_takes_over_when_the_starter_ends(stub: ThreadedEngine, tmp_path: Path):
    other = StubEngine(tmp_path)
    pid = pid_of(stub)
    assert pid_of(other) == pid
    stub.close()
    assert not running(pid)
    assert pid_of(other) != pid
    other.close()
    with pytest.raises(EngineBrokenError, match="closed"):
        stub.ask(ECHO)


def test_the_engine_ends_with_its_parent(stub: ThreadedEngine, short_tmp: Path):
    (short_tmp / "s").mkdir(mode=0o700)
    address = short_tmp / "s" / "x.sock"
    process = subprocess.Popen([sys.executable, "-c", STUB, "/", str(address), "cpu"], stdin=subprocess.PIPE)
    with process:
        wait_for(address.exists)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(5) == 0
    assert not address.exists()


def test_an_engine_that_cannot_start_is_given_up_with_its_log(stub: ThreadedEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stub.process, "_command", lambda: [sys.executable, "-c", "raise SystemExit('no such module')"])
    for _ in range(3):
        with pytest.raises(EngineStartingError):
            stub.ask(ECHO)
        stub.process._process.wait(10)
    with pytest.raises(EngineBrokenError, match="failed to start 3 times") as caught:
        stub.ask(ECHO)
    assert str(stub.log) in str(caught.value)
    assert stub.log.read_text().count("no such module") == 3
    with pytest.raises(EngineBrokenError):
        stub.ask(ECHO)
    monkeypatch.undo()
    monkeypatch.setattr(engine_process, "RETRY_S", 0)
    assert patiently(lambda: stub.ask(ECHO)).gap == 0


def test_an_engine_that_never_comes_up_is_killed_and_tried_again(stub: ThreadedEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_process, "START_LIMIT_S", 0)
    monkeypatch.setattr(stub.process, "_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(engine_process, "STOP_S", 0.01)
    for _ in range(3):
        with pytest.raises(EngineStartingError):
            stub.ask(ECHO)
    with pytest.raises(EngineBrokenError, match="failed to start"):
        stub.ask(ECHO)


def test_a_nonsense_answer_is_not_half_read(stub: ThreadedEngine):
    pid_of(stub)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(stub.log.with_suffix(".sock")))
        connection.sendall(b'{"query": 1}\n')
        answer = json.loads(connection.makefile("rb").readline())
    assert answer["cause"] == "query"
    assert "kind one of" in answer["error"]


def test_a_question_that_nobody_waits_for_is_taken_back_and_the_engine_stops_computing(
    stub: ThreadedEngine, tmp_path: Path
):
    pid_of(stub)
    leaving, staying = (stub.asking(replace(ECHO, feature=200)) for _ in range(2))
    wait_for(lambda: status_of(stub)["running"] == 1)
    leaving.cancel()
    time.sleep(0.1)
    assert status_of(stub)["askers"] == 1  # the other one
    staying.cancel()
    wait_for(lambda: status_of(stub)["running"] == 0)
    status = status_of(stub)
    assert (status["askers"], status["computed"], status["abandoned"]) == (0, 0, 1)
    (tmp_path / "gate").touch()
    assert stub.ask(replace(ECHO, feature=200)).gap == 200


def test_what_somebody_waited_for_to_the_end_of_the_time_is_ready_later(stub: ThreadedEngine, tmp_path: Path):
    pid_of(stub)
    slow = replace(ECHO, feature=201)
    assert stub.ask(slow, time_limit_s=0.2).cause == "late"
    time.sleep(0.2)
    assert status_of(stub)["running"] == 1
    (tmp_path / "gate").touch()
    wait_for(lambda: status_of(stub)["computed"] == 1)
    assert stub.ask(slow).gap == 201
    assert status_of(stub)["computed"] == 1


# -- a real engine over the small study ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(study_root: Path) -> Iterator[ThreadedEngine]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        engine = ThreadedEngine(EngineProcess(study_root, "cpu"))
        patch.undo()
        patiently(lambda: engine.ask(LiveQuery("status")))
        yield engine
        engine.close()


@pytest.fixture(scope="module")
def query(study_root: Path, study_config: StudyConfig) -> LiveQuery:
    (folder,) = (study_root / STUDY / "sae" / ENSEMBLE).iterdir()
    seeds = study_config.train.seeds
    folder = str(folder.relative_to(study_root / STUDY))
    return LiveQuery("neighbours", STUDY, ENSEMBLE, folder, seeds, seed=seeds[1], feature=5)


@pytest.mark.parametrize("by", ["decoder", "encoder"])
def test_neighbours_in_the_small_study(engine: ThreadedEngine, query: LiveQuery, ensemble_saes: SAE, by: str):
    W = ensemble_saes.W_dec if by == "decoder" else ensemble_saes.W_enc.transpose(1, 2)
    rows = unit_rows(W.detach().double().numpy())
    cosines = rows @ rows[1, 5]
    cosines[1, 5] = -9
    found = engine.answer(replace(query, by=by)).rows()
    expected = [(m, f) for m in range(4) for f in np.argsort(-cosines[m])[:5].tolist()]
    assert [row[:2] for row in found] == expected
    np.testing.assert_allclose([row[2] for row in found], [cosines[at] for at in expected], atol=1e-6)


def test_a_pair_in_the_small_study(engine: ThreadedEngine, query: LiveQuery, ensemble_saes: SAE):
    rows = unit_rows(ensemble_saes.W_dec.detach().double().numpy())
    cosines = rows[1] @ rows[3].T
    ask = replace(query, kind="pair", other=3)
    assert engine.answer(ask).arrays["partner"].tolist() == cosines.argmax(1).tolist()
    one_to_one = engine.answer(replace(ask, rule="hungarian"))
    assert one_to_one.arrays["partner"].tolist() == linear_sum_assignment(cosines, maximize=True)[1].tolist()
    assert one_to_one.gap == 0
    assert set(one_to_one.arrays) == {"partner", "cosine", "runner_up", "mutual"}


def test_a_wrong_query_leaves_the_engine_alive(engine: ThreadedEngine, query: LiveQuery):
    pid = pid_of(engine)
    with pytest.raises(EngineRefusedError, match="feature is 96, expected 0 to 95") as caught:
        engine.answer(replace(query, feature=96))
    assert caught.value.cause == "query"
    status = engine.ask(LiveQuery("status")).status
    assert status["pid"] == pid
    assert status["device"] == "cpu"
    assert status["bytes"] > 0
