"""Bandit over the whole code: what it finds is mended, or stands here with the reason why it is right."""

import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest

from support.paths import ROOT

_COMMANDS = (
    "a list of words and no shell; words of users reach it only through the checked parameters of `app.jobs.kinds`"
)
# {test of bandit: [(files, reason)]}.
JUSTIFIED: dict[str, list[tuple[str, str]]] = {
    "B105": [
        ("app/findings/word_contrast.py", "the name of an explainer"),
        ("app/store/shared_spans.py", "the name of an explainer"),
        ("app/glossary/mathml.py", "a brace of a formula"),
        ("engine/explanations/rule_search.py", "the version of the rules"),
    ],
    "B108": [
        ("engine/contract/sockets.py", "a folder in /tmp that is refused unless its user alone owns and opens it"),
    ],
    "B301": [("engine/executors/on_slurm.py", "what this command's own jobs wrote, on the user's own disk, as submitit does")],
    "B310": [("engine/bench/*.py", "the address of the server that the bench itself started on this machine")],
    "B311": [("engine/explanations/chat.py", "spreads the times at which requests are tried again")],
    "B403": [
        ("engine/executors/on_slurm.py", "see B301"),
        ("engine/saes/importers/unpickle.py", "subclasses the unpickler so that no name but OrderedDict is found in it"),
    ],
    "B404": [("*", "see B603: imports say nothing")],
    "B603": [("app/*.py", _COMMANDS), ("engine/*.py", "a list of words of this code's own and no shell")],
    "B607": [("engine/executors/on_slurm.py", "SLURM's commands stand where the cluster's PATH names them")],
    "B608": [
        (room, "names of tables and columns are those of the schema; values are parameters")
        for room in (
            "app/store/*.py", "engine/contract/index/*.py", "engine/store/database.py",
            "engine/store/consistency.py", "engine/bench/peer_datasette.py",
        )
    ],
    "B615": [
        ("engine/activations/*.py", "the user names the model; its digest is measured and stands on the page"),
        ("engine/bench/peers.py", "measures the user's own copy"),
        ("engine/demo/train_model.py", "reads what it wrote itself"),
        ("engine/studies/model_seeds.py", "the tokenizer of the embedded model, in this repository"),
    ],
    "B704": [
        ("app/cli/diff.py", "the stylesheet of the repository"),
        ("app/figures/svg_*.py", "numbers, in markup of this file alone"),
        ("app/figures/plot_json.py", "JSON with every < > & written as an escape"),
        ("app/glossary/mathml.py", "formulas of the code's own glossary, escaped leaf by leaf"),
        ("app/render.py", "what a template with autoescape made"),
        ("app/routes/manual.py", "Markdown of the repository, rendered with HTML off"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def findings() -> list[tuple[str, str, str]]:
    """(test, file, what it says) of everything that bandit finds."""
    command = [sys.executable, "-m", "bandit", "-q", "-r", "app", "engine", "-f", "json"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["errors"] == []
    return [
        (each["test_id"], each["filename"].removeprefix("./"), f"line {each['line_number']}: {each['issue_text']}")
        for each in report["results"]
    ]


def reasons(test: str, file: str) -> Iterator[str]:
    for files, reason in JUSTIFIED.get(test, []):
        if fnmatch(file, files):
            yield reason


def test_every_finding_is_mended_or_justified(findings):
    assert [each for each in findings if not any(reasons(*each[:2]))] == []


def test_no_justification_outlives_its_finding(findings):
    stale = [
        (test, files)
        for test, entries in JUSTIFIED.items()
        for files, _ in entries
        if not any(each[0] == test and fnmatch(each[1], files) for each in findings)
    ]
    assert stale == []
