"""Exports at a URL: the files of a local one, described last; what is not whole is refused by import."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from seedscope.engine.export.by_url import export_to, fetched_export
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from support.remote import contents, emptied_memory, files_in, put

STUDY = "small"
MEMORY = fsspec.filesystem("memory")


def without_times(files) -> dict[str, object]:
    manifest = json.loads(files["manifest.json"])
    manifest.pop("times")
    return {**files, "manifest.json": manifest}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root that this process fetches below, and an empty store behind `memory://`."""
    with emptied_memory(tmp_path / "root") as folder:
        yield folder


@pytest.fixture
def at_url(root: Path, exported: Path) -> str:
    return put(exported, "memory://bucket/out")


@pytest.mark.parametrize(
    "format", ["saelens", "spans", *(pytest.param(each, marks=pytest.mark.slow) for each in ("parquet", "json"))]
)
def test_a_format_at_a_url_holds_the_files_of_a_local_export(format, root, study_root, tmp_path):
    export(study_root, STUDY, tmp_path / "local", format=format)
    put_there = export_to(study_root, STUDY, "memory://bucket/out", format=format)
    there = contents("memory://bucket/out")
    assert without_times(there) == without_times(files_in(tmp_path / "local"))
    assert put_there == (len(there), sum(map(len, there.values())))
    assert [path for path in (root / ".urls").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda url: MEMORY.rm_file(f"{url}/manifest.json"),
            "found no manifest.json in memory://bucket/out, .*upload was stopped",
        ),
        (lambda url: MEMORY.rm_file(f"{url}/matches.parquet"), "found no memory://bucket/out/matches.parquet"),
        (
            lambda url: MEMORY.pipe_file(f"{url}/matches.parquet", b"cut"),
            "memory://bucket/out/matches.parquet has 3 bytes",
        ),
    ],
)
def test_a_half_uploaded_export_is_refused_and_leaves_nothing(damage, words, at_url, root):
    damage(at_url)
    with pytest.raises(ValueError, match=words) as refused:
        restore(at_url, root, "again")
    assert str(root / ".urls") not in str(refused.value)
    assert not (root / "again").exists()


def test_an_export_comes_back_from_its_url_as_the_same_store_without_what_lies_beside_it(at_url, root, study_root):
    MEMORY.pipe_file(f"{at_url}/notes/large.bin", b"x")
    restored = restore(at_url, root)
    assert restored.name == (study_root / STUDY / "CURRENT").read_text().splitlines()[0]
    assert not list(root.rglob("large.bin"))


def test_an_export_is_fetched_once_and_a_stopped_fetch_goes_on(at_url, root):
    folder = fetched_export(at_url)
    inodes = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    (folder / "matches.parquet").unlink()
    fetched_export(at_url)
    assert {path.name for path, inode in inodes.items() if path.stat().st_ino != inode} <= {"matches.parquet"}
    assert files_in(folder) == contents(at_url)


def test_a_place_that_holds_something_is_refused_before_any_work(root, tmp_path):
    MEMORY.pipe_file("memory://bucket/out/mine.txt", b"mine")
    with pytest.raises(ValueError, match=r"has 1 files in it .*mine.txt.*expected a new or empty folder"):
        export_to(tmp_path / "no root", STUDY, "memory://bucket/out")
    assert contents("memory://bucket/out") == {"mine.txt": b"mine"}


def test_an_export_that_fails_leaves_nothing_at_the_url(root, study_root):
    with pytest.raises(ValueError, match="found no study 'none'"):
        export_to(study_root, "none", "memory://bucket/out")
    assert contents("memory://bucket") == {}
