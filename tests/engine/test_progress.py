"""Progress for programs: a file that says how far the stage is."""

import json
import os
import time
from pathlib import Path

import pytest

from seedscope.engine.progress import FILE_S, Progress


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEDSCOPE_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


def test_a_stage_is_known_from_its_begin_to_its_end(file):
    with Progress(quiet=True).stage("counting", "sheep") as report:
        assert json.loads(file.read_text()) == {
            "stage": "counting", "unit": "sheep", "done": 0, "total": None, "rate": 0
        }  # fmt: skip
        began = time.perf_counter()
        report(3, 40)
        time.sleep(0.1)
        report(7, 40)
    took = time.perf_counter() - began
    held = json.loads(file.read_text())
    assert (held["done"], held["total"]) == (7, 40)
    assert 7 / (took + 0.1) < held["rate"] < 7 / 0.1
    assert os.listdir(file.parent) == [file.name]


def test_where_work_stops_is_kept(file):
    def work() -> None:
        with Progress(quiet=True).stage("dividing", "numbers") as report:
            report(2, 9)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert json.loads(file.read_text())["done"] == 2


def test_many_reports_are_few_writings_each_of_them_whole(file):
    seen, began = set(), time.perf_counter()
    with Progress(quiet=True).stage("counting", "sheep") as report:
        done = 0
        while time.perf_counter() - began < 3 * FILE_S:
            done += 1
            report(done, 10**9)
            seen.add(json.loads(file.read_text())["done"])
    taken = time.perf_counter() - began
    assert done > 50
    assert 2 <= len(seen) <= taken / FILE_S + 2
    assert json.loads(file.read_text())["done"] == done


def test_what_a_terminal_shows_is_the_same_with_the_file_and_without(file, monkeypatch, capsys):
    said = []
    for _ in range(2):
        with Progress().stage("counting", "sheep") as report:
            report(5, 5)
        said.append(capsys.readouterr())
        monkeypatch.delenv("SEEDSCOPE_PROGRESS", raising=False)
    assert said[0].err.split(",")[0] == said[1].err.split(",")[0] == "counting: 5 sheep"
    assert [each.out for each in said] == ["", ""]


def test_a_file_that_cannot_be_written_does_not_stop_the_work(file, monkeypatch):
    monkeypatch.setenv("SEEDSCOPE_PROGRESS", str(file / "nowhere" / "progress.json"))
    with Progress(quiet=True).stage("counting", "sheep") as report:
        report(1, 1)
    assert not file.exists()
