"""`seedscope plan`: a table, JSON, and one line where it cannot plan."""

import json

import pytest

from seedscope.engine.demo import stdlib
from support.commands import assert_one_line, run
from support.paths import ROOT

EXAMPLES = sorted((ROOT / "engine" / "studies" / "planning").glob("*.toml"))
SHAPES = {
    "gpt2": ["--d-in", 768, "--layers", 12, "--parameters", 124_439_808, "--vocabulary", 50_257],
    "gemma": ["--d-in", 2304, "--layers", 26, "--parameters", 2_614_341_888, "--vocabulary", 256_000],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        f'[study]\nname = "planned"\n[model]\npath = "{stdlib.MODEL_DIR}"\nhookpoint = "blocks.2.hook_attn_out"\n'
        '[tokens]\nsource = "python:stdlib"\n[[ensemble]]\nname = "e"\ntrain = { seeds = 4, tokens = 200_000 }\n'
    )
    return path


def test_a_plan_names_every_stage_its_basis_and_what_is_assumed(file, tmp_path):
    done = run("plan", file, "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    for word in ("harvest", "train", "match", "publish", "total", "basis:"):
        assert word in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["format"], plan["version"]) == ("seedscope.plan", 1)
    assert plan["total"]["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in plan["stages"]))
    assert plan["total"]["memory"] == max(stage["memory"] for stage in plan["stages"])


def test_nothing_is_run(file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run("plan", file, "--gpu", "H100", "--gpus", 8).returncode == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_the_manual_are_planned(example):
    shape = SHAPES["gemma" if "gemma" in example.name else "gpt2"]
    done = run("plan", example, "--gpu", "H100", "--gpus", 8, "--markdown", *shape)
    assert done.returncode == 0, done.stderr
    assert "planned, not measured: 8 x H100" in done.stdout
    assert done.stdout.startswith("| stage |")


def test_there_are_three_examples():
    assert len(EXAMPLES) == 3


def test_what_cannot_be_planned_is_one_line(file, tmp_path):
    assert_one_line(run("plan", file, "--gpu", "TPU"), "H100", "RTX4090")
    assert_one_line(run("plan", file, "--gpus", 3), "--gpu H100")
    assert_one_line(run("plan", file, "--against", tmp_path), "found no times", "seedscope run")
    assert_one_line(run("plan", file, "--against", tmp_path, "--gpu", "H100"), "--against")
    file.write_text(file.read_text().replace(str(stdlib.MODEL_DIR), "nobody/nothing"))
    assert_one_line(run("plan", file), "nobody/nothing", "--d-in", "--vocabulary")


def test_a_bad_study_file_is_refused_as_by_run(file):
    file.write_text(file.read_text().replace("seeds = 4", "seeds = 4, colour = 1"))
    planned, ran = run("plan", file), run("run", file)
    assert_one_line(planned, "colour")
    assert planned.stderr == ran.stderr
