"""One small real study for all tests: the embedded model, a slice of the embedded corpus, the real pipeline and Writer."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

# One thread here and in every subprocess: the sizes are small, and equal thread counts make equal sums.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import duckdb
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.app.site.make import make_site
from seedscope.engine.activations.harvest import LanguageModel, load_model
from seedscope.engine.contract.index.layout import index_folder
from seedscope.engine.contract.recipe import StudyConfig
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.studies.run import run_study
from support.chat_server import ChatServer
from support.span_study import publish_spans
from support.studies import ENSEMBLE, LISTED, STUDY

LOCAL = "http://127.0.0.1"
# A shell that runs the tests in the background lets them ignore Ctrl-C, and whatever they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take longest, in seconds on two cores: begun first, so that no process is left with one while the other is idle.
LONGEST = {
    "test_checkpoints": 110, "test_run": 90, "test_explain": 90, "test_import": 80, "test_jobs": 70, "test_path": 60,
    "test_start_a_job": 55, "test_run_variants": 50, "test_analyse": 50, "test_pool": 40, "test_training_progress": 30,
    "test_try_text": 30, "test_anchor": 30,
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -LONGEST.get(item.path.stem, 0))


@pytest.fixture(scope="session")
def study_config() -> StudyConfig:
    """A recipe that fills every bucket within seconds: few tokens, a rate high enough to kill features, no revival."""
    train = replace(
        stdlib.STUDY.train, d_sae=96, k=2, seeds=(0, 1, 2, 3), n_tokens=40_000, batch=512, lr=0.03, silent_after=10**9
    )
    return replace(
        stdlib.STUDY, name=STUDY, ensemble=ENSEMBLE, hookpoint="blocks.2.hook_resid_post", n_ctx=64, train=train
    )


@pytest.fixture(scope="session")
def corpus() -> stdlib.Corpus:
    """Twenty training and two held-out documents of a few thousand characters."""
    whole = stdlib.load_corpus()
    return whole._replace(
        train=[document for document in whole.train if 3_000 < len(document[1]) < 20_000][:20],
        held_out=[document for document in whole.held_out if 2_000 < len(document[1]) < 9_000][:2],
    )


@pytest.fixture(scope="session")
def study_root(tmp_path_factory: pytest.TempPathFactory, study_config: StudyConfig, corpus: stdlib.Corpus) -> Path:
    """A root with one published study. Tests read it; those that write take a copy."""
    root = tmp_path_factory.mktemp("root")
    run_study(study_config, corpus, root, built_from="tests", loss_tokens=200, progress=Progress(quiet=True))
    return root


@pytest.fixture(scope="session")
def client(study_root: Path) -> Iterator[TestClient]:
    """A browser on this machine that looks at the small study."""
    with TestClient(create_app(Settings(study_root)), base_url=LOCAL) as client:
        yield client


@pytest.fixture(scope="session")
def site_folder(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static site of a quarter of the small study, in a folder with a space and a sign in its name."""
    folder = tmp_path_factory.mktemp("site") / "a site & more"
    return make_site(study_root, STUDY, folder, filter=f"id={LISTED}").folder


@pytest.fixture(scope="session")
def address() -> str:
    """Where the small study's ensemble lives."""
    return f"/s/{STUDY}/{ENSEMBLE}"


@pytest.fixture(scope="session")
def ensemble_saes(study_root: Path, study_config: StudyConfig) -> sae.SAE:
    """The trained members of the small study."""
    (folder,) = (study_root / STUDY / "sae" / ENSEMBLE).iterdir()
    return sae.load(folder, study_config.train.seeds)


@pytest.fixture(scope="session")
def language_model() -> LanguageModel:
    """The embedded language model."""
    return load_model(str(stdlib.MODEL_DIR))


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., sae.SAE]:
    """An untrained SAE with random tensors; decoder rows have all kinds of norms."""

    def make(
        *, members: int = 3, d_in: int = 6, d_sae: int = 20, k: int = 4, seed: int = 0, dtype=np.float64
    ) -> sae.SAE:
        rng = np.random.default_rng(seed)
        shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        tensors = {
            name: torch.from_numpy(rng.normal(size=(members, *shape)).astype(dtype)) for name, shape in shapes.items()
        }
        return sae.SAE(**tensors, k=k, seeds=tuple(range(members)))

    return make


@pytest.fixture
def own_root(study_root: Path, tmp_path: Path) -> Path:
    """A copy of the published study that a test may change."""
    folder = tmp_path / "root" / "small"
    folder.mkdir(parents=True)
    name = (study_root / "small" / "CURRENT").read_text().split()[0]
    for file in ("CURRENT", name):
        shutil.copy(study_root / "small" / file, folder)
    index = index_folder(study_root / "small" / name)
    shutil.copytree(index, folder / index.name)
    return folder.parent


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[ChatServer]:
    """A language model's server on this machine that answers at once."""
    with ChatServer(tmp_path) as chat:
        chat.control(delay_s=0)
        yield chat


@pytest.fixture(scope="session")
def stored(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict]]:
    """Run a statement on a copy of the published store, which the dashboard holds open: rows as dictionaries."""
    folder = study_root / STUDY
    path = shutil.copy(folder / (folder / "CURRENT").read_text().split()[0], tmp_path_factory.mktemp("stored"))

    def run(sql: str, *parameters: object) -> list[dict]:
        with duckdb.connect(str(path), read_only=True) as connection:
            return connection.sql(sql, params=list(parameters)).to_arrow_table().to_pylist()

    return run


@pytest.fixture(scope="session")
def span_root(
    tmp_path_factory: pytest.TempPathFactory, language_model: LanguageModel, corpus: stdlib.Corpus
) -> tuple[Path, sae.SAE]:
    """A root with one study in which two planted spans are shared, and its members. Tests read it."""
    root = tmp_path_factory.mktemp("spans")
    return root, publish_spans(root, language_model, corpus.held_out)
