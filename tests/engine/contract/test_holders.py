"""Who holds a lock is said by whoever is refused, without secrets."""

import json
import os
import subprocess
import sys

import pytest

from seedscope.engine.contract import holders
from seedscope.engine.contract.files import only_writer
from seedscope.engine.contract.holders import forget_holder, note_holder, note_path, who_holds

HOLDS = """
import sys
from pathlib import Path
from seedscope.engine.contract.files import only_writer
sys.argv = ["/usr/bin/seedscope", "analyze", "mine"]
with only_writer(Path(sys.stdin.readline().strip())):
    print(flush=True)
    sys.stdin.read()
"""


def test_who_is_refused_a_study_is_told_by_whom(tmp_path):
    folder = tmp_path / "mine"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDS], **pipes) as other:
        other.stdin.write(f"{folder}\n")
        other.stdin.flush()
        assert other.stdout.readline() == "\n"
        for _ in range(2):  # asking takes nothing away
            with (
                pytest.raises(RuntimeError, match=rf"process {other.pid} \(seedscope analyze mine\), since 20\d\d-"),
                only_writer(folder),
            ):
                pass
        other.kill()
    with only_writer(folder):
        assert json.loads(note_path(folder / ".lock").read_text())["pid"] == os.getpid()
    assert not folder.exists()


def test_secrets_of_the_command_line_stand_in_no_note(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    monkeypatch.setattr(
        sys, "argv", ["/x/app/cli/__main__.py", "serve", "--token", "hidden", "--token=hidden", "--port", "1"]
    )
    note_holder(lock)
    assert "hidden" not in note_path(lock).read_text()
    assert f"process {os.getpid()} (cli.__main__ serve --token *** --token=*** --port 1)" in who_holds(lock)
    forget_holder(lock)
    assert who_holds(lock) == "another process"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "command": 1, "since": "y"}', '{"pid": 1}'])
def test_a_damaged_note_says_nothing(tmp_path, text):
    note_path(tmp_path / ".lock").write_text(text)
    assert who_holds(tmp_path / ".lock") == "another process"
    assert holders.LONGEST < 1000
