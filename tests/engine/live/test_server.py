"""The live engine: what it computes against plain NumPy, and how it queues, shares and survives."""

import asyncio
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from seedscope.engine.contract.queries import QUEUE_LIMIT, LiveAnswer, LiveQuery, as_fields, live_query
from seedscope.engine.live.crashes import CrashRecord
from seedscope.engine.live.neighbours import neighbours
from seedscope.engine.live.residents import Residents
from seedscope.engine.live.server import Engine
from seedscope.engine.saes.sae import SAE
from support.golden import unit_rows

SEEDS = (3, 5, 8)
QUERY = LiveQuery("neighbours", "study", "ensemble", "sae", SEEDS, seed=5, feature=7, k=4)
PAIR = LiveQuery("pair", "study", "ensemble", "sae", SEEDS, seed=5, other=8)


def publish(root: Path, sae: SAE, name: str = "study-1.duckdb") -> Path:
    """A study of these SAEs, as far as the engine looks at one."""
    study = root / "study"
    sae.save(study / "sae")
    (study / name).touch()
    (study / "CURRENT").write_text(f"{name}\ntests\n")
    return root


@pytest.fixture
def ensemble(make_sae: Callable[..., SAE]) -> SAE:
    """Wide enough for the search among groups; feature 10 of member 1 and feature 20 of member 2 have no direction."""
    sae = make_sae(members=3, d_in=24, d_sae=256, dtype=np.float32)
    sae.seeds = SEEDS
    with torch.no_grad():
        sae.W_dec[1, 10] = 0
        sae.W_dec[2, 20, 0] = torch.nan
    return sae


@pytest.fixture
def residents(tmp_path: Path, ensemble: SAE) -> Residents:
    return Residents(publish(tmp_path, ensemble), "cpu")


def rows_of(sae: SAE, by: str = "decoder") -> np.ndarray:
    rows = sae.W_dec if by == "decoder" else sae.W_enc.transpose(1, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return unit_rows(rows.detach().double().numpy())


def nearest(sae: SAE, query: LiveQuery) -> dict[int, list[tuple[int, float]]]:
    """{seed: [(feature, cosine), nearest first]} by definition: all cosines, sorted."""
    rows, found = rows_of(sae, query.by), {}
    without = {(1, 10), (2, 20)} if np.isnan(rows_of(sae)).any() else set()
    anchor = SEEDS.index(query.seed)
    for seed in query.members or SEEDS:
        member = SEEDS.index(seed)
        cosine = rows[member] @ rows[anchor, query.feature]
        allowed = [f for f in range(sae.d_sae) if (member, f) not in without and (member, f) != (anchor, query.feature)]
        key = {f: abs(cosine[f]) if query.absolute else cosine[f] for f in allowed}
        found[seed] = [(f, cosine[f]) for f in sorted(allowed, key=key.get, reverse=True)[: query.k]]
    return found


def check_neighbours(answer: LiveAnswer, sae: SAE, query: LiveQuery) -> None:
    expected = [(seed, *entry) for seed, entries in nearest(sae, query).items() for entry in entries]
    assert answer.error is None
    assert [row[:2] for row in answer.rows()] == [row[:2] for row in expected]
    np.testing.assert_allclose(answer.arrays["cosine"], [row[2] for row in expected], atol=1e-6)


# -- what it computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        QUERY,
        replace(QUERY, k=1),
        replace(QUERY, k=1000),
        replace(QUERY, by="encoder"),
        replace(QUERY, absolute=True),
        replace(QUERY, members=(8, 3)),
        replace(QUERY, members=(5,), absolute=True, k=1),
    ],
)
def test_neighbours_are_the_largest_of_all_cosines(residents: Residents, ensemble: SAE, query: LiveQuery):
    (answer,) = residents.answer([query])
    check_neighbours(answer, ensemble, query)


@pytest.mark.parametrize("d_sae", [20, 256])
def test_queries_of_one_batch_are_answered_as_alone(tmp_path: Path, make_sae: Callable[..., SAE], d_sae: int):
    sae = make_sae(members=3, d_in=24, d_sae=d_sae, dtype=np.float32)
    sae.seeds = SEEDS
    residents = Residents(publish(tmp_path, sae), "cpu")
    queries = [
        replace(QUERY, seed=SEEDS[i % 3], feature=i, k=1 + i % 4, absolute=i % 5 == 0, members=SEEDS[: i % 4])
        for i in range(20)
    ]
    for query, answer in zip(queries, residents.answer(queries), strict=True):
        check_neighbours(answer, sae, query)
        alone = residents.answer([query])[0].arrays
        assert answer.arrays["feature"].tolist() == alone["feature"].tolist()
        np.testing.assert_allclose(answer.arrays["cosine"], alone["cosine"], atol=1e-6)


def test_a_copy_has_cosine_one_and_never_more(tmp_path: Path, make_sae: Callable[..., SAE]):
    sae = make_sae(members=1, d_in=24, d_sae=40, dtype=np.float32)
    with torch.no_grad():
        sae.W_dec[0, 1:] = 3 * sae.W_dec[0, 0]
    query = replace(QUERY, seeds=(0,), seed=0, feature=7)
    (answer,) = Residents(publish(tmp_path, sae), "cpu").answer([query])
    assert answer.arrays["cosine"].max() <= 1
    np.testing.assert_allclose(answer.arrays["cosine"], 1, atol=1e-6)
    assert len(set(answer.arrays["feature"].tolist()) - {7}) == 4


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (replace(QUERY, feature=10), "feature 10 of seed 5 has no direction"),
        (replace(QUERY, seed=8, feature=20, by="encoder"), "feature 20 of seed 8 has no direction"),
        (replace(QUERY, feature=256), "feature is 256, expected 0 to 255"),
        (replace(QUERY, feature=-1), "feature is -1"),
        (replace(QUERY, seed=4), "seed is 4, expected one of 3, 5, 8"),
        (replace(QUERY, members=(3, 9)), "seed is 9"),
        (replace(QUERY, members=(3, 3)), "members is (3, 3)"),
        (replace(QUERY, k=0), "k is 0, expected 1 to"),
        (replace(QUERY, by="bias"), "by is 'bias', expected decoder or encoder"),
        (replace(QUERY, study="../study"), "study is '../study'"),
        (replace(QUERY, study="none"), "no published study 'none'"),
        (replace(QUERY, folder="../../etc"), "expected a folder inside the study"),
        (replace(QUERY, folder="/etc"), "expected a folder inside the study"),
        (replace(QUERY, folder="sae/none"), "SAE files cannot be read"),
        (replace(QUERY, seeds=()), "seeds is ()"),
        (replace(PAIR, rule="live"), "rule is 'live'"),
        (replace(PAIR, other=5), "other is 5, expected another seed"),
        (replace(PAIR, other=6), "other is 6"),
        (replace(PAIR, folder="../../etc"), "expected a folder inside the study"),
    ],
)
def test_a_query_that_cannot_be_answered_is_told_why(residents: Residents, query: LiveQuery, says: str):
    (answer,) = residents.answer([query])
    assert says in answer.error
    assert answer.cause == "query"
    if (
        query.kind == "neighbours" and query.shared_key() == QUERY.shared_key()
    ):  # beside a good one, that one is answered
        assert [a.error is None for a in residents.answer([query, QUERY])] == [False, True]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("direction", [(5, 8), (8, 5)])
def test_pairs_agree_with_numpy_and_scipy(residents: Residents, ensemble: SAE, direction: tuple, absolute: bool):
    a, b = direction
    rows = rows_of(ensemble)
    cosines = np.nan_to_num(rows[SEEDS.index(a)] @ rows[SEEDS.index(b)].T, nan=-9)
    keys = np.where(cosines > -9, np.abs(cosines), -9) if absolute else cosines
    ask = replace(PAIR, seed=a, other=b, absolute=absolute)
    argmax = residents.answer([ask])[0]
    valid = cosines.max(1) > -9
    best = keys.argmax(1)
    assert argmax.arrays["partner"].tolist() == np.where(valid, best, -1).tolist()
    np.testing.assert_allclose(argmax.arrays["cosine"][valid], keys.max(1)[valid], atol=1e-6)
    np.testing.assert_allclose(argmax.arrays["runner_up"][valid], np.sort(keys, 1)[valid, -2], atol=1e-6)
    mutual = valid & (keys.argmax(0)[best] == np.arange(len(best)))
    assert argmax.arrays["mutual"].tolist() == mutual.tolist()
    assert argmax.gap is None
    only_mutual = residents.answer([replace(ask, rule="mutual")])[0]
    assert only_mutual.arrays["partner"].tolist() == np.where(mutual, best, -1).tolist()
    one_to_one = residents.answer([replace(ask, rule="hungarian")])[0]
    there = np.flatnonzero(valid), np.flatnonzero(cosines.max(0) > -9)
    optimum = keys[np.ix_(*there)]
    optimum = optimum[linear_sum_assignment(optimum, maximize=True)].sum()
    paired = one_to_one.arrays["partner"] >= 0
    assert len(set(one_to_one.arrays["partner"][paired].tolist())) == paired.sum() == 255
    np.testing.assert_allclose(one_to_one.arrays["cosine"][paired].sum(), optimum, rtol=1e-5)
    assert 0 <= one_to_one.gap < 1e-5


def test_a_pair_under_both_needs_the_two_assignments_to_agree(residents: Residents):
    hungarian, both = (residents.answer([replace(PAIR, rule=rule)])[0].arrays for rule in ("hungarian", "both"))
    agree = both["partner"] >= 0
    assert 0 < agree.sum() < (hungarian["partner"] >= 0).sum()
    assert (both["partner"][agree] == hungarian["partner"][agree]).all()
    assert (both["cosine"][~agree] == -1).all()


def test_a_new_publication_is_loaded(tmp_path: Path, ensemble: SAE, make_sae: Callable[..., SAE]):
    residents = Residents(publish(tmp_path, ensemble), "cpu")
    residents.answer([QUERY, replace(QUERY, feature=8)])
    residents.answer([PAIR])
    other = make_sae(members=3, d_in=24, d_sae=256, dtype=np.float32, seed=9)
    other.seeds = SEEDS
    publish(tmp_path, other, "study-2.duckdb")
    check_neighbours(residents.answer([QUERY])[0], other, QUERY)
    rows = rows_of(other)
    assert residents.answer([PAIR])[0].arrays["partner"].tolist() == (rows[1] @ rows[2].T).argmax(1).tolist()


def test_the_least_recently_used_ensemble_leaves_first(tmp_path: Path, ensemble: SAE):
    publish(tmp_path, ensemble)
    for name in ("one", "two", "three"):
        shutil.copytree(tmp_path / "study" / "sae", tmp_path / "study" / name)
    n_bytes = 3 * 256 * 24 * 4
    residents = Residents(tmp_path, "cpu", budget=2 * n_bytes + 1)
    for folder in ("one", "two", "one", "three"):
        check_neighbours(residents.answer([replace(QUERY, folder=folder)])[0], ensemble, QUERY)
    assert residents.status()["bytes"] == 2 * n_bytes
    assert [name.split()[0] for name in residents.status()["resident"]] == ["study/one", "study/three"]
    (answer,) = Residents(tmp_path, "cpu", budget=n_bytes - 1).answer([QUERY])
    assert f"take {n_bytes:,} bytes" in answer.error


def test_status_does_not_wait_for_a_load(residents: Residents):
    with residents._lock:
        assert residents.status()["bytes"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_neighbours_on_a_gpu_are_the_same(tmp_path: Path, ensemble: SAE):
    residents = Residents(publish(tmp_path, ensemble), "cuda")
    for query in (QUERY, replace(QUERY, k=1), replace(QUERY, by="encoder"), replace(QUERY, absolute=True)):
        check_neighbours(residents.answer([query, QUERY])[0], ensemble, query)
    assert residents.answer([replace(PAIR, rule="hungarian")])[0].gap < 1e-5


# -- how it queues -------------------------------------------------------------------------------------------------


class Gated:
    """An answerer that waits for the gate; answers with the feature's number, fails on 13.

    `blamed` holds, batch by batch, what would have a death (more) if the process ended while that batch was computed.
    """

    def __init__(self, deaths: Path) -> None:
        self.gate, self.batches, self.published = threading.Event(), [], "v1"
        self.deaths, self.blamed = deaths, []

    def version(self, query: LiveQuery) -> str:
        if query.study == "none":
            raise ValueError("found no published study 'none'")
        return self.published

    def answer(self, queries: list[LiveQuery]) -> list[LiveAnswer]:
        self.batches.append([query.feature for query in queries])
        self.blamed.append(blamed(self.deaths))
        if queries[0].kind == "pair":
            return [LiveAnswer(gap=0.5)]
        assert self.gate.wait(20)
        if any(query.feature == 13 for query in queries):
            raise RuntimeError("secret")
        return [LiveAnswer({"feature": np.array([query.feature], np.int32)}) for query in queries]

    def status(self) -> dict:
        return {"device": "none"}


def blamed(deaths: Path) -> dict[tuple[str, int], int]:
    """{(kind, feature): deaths} of the queries below that the next process would find to have some."""
    with tempfile.TemporaryDirectory() as folder:
        found = CrashRecord(Path(shutil.copy(deaths, folder)))
    asked = [replace(query, feature=feature) for query in (QUERY, PAIR) for feature in range(8)]
    return {(query.kind, query.feature): n for query in asked if (n := found.count((query, "v1")))}


def die_of(deaths: Path, *queries: LiveQuery) -> None:
    """Leave the file as a process that ends while it computes these."""
    with CrashRecord(deaths).computing([(query, "v1") for query in queries]):
        found = deaths.read_bytes()
    deaths.write_bytes(found)


class Served:
    """An Engine in a thread, and questions to it over its socket."""

    def __init__(self, folder: str) -> None:
        self.address, self.deaths = f"{folder}/s", Path(folder) / "s.deaths"
        self.answerer = Gated(self.deaths)
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(Engine(self.answerer, CrashRecord(self.deaths)).serve(self.address))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.pool = ThreadPoolExecutor(300)
        wait_for(lambda: Path(self.address).exists())

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        self.answerer.gate.set()
        self.pool.shutdown()
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def raw(self, line: bytes) -> dict:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(self.address)
            connection.sendall(line)
            with connection.makefile("rb") as answer:
                return json.loads(answer.readline())

    def ask(self, feature: int = 0, *, limit: float = 20.0, query: LiveQuery = QUERY) -> dict:
        asked = {"query": as_fields(replace(query, feature=feature)), "time_limit_s": limit}
        return self.raw(json.dumps(asked).encode() + b"\n")

    def status(self) -> dict:
        return self.ask(query=LiveQuery("status"))["status"]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextmanager
def served(*died_of: LiveQuery) -> Iterator[Served]:
    """An engine whose former process died while it computed these, the more often the more often they are named."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for query in died_of:
            die_of(Path(folder) / "s.deaths", query)
        engine = Served(folder)
        try:
            yield engine
        finally:
            engine.stop()


def test_queries_that_wait_together_share_a_batch_and_identical_ones_are_computed_once():
    with served() as engine:
        asked = [engine.pool.submit(engine.ask, 0)]
        wait_for(lambda: engine.status()["running"] == 1)
        asked += [engine.pool.submit(engine.ask, 1 + i % 4) for i in range(100)]
        wait_for(lambda: engine.status()["askers"] == 101)
        assert engine.status()["waiting"] == 4
        assert not any(future.done() for future in asked)
        engine.answerer.gate.set()
        assert all(future.result()["error"] is None for future in asked)
        assert [sorted(batch) for batch in engine.answerer.batches] == [[0], [1, 2, 3, 4]]
        assert engine.ask(3)["error"] is None  # kept
        assert {"computed": 5, "asked": 102, "batches": 2}.items() <= engine.status().items()
        engine.answerer.published = "v2"
        engine.ask(3)
        assert engine.status()["computed"] == 6


def test_what_is_being_computed_and_nothing_else_is_blamed_for_a_death():
    with served() as engine:
        asked = [engine.pool.submit(engine.ask, 0)]
        wait_for(lambda: engine.status()["running"] == 1)
        asked += [engine.pool.submit(engine.ask, feature) for feature in (1, 2)]
        wait_for(lambda: engine.status()["waiting"] == 2)
        engine.ask(5, query=PAIR)  # beside the first, which is still running
        engine.answerer.gate.set()
        assert all(future.result()["error"] is None for future in asked)
        engine.ask(3)
        first, pair, both, last = engine.answerer.blamed
        assert first == {("neighbours", 0): 1}
        assert pair == {("neighbours", 0): 1, ("pair", 5): 1}
        assert both == {("neighbours", 1): 1, ("neighbours", 2): 1}
        # The answers before may not have left yet when the last is begun: they were computed all the same.
        assert last == {("neighbours", 3): 1}
        wait_for(lambda: blamed(engine.deaths) == {})


def test_a_suspect_is_computed_alone_and_nothing_beside_it():
    suspects = [replace(QUERY, feature=2), replace(QUERY, feature=4), replace(PAIR, feature=6)]
    with served(*suspects) as engine:
        asked = [engine.pool.submit(engine.ask, 0)]
        wait_for(lambda: engine.status()["running"] == 1)
        for i in range(1, 6):
            asked.append(engine.pool.submit(engine.ask, i))
            wait_for(lambda i=i: engine.status()["waiting"] == i)
        asked.append(engine.pool.submit(engine.ask, 6, query=PAIR))
        wait_for(lambda: engine.status()["waiting"] == 6)
        engine.answerer.gate.set()
        assert all(future.result()["error"] is None for future in asked)
        assert engine.answerer.batches[0] == [0]
        assert sorted(engine.answerer.batches[1:]) == [[1, 3, 5], [2], [4], [6]]
        for batch, now in zip(engine.answerer.batches, engine.answerer.blamed, strict=True):
            new = [feature for (_, feature), n in now.items() if n == 2 or feature not in (2, 4, 6)]
            assert new == batch
        assert blamed(engine.deaths) == {}  # all three are cleared
        assert engine.ask(2)["error"] is None


def test_no_death_convicts_an_innocent_neighbour(tmp_path: Path):
    """Whatever order suspects are computed in, and wherever in it the process dies."""
    deadly, innocent = replace(QUERY, feature=13), replace(QUERY, feature=1)
    file = tmp_path / "deaths"
    die_of(file, innocent, deadly)  # in one batch
    second = CrashRecord(file)
    assert [second.count((query, "v1")) for query in (innocent, deadly)] == [1, 1]
    with second.computing([(innocent, "v1")]):
        pass
    die_of(file, deadly)  # before the innocent one's answer is sent
    third = CrashRecord(file)
    assert [third.count((query, "v1")) for query in (innocent, deadly)] == [0, 2]


def test_a_convicted_query_is_refused_until_other_data_are_published():
    deadly = replace(QUERY, feature=13)
    with served(deadly, deadly) as engine:
        refused = engine.ask(13)
        assert refused["cause"] == "deadly"
        assert "died of this query 2 times" in refused["error"]
        engine.answerer.gate.set()
        assert engine.ask(14)["error"] is None
        assert engine.answerer.batches == [[14]]
        engine.answerer.published = "v2"
        assert engine.ask(13)["cause"] == "fault"


@pytest.mark.parametrize("content", ["", "{", "[[1, 2]]", '{"0123456789abcdef": "x"}', "3", "null"])
def test_deaths_that_cannot_be_read_are_none(tmp_path: Path, content: str):
    file = tmp_path / "deaths"
    file.write_text(content)
    deaths = CrashRecord(file)
    assert deaths.count((QUERY, "v1")) == 0
    assert json.loads(file.read_text()) == {}
    deaths.forget()
    assert not file.exists()


def test_deaths_that_cannot_be_written_do_not_keep_the_engine_from_answering(tmp_path: Path):
    with CrashRecord(tmp_path / "no such folder" / "deaths").computing([(QUERY, "v1")]):
        pass


def test_when_the_queue_is_full_askers_are_told_and_served_again_later():
    with served() as engine:
        asked = [engine.pool.submit(engine.ask, 100 + i) for i in range(QUEUE_LIMIT)]
        wait_for(lambda: engine.status()["askers"] == QUEUE_LIMIT)
        refused = engine.ask(1)
        assert refused["cause"] == "busy"
        assert "try again" in refused["error"]
        engine.answerer.gate.set()
        assert all(future.result()["error"] is None for future in asked)
        assert engine.ask(1)["error"] is None


def test_what_nobody_waits_for_any_more_is_not_computed():
    with served() as engine:
        first = engine.pool.submit(engine.ask, 0)
        wait_for(lambda: engine.status()["running"] == 1)
        late = engine.ask(1, limit=0.05)
        assert late["cause"] == "late"
        assert "no answer within 0.05 s" in late["error"]
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(engine.address)
            asked = {"query": as_fields(replace(QUERY, feature=2)), "time_limit_s": 20}
            gone.sendall(json.dumps(asked).encode() + b"\n")
            wait_for(lambda: engine.status()["askers"] == 2)
        wait_for(lambda: engine.status()["askers"] == 1)
        engine.answerer.gate.set()
        assert first.result()["error"] is None
        assert engine.ask(3)["error"] is None
        assert engine.answerer.batches == [[0], [3]]


def test_a_pair_does_not_keep_neighbours_waiting_nor_the_other_way_round():
    with served() as engine:
        neighbour = engine.pool.submit(engine.ask, 0)
        wait_for(lambda: engine.status()["running"] == 1)
        assert engine.ask(query=PAIR)["gap"] == 0.5
        assert not neighbour.done()


def test_an_unknown_fault_is_logged_and_spoils_no_other_query(capfd: pytest.CaptureFixture):
    with served() as engine:
        first = engine.pool.submit(engine.ask, 0)
        wait_for(lambda: engine.status()["running"] == 1)
        both = [engine.pool.submit(engine.ask, feature) for feature in (13, 14)]
        wait_for(lambda: engine.status()["waiting"] == 2)
        engine.answerer.gate.set()
        assert first.result()["error"] is None
        assert [future.result()["cause"] for future in both] == ["fault", ""]
        assert "secret" not in both[0].result()["error"]
        assert "secret" in capfd.readouterr().err
        assert engine.ask(13)["cause"] == "fault"  # faults are not kept


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"x" * 2**24 + b"\n",
        json.dumps({"query": {"kind": "neighbours"}, "time_limit_s": -1}).encode() + b"\n",
        json.dumps({"query": {"kind": "neighbours"}, "time_limit_s": float("nan")}).encode() + b"\n",
        json.dumps({"query": {"kind": "neighbours", "study": "none"}, "time_limit_s": 1}).encode() + b"\n",
    ],
)
def test_what_is_no_query_gets_one_clear_error(line: bytes):
    with served() as engine:
        try:
            assert engine.raw(line)["cause"] == "query"
        except ConnectionError:
            assert len(line) > 2**23  # the engine stops reading
        engine.answerer.gate.set()
        assert engine.ask(1)["error"] is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"kind": "neighbors"},
        {"kind": "pair", "rows": 3},
        {"kind": "pair", "seed": "3"},
        {"kind": "pair", "seed": True},
        {"kind": "pair", "seeds": [1, 2.0]},
        {"kind": "pair", "absolute": 1},
        [],
        None,
    ],
)
def test_fields_of_a_query_are_checked(given: object):
    with pytest.raises(ValueError, match="expected"):
        live_query(given)


def test_a_query_survives_the_wire():
    query = replace(QUERY, members=(3, 8), absolute=True)
    assert live_query(json.loads(json.dumps(as_fields(query)))) == query


def test_neighbours_of_a_resident_need_no_study(residents: Residents, ensemble: SAE):
    resident = residents._resident(QUERY)
    check_neighbours(neighbours(resident, [QUERY])[0], ensemble, QUERY)
