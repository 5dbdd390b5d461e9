"""`seedscope diff`: fates of the features of a real SAE in changed copies, its files, exit codes, and what it refuses."""

import json
import re

import jsonschema
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.commands import assert_one_line, run
from support.golden import unit_rows

FATES = ["survived", "moved", "split", "merged", "lost"]
SCHEMA = {
    "type": "object",
    "required": ["format", "version", "seedscope", "rule", "theta", "same", "sign", "forced", "remarks", "old", "new", "counts",
                 "origins", "survived", "kept", "kept_interval", "by_chance", "gap", "histogram", "old_features", "new_features",
                 "parts", "joined"],
    "properties": {
        "format": {"const": "seedscope.diff"},
        "version": {"const": 1},
        "old": {"required": ["path", "digest", "seed", "d_in", "d_sae", "n_undirected"]},
        "counts": {"required": FATES},
        "old_features": {"required": ["feature", "fate", "partner", "cosine", "nearest", "nearest_cosine"]},
        "new_features": {"required": ["feature", "origin", "nearest", "nearest_cosine"]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def member(study_root):
    """The small study's first member."""
    (folder,) = (study_root / "small" / "sae" / "topk-96").iterdir()
    return folder / "seed-0.safetensors"


@pytest.fixture
def changed(member, tmp_path):
    """Write a copy of the member with other decoder rows or metadata."""

    def write(change=lambda rows: rows, name: str = "next.safetensors", **metadata: str):
        tensors = load_file(member)
        tensors["W_dec"] = change(tensors["W_dec"])
        with safe_open(member, "pt") as file:
            metadata = file.metadata() | metadata
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name, metadata)
        return tmp_path / name

    return write


def reported(*arguments: object, tmp_path) -> dict:
    done = run("diff", *arguments, "--json", tmp_path / "diff.json", "--quiet")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "diff.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert sum(found["counts"].values()) == len(found["old_features"]["feature"])
    assert sum(found["origins"].values()) == len(found["new_features"]["feature"])
    return found


def replaced(rows: torch.Tensor) -> torch.Tensor:
    """Thirty of the 96 rows drawn anew, two deleted."""
    drawn = torch.randn(30, rows.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.cat([drawn, torch.zeros(2, rows.shape[1]), rows[32:]])


@pytest.mark.parametrize("rule", ["argmax", "mutual", "hungarian", "both"])
def test_what_was_replaced_is_lost_and_the_rest_survived_under_every_rule(member, changed, rule, tmp_path):
    found = reported(member, changed(replaced), "--rule", rule, tmp_path=tmp_path)
    assert found["old_features"]["fate"][32:] == 64 * ["survived"]
    assert (found["counts"]["survived"], found["counts"]["moved"]) == (64, 0)
    assert found["survived"] == found["kept"] == pytest.approx(64 / 96)
    assert found["kept_interval"][0] < 64 / 96 < found["kept_interval"][1]
    assert found["new"]["n_undirected"] == 2
    assert found["new_features"]["feature"] == [i for i in range(96) if i not in (30, 31)]
    assert found["new_features"]["origin"][30:] == 64 * ["kept"]
    assert (found["gap"] is not None) == (rule in ("hungarian", "both"))
    assert sum(found["histogram"]) == 96


def test_best_cosines_are_those_of_the_matrices_and_digests_those_of_the_saes(member, changed, ensemble_saes, tmp_path):
    found = reported(member, changed(replaced), tmp_path=tmp_path)
    before = load_file(member)["W_dec"]
    after = replaced(before)[[*range(30), *range(32, 96)]]  # without the deleted ones
    old, new = (unit_rows(rows.double().numpy()) for rows in (before, after))
    np.testing.assert_allclose(found["old_features"]["nearest_cosine"], (old @ new.T).max(1), atol=1e-6)
    np.testing.assert_allclose(found["new_features"]["nearest_cosine"], (new @ old.T).max(1), atol=1e-6)
    assert found["old"]["digest"] == ensemble_saes.digest(0)
    assert found["old"]["digest"] != found["new"]["digest"]


def test_the_exit_code_says_whether_enough_was_kept(member, changed):
    changed = changed(replaced)
    assert run("diff", member, changed, "--quiet", "--fail-below", "0.6").returncode == 0
    below = run("diff", member, changed, "--quiet", "--fail-below", "0.7")
    assert below.returncode == 3
    assert below.stdout.splitlines()[-1] == "fails: 66.7% of the old features survived or moved, asked for 70.0%"
    assert run("diff", member, member, "--quiet", "--fail-below", "1").returncode == 0


def test_the_page_is_one_file_that_says_the_same(member, changed, tmp_path):
    page = tmp_path / "diff.html"
    done = run("diff", member, changed(replaced), "--quiet", "--fail-below", "0.9", "--html", page)
    assert done.returncode == 3
    text = page.read_text()
    html = BeautifulSoup(text, "html.parser")
    assert not html.find_all(["script", "link", "img", "iframe"])
    assert not re.findall(r"(?:src|href)=|url\(|@import|https?://", text)
    rows = {row.th.text: row.td.text for row in html.select("table.data")[0].select("tbody tr")}
    assert list(rows)[:5] == FATES
    assert rows["survived"] == "64"
    assert html.h1.text == "66.7 % of the old features survived or moved"
    assert "this version fails" in html.text
    assert len(html.select("svg.fates rect")) == sum(n != "0" for n in list(rows.values())[:5])
    assert html.select_one("section[aria-label=lost] tbody tr")


def test_another_hook_point_is_refused_unless_forced(member, changed, tmp_path):
    other = changed(hookpoint="blocks.5.hook_mlp_out")
    assert_one_line(run("diff", member, other, "--quiet"), "blocks.5.hook_mlp_out", "--force")
    assert len(reported(member, other, "--force", tmp_path=tmp_path)["forced"]) == 1


def test_what_is_no_sae_or_has_no_direction_is_refused(member, changed, tmp_path):
    assert_one_line(run("diff", member, tmp_path / "none.safetensors", "--quiet"), "found no file")
    empty = changed(torch.zeros_like)
    assert_one_line(run("diff", empty, member, "--quiet"), "all 96 decoder rows", "nothing to compare")
    assert_one_line(run("diff", member, member, "--quiet", "--html", tmp_path / "no" / "x.html"), "found no folder")


@pytest.mark.parametrize("arguments", [["--rule", "nearest"], ["--theta", "0.96"], ["--fail-below", "1.5"]])
def test_wrong_arguments_exit_2(member, arguments):
    assert run("diff", member, member, *arguments).returncode == 2
