"""A small study whose work is units, and everything that it holds, to be compared between executors."""

import hashlib
import shutil
from pathlib import Path

import duckdb
from safetensors.torch import load_file

from seedscope.engine.contract.published import published
from seedscope.engine.demo import stdlib
from seedscope.engine.executors.open_executor import opened
from seedscope.engine.executors.settings import ExecutorSettings
from seedscope.engine.progress import Progress
from seedscope.engine.studies.run import run_file
from seedscope.engine.studies.studyfile.read import read_study_file

NAME = "units"
FILE = """[study]
name = "units"
analyses = ["match", "activity", "ablate", "explain", "subspaces"]
[model]
path = "{model}"
hookpoint = "blocks.2.hook_resid_post"
[tokens]
source = "texts/*.txt"
n_ctx = 64
eval = 3000
[[ensemble]]
name = "trained"
train = {{ variant = "topk", d_sae = 48, k = 2, seeds = {seeds}, tokens = 8192, batch = 256, lr = 0.01 }}
"""


def write_study_file(folder: Path, corpus: stdlib.Corpus, *, seeds: int = 4) -> Path:
    """A study file in a folder, with its texts."""
    (folder / "texts").mkdir(parents=True)
    for i, (_, text) in enumerate(corpus.train[:12]):
        (folder / "texts" / f"{i}.txt").write_text(text)
    file = folder / "study.toml"
    file.write_text(FILE.format(model=stdlib.MODEL_DIR, seeds=seeds))
    return file


def run_with(file: Path, root: Path, settings: ExecutorSettings) -> Path:
    """Run the file through an executor; returns the study's folder."""
    with opened(settings, root) as executor:
        run_file(read_study_file(file), root, device="cpu", progress=Progress(quiet=True), executor=executor)
    return root / NAME


def digests(study: Path, copies: Path) -> dict[str, str]:
    """SHA-256 of every array file and SAE of a study by its path, and of the rows of every table of its store."""
    files = [*study.glob("parts/**/*.npz"), *study.glob("sae/**/trace.json")]
    found = {str(path.relative_to(study)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
    for path in study.glob("sae/**/*.safetensors"):  # their headers name metadata in any order
        tensors = {name: tensor.numpy().tobytes() for name, tensor in sorted(load_file(path).items())}
        found[str(path.relative_to(study))] = hashlib.sha256(repr(tensors).encode()).hexdigest()
    store = published(study)
    assert store is not None
    # A copy: DuckDB lets one process open a file with one configuration only.
    copies.mkdir(exist_ok=True)
    with duckdb.connect(str(shutil.copy(study / store.name, copies)), read_only=True) as connection:
        for (table,) in connection.sql("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall():
            rows = connection.sql(f'SELECT * FROM "{table}"').fetchall()
            found[f"table {table}"] = hashlib.sha256(repr(sorted(map(repr, rows))).encode()).hexdigest()
    return found
