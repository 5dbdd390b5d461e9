"""Corpus and settings of the embedded study: the interpreter's own standard library as text, in two sets of documents.

Nothing is downloaded, and torch is not imported. `corpus.json` lists the standard library's files (no tests, no generated
tables) with their hashes as they stood when the model was trained; `model/` is what `train_model.py` saved.
"""

import hashlib
import json
import sysconfig
from pathlib import Path
from typing import NamedTuple

from seedscope.engine.contract.recipe import StudyConfig, TrainConfig, as_parameters
from seedscope.engine.contract.schema import SCHEMA_VERSION

HERE = Path(__file__).parent
MODEL_DIR = HERE / "model"
CORPUS_LIST = HERE / "corpus.json"
# encodings/ and pydoc_data/ are generated tables: they would flatter bits per byte and fill the token set with noise.
SKIPPED_PARTS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "encodings", "pydoc_data", "lib-dynload"}
HELD_OUT_EVERY = 10
SOURCE = "python:stdlib"  # stands for the corpus as a token source
STUDY = StudyConfig(
    name="pystdlib",
    ensemble="topk-512",
    model=str(MODEL_DIR),
    hookpoint="blocks.2.hook_attn_out",
    train=TrainConfig(d_sae=512, k=10, n_tokens=1_250_000, batch=512, lr=4e-3, silent_after=50_000),
)


class Corpus(NamedTuple):
    """Source files of the running interpreter, split into two disjoint sets of documents."""

    train: list[tuple[str, str]]  # (path, text): the model and the SAEs are trained on these
    held_out: list[tuple[str, str]]  # (path, text): every figure of the study is measured on these
    n_listed: int  # files in the committed list
    n_differ: int  # listed files whose text differs here
    n_missing: int  # listed files that this interpreter does not have

    @property
    def remark(self) -> str:
        """One line for the page: which text the study stands on."""
        if not (self.n_differ or self.n_missing):
            return f"all {self.n_listed} listed standard-library files are identical here"
        return (
            f"of {self.n_listed} listed standard-library files {self.n_differ} differ and {self.n_missing} are "
            "missing in this interpreter; the study is built on what is there"
        )


def is_held_out(path: str) -> bool:
    """Assign a file to the held-out split by its path alone, so that the split is the same on every Python version."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % HELD_OUT_EVERY == 0


def file_hash(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def standard_library_files() -> dict[str, str]:
    """Read every eligible source file of the running interpreter: {posix path relative to the library: text}."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not SKIPPED_PARTS.intersection(relative.parts):
            files[relative.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    return files


def load_corpus() -> Corpus:
    """Read the listed files that exist here, and say how many are not as they were when the model was trained."""
    listed: dict[str, str] = json.loads(CORPUS_LIST.read_text())["files"]
    root = Path(sysconfig.get_path("stdlib"))
    train: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    n_differ, n_missing = 0, 0
    for path, expected in listed.items():
        file = root / path
        if not file.is_file():
            n_missing += 1
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        n_differ += file_hash(text) != expected
        (held_out if is_held_out(path) else train).append((path, text))
    if not train or not held_out:
        raise ValueError(
            f"found {len(train)} training and {len(held_out)} held-out files of the standard library under {root}, "
            "expected some of each; this interpreter ships without its source text, so run SeedScope with one that "
            "has it (python.org, Debian, conda and pyenv builds do)"
        )
    return Corpus(train, held_out, len(listed), n_differ, n_missing)


def built_from(corpus: Corpus | None = None) -> str:
    """16 hex digits over everything that the embedded study is built from: settings, schema version, model, texts.

    A study whose `CURRENT` file names another value is built again. Costs a tenth of a second; loads no torch.
    """
    corpus = corpus or load_corpus()
    settings = as_parameters(STUDY) | {
        "model": hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    }
    sha = hashlib.sha256(json.dumps([SCHEMA_VERSION, settings], sort_keys=True).encode())
    for path, text in corpus.train + corpus.held_out:
        sha.update(f"{path}:{file_hash(text)}".encode())
    return sha.hexdigest()[:16]
