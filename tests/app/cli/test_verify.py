"""`seedscope verify` names every file that is not as it was written; analyses do not compute with one, and compute parts again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seedscope.engine.contract.index.layout import index_folder
from seedscope.engine.contract.published import published
from seedscope.engine.saes import sae
from seedscope.engine.store.parts import DamagedPartError, Parts
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.publish import publish
from support.commands import run


@pytest.fixture
def root(study_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(study_root / "small", tmp_path / "root" / "small")
    return tmp_path / "root"


@pytest.fixture
def bare(make_sae: Callable[..., sae.SAE], tmp_path: Path) -> Path:
    """A study of three SAEs without a model."""
    make_sae(members=3, dtype="float32").save(tmp_path / "files")
    enrol(tmp_path / "root", "bare", "topks", sorted((tmp_path / "files").glob("*.safetensors")), shared_start="no")
    analyse(tmp_path / "root" / "bare")
    publish(tmp_path / "root" / "bare")
    return tmp_path / "root" / "bare"


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    path.write_bytes(data)


def one(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def test_a_whole_study_is_whole(root):
    done = run("verify", "small", "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("1 study: all whole\n")
    assert run("verify", "--root", root, "--quiet").stdout.count("\n") == 1


@pytest.mark.parametrize(
    "pattern",
    [
        "study-*.duckdb", "sae/*/*/seed-2.safetensors", "sae/*/*/trace.json", "sae/*/*/along/step-*/seed-1.safetensors",
        "parts/*/match/*/seed-1.npz", "parts/*/activity/*/seed-0.npz", "parts/*/loss/*/about.json", "parts/evaluation.json",
        "parts/*.npz", "study.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["flipped", "cut"]
)
def test_every_damaged_file_is_named(root, pattern, damage):
    path = one(root / "small", pattern)
    if path.name == "study.json":  # has no checksum, for people may edit it: only what makes no sense is found
        damage = lambda path: path.write_text("{")  # noqa: E731
    damage(path)
    done = run("verify", "small", "--root", root, "--quiet")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    folder = path.parent.name if "parts/*/" in pattern else path.name
    assert folder in done.stdout, done.stdout
    assert "seedscope analyze small" in done.stdout or "again" in done.stdout


@pytest.mark.parametrize("name", ["cosines-argmax.npy", "status.npy", "texts.arrow", "order-random.npy"])
def test_a_damaged_index_is_made_again(root, name):
    index = index_folder(root / "small" / published(root / "small").name)
    path = index / "ensemble-topk-96" / name
    before = path.read_bytes()
    flip(path)
    done = run("verify", "small", "--root", root, "--quiet")
    assert done.returncode == 0
    assert f"{name} is not as it was written; made again" in done.stdout
    assert path.read_bytes() == before


def test_a_study_that_is_not_there_is_one_line(root):
    for name in ("nothing", "../small"):
        done = run("verify", name, "--root", root)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1


# -- who computes with it ------------------------------------------------------------------------------------------


def test_an_analysis_does_not_compute_with_a_flipped_bit_in_an_sae(bare):
    path = one(bare, "sae/*/*/seed-1.safetensors")
    flip(path)
    before = (bare / "CURRENT").read_text()
    for command in (("analyze", "bare"), ("pool", "bare", "topks", "--tokens", "0")):
        done = run(*command, "--root", bare.parent, "--quiet")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert str(path) in done.stderr
        assert "is not the SAE" in done.stderr
    assert (bare / "CURRENT").read_text() == before


@pytest.mark.parametrize("name", ["seed-1.npz", "about.json", "sums.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"], ids=["flipped", "empty", "other"])
def test_a_damaged_part_counts_as_absent_and_is_computed_again(bare, name, content, caplog):
    path = one(bare, f"parts/topks/match/*/{name}")
    before = (bare / "CURRENT").read_text()
    if content is None:
        flip(path)
    else:
        path.write_bytes(content)
    done = run("analyze", "bare", "--root", bare.parent, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "counts as absent and is computed again" in caplog.text
    assert (bare / "CURRENT").read_text() == before  # the same store as before, digest and all
    assert run("verify", "bare", "--root", bare.parent).returncode == 0


def test_what_only_publishes_refuses_a_damaged_part(bare):
    flip(one(bare, "parts/topks/match/*/seed-0.npz"))
    with pytest.raises(DamagedPartError, match="seedscope analyze bare"):
        publish(bare)


def test_a_part_of_a_version_without_checksums_is_read_and_checked_by_those_of_zip(bare):
    path = one(bare, "parts/topks/match/*/sums.json")
    path.unlink()
    parts = Parts(bare, "topks")
    assert parts.find("match") is not None
    flip(path.with_name("seed-2.npz"))
    assert parts.find("match") is None


def test_a_damaged_trace_is_named_and_not_published(root):
    path = one(root / "small", "sae/*/*/trace.json")
    content = json.loads(path.read_text())
    content["points"][0]["tokens"] += 1  # still a trace, and another one
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"trace.json is damaged"):
        publish(root / "small")
