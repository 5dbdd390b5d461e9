"""A training that is watched: a process writes what it sees, pages show it while it runs and afterwards."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
from starlette.testclient import TestClient

from seedscope.app.figures.svg_sparks import members_now, sparks
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.contract.progress_files import Curves, Moment
from seedscope.engine.training.trace import Trace, read
from support.paths import ROOT
from support.reading import parsed, text_of

CWD, ID = ROOT, "0123456789abcdef"
N_STEPS, SEEDS = 600, [0, 3, 5]
TRAIN = """
import sys, numpy as np
from pathlib import Path
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.progress import Progress
from seedscope.engine.studies.train import train_once
rows = np.random.default_rng(0).normal(size=(2000, 24)).astype(np.float32)
config = TrainConfig(d_sae=64, k=4, seeds=(0, 3, 5), batch=64, n_tokens=64 * 600, silent_after=10_000)
train_once(Path(sys.argv[1]), "topk-64", config, "made", lambda: rows, {}, Progress())
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(tmp_path)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path, client: TestClient) -> Path:
    """A job's folder, made behind the server's start: it shows the job as that of another server."""
    (tmp_path / "jobs" / ID).mkdir(parents=True)
    return tmp_path / "jobs" / ID


def keep(folder: Path, state: str) -> None:
    job = {"id": ID, "kind": "demo", "study": "pystdlib", "parameters": {}, "asked": 1.0, "begin": 2.0, "state": state}
    (folder / "job.json").write_text(json.dumps(job))


def moments(client: TestClient) -> list[dict]:
    trained = client.get(f"/jobs/{ID}.json").json()["trained"]
    return trained[0]["moments"] if trained else []


def test_a_training_is_seen_while_it_runs_and_afterwards(client, folder, tmp_path):
    keep(folder, "running")
    environment = os.environ | {"SEEDSCOPE_PROGRESS": str(folder / "progress.json")}
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, tmp_path / "pystdlib"],
        cwd=CWD,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 60
        while not 5 <= len(moments(client)) < 40:
            assert time.monotonic() < end
            assert process.poll() is None
        process.send_signal(signal.SIGSTOP)  # so that what is asked for next is half a training
        half = moments(client)
        page, part = client.get("/jobs").text, client.get(f"/jobs/{ID}", headers={"HX-Request": "true"}).text
        assert client.get("/jobs.json").json()["training"][ID]["ensemble"] == "topk-64"
        process.send_signal(signal.SIGCONT)
        said = process.stderr.read()
        assert process.wait() == 0
    assert 0 < half[-1]["step"] < N_STEPS
    for shown in (page, part):
        line = parsed(shown).select_one(f"div.job.running#job-{ID}[hx-get]")
        assert f"topk-64 of pystdlib: 3 TopK seeds, {half[-1]['tokens']:,} of 38,400 tokens each" in text_of(line)
        assert len(line.select("svg.spark")) == 5
        assert f"{fmean(half[-1]['ev']):.3f}" in text_of(line)
    assert f'id="trained-{ID}" hx-get' in part

    whole = moments(client)
    assert whole[: len(half)] == half
    assert [each["step"] for each in whole] == sorted(Trace().steps(N_STEPS))
    kept = read(tmp_path / "pystdlib" / "sae" / "topk-64" / "made")  # what training itself says of the same moments
    for told, point in zip(whole, kept, strict=True):
        assert (told["seeds"], told["tokens"]) == (SEEDS, point.tokens)
        for name, value in (("loss", point.loss or ()), ("ev", point.ev), ("l0", point.l0), ("dead", point.dead_frac)):
            assert told[name] == pytest.approx(list(value), rel=1e-4)
        assert told["agreement"] == pytest.approx(point.agreement, rel=1e-4)
    assert f"EV {fmean(kept[-1].ev):.3f} agreement {kept[-1].agreement:.2f}" in said
    keep(folder, "done")
    page = client.get(f"/jobs/{ID}").text
    assert page.count('<svg class="spark"') == 5
    assert "hx-get" not in page.split('<section class="jobs">')[1]
    assert f"{fmean(whole[-1]['ev']):.3f}" in text_of(page)
    assert 'href="/s/pystdlib/topk-64"' in page


def curves(of: list[Moment]) -> Curves:
    return Curves("study", "ensemble", "topk", 0.0, 2, 1000, of)


def test_the_newest_training_is_first_and_a_damaged_file_is_not_there(client, folder):
    keep(folder, "failed")
    for begun, name in ((2.0, "b"), (3.0, "a"), (1.0, "c")):
        told = {"study": "s", "ensemble": name, "variant": "relu", "begun": begun, "n_members": 1, "n_tokens": 10}
        moment = {
            "step": 1,
            "tokens": 5,
            "seeds": [4],
            "loss": [0.5],
            "ev": [None],
            "l0": [2],
            "dead": [0],
            "agreement": None,
        }
        (folder / f"training.s.{name}.json").write_text(json.dumps(told | {"moments": [moment]}))
    (folder / "training.s.cut.json").write_text('{"study": "s", "ens')
    assert [each["ensemble"] for each in client.get(f"/jobs/{ID}.json").json()["trained"]] == ["a", "b", "c"]
    page = text_of(client.get(f"/jobs/{ID}").text)
    assert "a of s: 1 ReLU seed, 5 of 10 tokens each, stopped there" in page
    assert "EV" not in page.split("Seeds of a")[0].split("a of s")[1]  # of which there is no number


def test_a_picture_spans_the_training_and_its_values():
    first, last = Moment(0, 0, [1, 2], [4.0, 2.0], [-9.0, 0.1], [3.0, 3.0], [0.0, 0.0], 0.2), None
    last = Moment(5, 500, [1, 2], [], [0.5, 0.7], [3.0, 5.0], [0.0, 0.5], 0.6)
    found = {spark.name: spark for spark in sparks(curves([first, last]))}
    assert list(found) == ["EV", "loss", "agreement", "L0", "dead"]
    ev = found["EV"]
    assert (ev.mean, ev.low, ev.high, ev.bottom, ev.top) == ("0.600", "0.500", "0.700", "0.000", "0.700")
    assert (found["agreement"].mean, found["agreement"].low) == ("0.60", None)
    assert found["loss"].mean == "3"  # the last that was measured
    mean = re.search(r'class="mean" d="M([^"]*)"', ev.picture)[1]
    places = [tuple(map(float, place.split())) for place in mean.split("L")]
    assert [x for x, _ in places] == [0, 100]  # half of the tokens
    assert places[0][1] == 54  # below zero is at the lower edge
    assert places[1][1] == pytest.approx(2 + 52 * (1 - 0.6 / 0.7), abs=0.06)
    losses = re.findall(r"M(\S+) (\S+?)(?=M|\")", re.search(r'class="members" d="([^"]*")', found["loss"].picture)[1])
    assert [float(y) for _, y in losses] == [2, 54]
    assert [(m.seed, m.loss, m.ev) for m in members_now(curves([first, last]))] == [(1, 4.0, 0.5), (2, 2.0, 0.7)]


def test_members_trained_in_groups_have_lines_of_their_own_and_end_with_the_last():
    groups = [Moment(0, 0, [1], [1.0], [0.1], [3.0], [0.0], None), Moment(9, 1000, [1], [], [0.9], [3.0], [0.0], None)]
    assert not curves(groups).has_ended
    groups += [Moment(0, 0, [2], [1.0], [0.3], [3.0], [0.0], None)]
    assert not curves(groups).has_ended
    found = {spark.name: spark for spark in sparks(curves(groups))}
    assert "agreement" not in found
    assert found["EV"].mean == f"{fmean([0.9, 0.3]):.3f}"
    assert curves([*groups, Moment(9, 1000, [2], [], [0.8], [3.0], [0.0], None)]).has_ended


def test_what_is_told_of_many_members_is_bounded_and_holds_no_infinity():
    from seedscope.engine.training.summary import summarise
    from seedscope.engine.training.trace import Point

    n = 96
    values = tuple(i + 1 / 3 for i in range(n))
    points = [Point(9, 90, tuple(range(n)), (math.inf, *values[1:]), values, values, values, math.nan)]
    (moment,) = summarise(points, tuple(range(n)))
    assert moment.seeds == list(range(0, n, 3))
    assert moment.loss[0] is None
    assert moment.loss[1:] == [float(f"{values[seed]:.5g}") for seed in moment.seeds[1:]]
    assert moment.agreement is None
