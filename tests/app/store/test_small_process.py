"""What keeps a web process small: bounded settings of DuckDB, an index made by another process, results instead of columns."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from seedscope.app.store import feature_index
from seedscope.app.store.studies import Studies
from seedscope.app.store.suggestions import Suggestions
from seedscope.engine.contract.environment import INDEX_FOLDER
from seedscope.engine.contract.index import opening
from seedscope.engine.contract.index.layout import index_folder
from support.paths import ROOT
from support.studies import ENSEMBLE, STUDY


@pytest.fixture
def store(study_root):
    return Studies(study_root).get(STUDY)


def alone(code: str, *arguments: object) -> str:
    """What a program prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout


def test_a_web_process_computes_in_one_thread_with_bounded_memory_and_hands_neither_on(study_root):
    code = """
import os, sys
from pathlib import Path
from seedscope.app.cli.web import THREAD_VARIABLES, create_small_app
from seedscope.app.settings import Settings
for name in THREAD_VARIABLES:
    os.environ.pop(name, None)
os.environ["OMP_NUM_THREADS"] = "7"
app = create_small_app(Settings(Path(sys.argv[1])))
import threadpoolctl
print({library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"})
print([os.environ.get(name) for name in THREAD_VARIABLES])
store = app.state.studies.get(sys.argv[2])
print(store.fetch("SELECT current_setting('memory_limit'), current_setting('threads')"))
"""
    blas, variables, settings = alone(code, study_root, STUDY).splitlines()
    assert blas == "{1}"
    assert variables == "['7', None, None, None]"
    assert settings == "[('122.0 MiB', 2)]"


def test_where_nothing_can_be_written_results_stay_in_memory(tmp_path):
    code = """
import os, sys
from pathlib import Path
from seedscope.engine.contract import duckdb_settings as settings
os.access = lambda path, mode: False
settings.keep_small(Path(sys.argv[1]))
print(settings.READ_ONLY["memory_limit"])
"""
    assert alone(code, tmp_path).strip() == "2GB"


def copy_without_index(path: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(path, folder)
    return folder / path.name


def test_a_lacking_index_is_made_once_by_another_process(store, tmp_path, monkeypatch):
    path = copy_without_index(store.path, tmp_path / "own")
    former = path.with_suffix(".index1")  # of a layout that is not read any more
    former.mkdir()
    begun = []
    run = subprocess.run
    monkeypatch.setattr(opening.subprocess, "run", lambda *args, **more: begun.append(args) or run(*args, **more))
    with ThreadPoolExecutor(3) as people:
        folders = set(people.map(opening.open_index_apart, [path] * 3))
    assert folders == {index_folder(path)}
    assert len(begun) == 1
    assert (index_folder(path) / "about.json").exists()
    assert not former.exists()


def test_an_index_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "study-0.duckdb").write_bytes(b"no store")
    with pytest.raises(RuntimeError, match=r"the index of .*study-0.duckdb was not made: .*not a valid DuckDB"):
        opening.open_index_apart(tmp_path / "study-0.duckdb")


def test_an_index_beside_which_nothing_can_be_written_goes_where_workers_share_it(store, tmp_path, monkeypatch):
    path = copy_without_index(store.path, tmp_path / "own")
    index_folder(path).write_text("in the way")
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv(INDEX_FOLDER, str(shared))
    opening.temporary_folder.cache_clear()
    try:
        folder = opening.open_index_apart(path)
        assert folder.parent == shared
        assert (folder / "about.json").exists()
    finally:
        opening.temporary_folder.cache_clear()


def test_words_that_are_suggested_are_the_most_frequent_that_begin_so(store):
    suggestions, index = Suggestions(store), store.index(ENSEMBLE)
    counts = dict(zip(index.words, index.word_counts().tolist(), strict=True))
    for word in [*index.words[:40], *{word[:1] for word in index.words}, *{word[:2] for word in index.words}]:
        matching = [each for each in counts if each.startswith(word)]
        expected = sorted(matching, key=lambda each: (each != word, -counts[each], each))[:5]
        said = [each for each in suggestions.of(ENSEMBLE, word) if each.hit == "explanation"]
        assert [(each.text, each.n_features) for each in said] == [(each, counts[each]) for each in expected], word


def test_mapped_pages_are_given_back_when_they_are_many(store, monkeypatch):
    index = store.index(ENSEMBLE)
    before = np.array(index.column("n_active"))
    released = []
    monkeypatch.setattr(type(index), "release", lambda self: released.append(self))
    monkeypatch.setattr(feature_index, "MOST_MAPPED", 1 << 60)
    store.index(ENSEMBLE)
    assert released == []
    monkeypatch.setattr(feature_index, "MOST_MAPPED", -(1 << 60))
    assert store.index(ENSEMBLE) is index
    assert index in released
    np.testing.assert_array_equal(index.column("n_active"), before)
    assert feature_index._mapped_bytes() > 1 << 20
