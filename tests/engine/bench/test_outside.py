"""Peers' benchmarks in other processes: what they import is theirs."""

import json
from pathlib import Path

import pytest

from seedscope.engine.bench import outside


def test_a_peer_imports_its_own_libraries_and_no_module_of_the_same_name_beside_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    beside, folder = tmp_path / "bench", tmp_path / "scratch"
    for each in (beside, folder):
        each.mkdir()
    monkeypatch.setattr(outside, "__file__", str(beside / "outside.py"))
    (beside / "colorsys.py").write_text("raise ImportError('another one')\n")
    (beside / "peer.py").write_text(
        "import colorsys, json, sys\nprint(json.dumps({'says': sys.argv[1], 'spec': json.load(open(sys.argv[2]))}))\n"
    )
    answers = outside.ask_peers("peer.py", ["one", "other"], {"k": 3}, folder)
    assert answers == {name: {"says": name, "spec": {"k": 3}} for name in ("one", "other")}
    (beside / "peer.py").write_text("raise SystemExit(7)\n")
    assert outside.ask_peers("peer.py", ["one"], {}, folder) == {"one": {"missing": "it ended with exit 7"}}
    assert json.loads((folder / "spec.json").read_text()) == {}
