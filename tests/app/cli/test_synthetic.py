"""`seedscope synthetic`: a small study end to end, what it refuses, and the defaults that --help tells."""

import json

import pytest

from seedscope.app.cli import synthetic
from seedscope.engine.contract.schema import SCHEMA_VERSION
from seedscope.engine.studies.synthetic.plan import NAME, SyntheticPlan, read
from support.commands import assert_one_line, run

SMALL = ("--n-free", 8, "--n-low", 40, "--r", 4, "--d-in", 16, "--rate-free", 0.1, "--rate-low", 0.05, "--d-sae", 16, "--k", 3,
         "--seeds", 2, "--samples", 2048, "--no-map")  # fmt: skip


def test_help_tells_the_defaults_of_the_engine():
    plan = SyntheticPlan()
    samples = plan.samples
    told = (synthetic.N_FREE, synthetic.N_LOW, synthetic.R, synthetic.D_IN, synthetic.RATE_FREE, synthetic.RATE_LOW)
    assert told == (samples.n_free, samples.n_low, samples.r, samples.d_in, samples.rate_free, samples.rate_low)
    assert synthetic.NAME == NAME
    assert len(plan.recipe.seeds) == synthetic.SEEDS
    assert plan.recipe.n_tokens == synthetic.SAMPLES
    assert plan.recipe.d_sae == samples.n_free + synthetic.WIDER
    assert plan.recipe.k == round(samples.active_free + samples.active_low) + synthetic.SPARE


@pytest.mark.slow
def test_a_study_is_made_told_and_found_again(tmp_path):
    done = run("synthetic", "--root", tmp_path, "--name", "tiny", *SMALL, "--noise", 0.05)
    assert done.returncode == 0, done.stderr
    assert "of the 8 free true features" in done.stdout
    assert "tiny/topk-16: 2 × 16 features" in done.stdout
    assert "SAEs in lockstep" in done.stderr
    plan = read(tmp_path / "tiny")
    assert (plan.samples.r, plan.samples.noise, plan.recipe.k, plan.recipe.seeds) == (4, 0.05, 3, (0, 1))
    again = run("synthetic", "--root", tmp_path, "--name", "tiny", *SMALL, "--noise", 0.05, "--quiet")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert again.stdout == done.stdout
    exported = run("export", "tiny", tmp_path / "out", "--format", "parquet", "--root", tmp_path, "--quiet")
    assert exported.returncode == 0, exported.stderr
    back = run("import", "back", tmp_path / "out", "--root", tmp_path, "--quiet")
    assert back.returncode == 0, back.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert read(tmp_path / "back") == plan
    measured = run("analyze", "back", "--only", "activity", "--root", tmp_path, "--quiet")
    assert measured.returncode == 0, measured.stderr
    assert "computed: match, activity" in measured.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--r", 200), "r is 200, expected 1 to d_in (128)"),
        (("--n-free", 0, "--n-low", 0), "expected at least one true feature"),
        (("--rate-low", 0), "rate_low is 0.0"),
        (("--rate-free", 1.5), "rate_free is 1.5"),
        (("--seeds", 1), "expected at least 2"),
        (("--samples", 10), "expected at least one batch"),
        (("--k", 500), "expected 1 to d_sae (160)"),
        (("--noise", -1), "--noise"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, arguments, says):
    done = run("synthetic", "--root", tmp_path / "root", *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "root").exists()


def test_a_name_that_is_a_page_or_another_study_is_refused(tmp_path):
    done = run("synthetic", "--root", tmp_path, "--name", "synthetic", "--quiet")
    assert_one_line(done, "'synthetic'", "is a page")
    assert list(tmp_path.iterdir()) == []
