"""A whole study from one file: imported, trained, with its control; run again, nothing is computed twice."""

import shutil
from pathlib import Path

import duckdb
import pytest

from seedscope.app.store.studies import Studies
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.run import run_file
from seedscope.engine.studies.studyfile.read import read_study_file
from support.layouts import write_saelens

FILE = """[study]
name = "whole"
control = "random-weights"
[model]
path = "{model}"
hookpoint = "blocks.2.hook_resid_post"
[tokens]
source = "texts/*.txt"
n_ctx = 32
eval = 300
[[ensemble]]
name = "trained"
train = {{ variant = "topk", d_sae = 24, k = 2, seeds = 2, tokens = 2048, batch = 256 }}
[[ensemble]]
name = "imported"
import = ["runs/seed_*"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus, ensemble_saes: SAE) -> Path:
    folder = tmp_path_factory.mktemp("file")
    (folder / "texts").mkdir()
    for i, (_, text) in enumerate(corpus.train[:12]):
        (folder / "texts" / f"{i}.txt").write_text(text)
    run = {seed: {n: t.numpy() for n, t in ensemble_saes.member_tensors(seed).items()} for seed in (0, 1)}
    write_saelens(folder / "runs", run, ensemble_saes.k)
    (folder / "study.toml").write_text(FILE.format(model=stdlib.MODEL_DIR))
    return folder


@pytest.fixture(scope="module")
def root(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    run_file(read_study_file(folder / "study.toml"), root, device="cpu", progress=Progress(quiet=True))
    return root


def parts(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("seed-*.npz")}


def test_everything_that_the_file_asks_for_is_published(root):
    store = Studies(root).get("whole")
    control = {name: row.control_of for name, row in store.ensembles.items()}
    assert control == {"trained": None, "trained-random-weights": "trained", "imported": None}
    assert {name: row.origin for name, row in store.ensembles.items()}["imported"] == "imported"
    assert all(set(row.computed) >= {"match", "activity", "ablate"} for row in store.ensembles.values())


def test_the_control_reads_another_model_on_the_same_tokens(root, tmp_path):
    (path,) = (root / "whole").glob("study-*.duckdb")
    # A copy: DuckDB lets one process open a file with one configuration only.
    with duckdb.connect(str(shutil.copy(path, tmp_path)), read_only=True) as connection:
        loss = dict(connection.sql("SELECT ensemble, min(loss_own) FROM Member GROUP BY 1").fetchall())
        tokens = dict(connection.sql("SELECT ensemble, max(n_tokens) FROM Feature GROUP BY 1").fetchall())
    assert len(set(tokens.values())) == 1
    assert (
        loss["imported"] == loss["trained"] < 5 < loss["trained-random-weights"]
    )  # ln 4096 = 8.3 nats: it knows nothing


def test_run_again_it_computes_nothing(folder, root):
    before, plan = parts(root), catalogue.read(root / "whole")
    run_file(read_study_file(folder / "study.toml"), root, device="cpu", progress=Progress(quiet=True))
    assert parts(root) == before
    assert catalogue.read(root / "whole") == plan
