"""What `seedscope doctor` finds: on this machine, and under roots that are broken in every way we know."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import metadata, requires, version
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

from seedscope.engine import doctor
from seedscope.engine.contract import schema, sockets
from seedscope.engine.doctor import SECTIONS, Finding, as_json, examine
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.import_ensemble import enrol

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


@pytest.fixture
def root(study_root: Path, tmp_path: Path) -> Path:
    """A whole copy of the published study that a test may break."""
    shutil.copytree(study_root, tmp_path / "root")
    return tmp_path / "root"


def store_of(root: Path) -> Path:
    return root / "small" / (root / "small" / "CURRENT").read_text().split()[0]


def found(root: Path, section: str) -> dict[str, Finding]:
    """{name: finding} of one section; none failed."""
    findings = examine(root)
    assert "failed" not in [finding.value for finding in findings]
    return {finding.name: finding for finding in findings if finding.section == section}


def study(root: Path) -> Finding:
    return found(root, "studies")["small"]


@pytest.fixture
def sources(make_sae: Callable[..., SAE], tmp_path: Path) -> Path:
    """A folder of three SAE files."""
    make_sae(dtype=np.float32).save(tmp_path / "sources")
    return tmp_path / "sources"


# -- the machine -----------------------------------------------------------------------------------------------------


def test_versions_are_those_of_what_is_installed(tmp_path: Path):
    packages = found(tmp_path, "packages")
    for name in ("seedscope", "torch", "duckdb", "transformers", "fastapi", "numpy", "uvicorn"):
        assert packages[name].value == version(name)
        assert packages[name].fine
    required = {text.split(">")[0] for text in requires("seedscope") if "extra" not in text}
    assert required < set(packages)


def test_optional_packages_are_told_with_what_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    packages = found(tmp_path, "packages")
    for name, command in (
        ("datasets", "'seedscope[hub]'"),
        ("faiss-cpu", "'seedscope[bench]'"),
        ("triton", "install triton"),
    ):
        assert packages[name].value == "not installed"
        assert packages[name].fine
        assert command in packages[name].remark
    for extra in set(metadata("seedscope").get_all("Provides-Extra")) - {
        "test",
        "audit",
        "release",
    }:  # those are of its makers
        assert any(f"'seedscope[{extra}]'" in each.remark for each in packages.values()), extra
    assert not packages["duckdb"].fine
    assert "pip install 'duckdb>=" in packages["duckdb"].remark


def test_the_device_and_the_kernel_are_those_that_are_used(tmp_path: Path):
    device = found(tmp_path, "device")
    assert device["device"].value.startswith("cuda" if torch.cuda.is_available() else "cpu")
    kernel = device["kernel for best cosines"]
    assert (kernel.value, kernel.remark) == doctor.choice(torch.device(device["device"].value.split()[0]))
    assert ("device memory" in device) == torch.cuda.is_available()
    (on_cpu,) = [each for each in examine(tmp_path, "cpu") if each.name == "device"]
    assert on_cpu.value.startswith("cpu")
    assert on_cpu.fine


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told(tmp_path: Path):
    (device,) = [each for each in examine(tmp_path, "cuda") if each.section == "device"]
    assert not device.fine
    assert "use --device auto or cpu" in device.remark


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_told_with_its_memory(tmp_path: Path):
    device = found(tmp_path, "device")
    assert torch.cuda.get_device_name() in device["device"].value
    assert device["device memory"].value.endswith(doctor._size(torch.cuda.mem_get_info()[1]))
    assert device["kernel for best cosines"].fine


def test_memory_and_space_are_this_machines(tmp_path: Path):
    available = found(tmp_path, "machine")["memory"].value.split(" available of ")
    assert available[-1] == doctor._size(doctor._memory()[1])
    free = found(tmp_path, "places")["free space there"].value
    assert abs(doctor_bytes(free) - shutil.disk_usage(tmp_path).free) < 0.2 * shutil.disk_usage(tmp_path).free


def doctor_bytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * 1024 ** ["bytes", "KiB", "MiB", "GiB", "TiB"].index(unit)


@pytest.mark.parametrize(
    ("n_bytes", "size"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**40 * 2000, "2000 TiB")]
)
def test_sizes_in_a_unit_that_people_read(n_bytes: int, size: str):
    assert doctor._size(n_bytes) == size


def test_little_memory_and_space_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 2**60)
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 2**60)
    assert found(tmp_path, "machine")["memory"].remark.startswith("little") == (doctor._memory()[0] is not None)
    assert not found(tmp_path, "places")["free space there"].fine


# -- places ----------------------------------------------------------------------------------------------------------


def test_a_root_that_is_not_there_yet_is_fine(tmp_path: Path):
    places = found(tmp_path / "a" / "b", "places")
    assert places["root"].fine
    assert "made when a study is built" in places["root"].value
    assert list(tmp_path.iterdir()) == []
    assert "seedscope demo" in found(tmp_path / "a", "studies")["studies"].remark


def test_a_root_that_is_a_file_is_told(tmp_path: Path):
    (tmp_path / "root").touch()
    for path in (tmp_path / "root", tmp_path / "root" / "below"):
        place = found(path, "places")["root"]
        assert not place.fine
        assert "is a file, expected a folder; choose another folder with --root DIR" in place.remark


@not_as_root
def test_a_root_that_cannot_be_written_is_told(tmp_path: Path):
    tmp_path.chmod(0o500)
    place = found(tmp_path, "places")["root"]
    tmp_path.chmod(0o700)
    assert not place.fine
    assert "Permission denied" in place.remark


def test_a_root_on_a_file_system_that_takes_no_files_is_told():
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc")
    place = found(Path("/proc"), "places")["root"]  # even root writes nothing there
    assert not place.fine
    assert "no file can be written there" in place.remark


def test_the_live_engines_folder_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        live = found(tmp_path, "places")["live engine's folder"]
        assert live == Finding(
            "places", "live engine's folder", str(sockets.address(tmp_path).parent), True, live.remark
        )
        assert "not running" in live.remark
        with open(sockets.address(tmp_path).with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert found(tmp_path, "places")["live engine's folder"].remark == "live engine running"
        sockets.address(tmp_path).parent.chmod(0o755)
        live = found(tmp_path, "places")["live engine's folder"]
        assert not live.fine
        assert "only you can open" in live.remark


# -- studies ---------------------------------------------------------------------------------------------------------


def test_a_published_study_is_described_and_fine(root: Path):
    whole = study(root)
    assert whole.fine
    assert whole.remark == ""
    assert whole.value.startswith(f"topk-96 (4 x 96: {', '.join(schema.ANALYSES)}), ")
    size = sum(path.stat().st_size for path in (root / "small").rglob("*") if path.is_file())
    assert whole.value.endswith(doctor._size(size))
    assert len(found(root, "studies")) == 1


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1, 0.001, 0])
def test_a_store_that_was_cut_is_damaged(root: Path, kept: float):
    path = store_of(root)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    cut = study(root)
    assert not cut.fine
    assert f"damaged, {path.name} cannot be read" in cut.value
    assert cut.remark == "run: seedscope analyze small"


@pytest.mark.parametrize("found_version", [1, schema.SCHEMA_VERSION + 1])
def test_a_store_of_another_schema_is_told_from_a_damaged_one(root: Path, found_version: int):
    with duckdb.connect(str(store_of(root))) as connection:
        connection.execute(f"UPDATE Study SET schema_version = {found_version}")
    other = study(root)
    assert not other.fine
    assert other.value.startswith("of another schema: topk-96 (4 SAEs), ")
    assert f"has schema {found_version}, this version reads " in other.remark
    assert "seedscope analyze small" in other.remark


def test_a_store_that_is_gone_is_told(root: Path):
    store_of(root).unlink()
    gone = study(root)
    assert (gone.fine, gone.remark) == (False, "run: seedscope analyze small")
    assert gone.value.startswith("damaged, its store is gone")


def test_a_study_without_a_catalogue_is_told_another_way_out(root: Path):
    (root / "small" / catalogue.FILE).unlink()
    assert study(root).fine
    store_of(root).write_bytes(b"")
    assert "seedscope demo" in study(root).remark


def test_a_damaged_catalogue_is_told(root: Path):
    (root / "small" / catalogue.FILE).write_text("{")
    broken = study(root)
    assert not broken.fine
    assert str(root / "small" / catalogue.FILE) in broken.remark


def test_sae_files_that_are_gone_are_counted(root: Path):
    next((root / "small" / "sae").glob("*/*/seed-2.safetensors")).unlink()
    lost = study(root)
    assert not lost.fine
    assert lost.remark.startswith("1 of 4 SAE files are gone")


def test_what_was_imported_and_not_analysed_is_told_with_the_command(root: Path, sources: Path):
    enrol(root, "mine", "relu", [sources])
    enrol(root, "small", "more", [sources])
    studies = found(root, "studies")
    assert studies["mine"].fine
    assert studies["mine"].value.startswith("imported, not analysed: relu (3 SAEs), ")
    assert studies["mine"].remark == "run: seedscope analyze mine"
    assert studies["small"].value.startswith("topk-96 (4 x 96")
    assert studies["small"].remark == "imported, not analysed: more; run: seedscope analyze small"


def test_leftovers_of_interrupted_runs_are_told_with_their_size(root: Path):
    assert "small: leftovers" not in found(root, "studies")
    sizes = {
        "scratch/train/shard-0.npy": 3000, "study-unpublished.tmp": 500, "sae/topk-96/x/seed-0.tmp": 20,
        "parts/topk-96/match/unfinished/seed-0.npz": 10, "sae/.more-unfinished/seed-1.safetensors": 6,
    }  # fmt: skip
    for name, size in sizes.items():
        path = root / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    left = found(root, "studies")["small: leftovers"]
    assert not left.fine
    assert left.value.endswith(", .., 3.5 KiB")
    assert study(root).fine


def test_a_run_that_never_published_is_told(tmp_path: Path):
    (tmp_path / "half" / "scratch").mkdir(parents=True)
    studies = found(tmp_path, "studies")
    assert studies["half"].value.startswith("nothing published")
    assert not studies["half"].fine
    assert "half: leftovers" in studies


def test_what_a_run_is_working_on_is_not_left_over(root: Path):
    (root / "small" / "scratch").mkdir()
    with open(root / "small" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        studies = found(root, "studies")
        assert studies["small"].remark == "a run is changing it right now"
        assert "small: leftovers" not in studies


def test_a_folder_whose_name_no_address_can_hold_is_told(root: Path):
    (root / "small").rename(root / "Small Study")
    (named, _) = [each for each in examine(root) if each.name == "Small Study"]
    assert not named.fine
    assert "rename the folder" in named.remark


def test_other_folders_are_no_studies(root: Path):
    (root / "notes").mkdir()
    (root / "file.txt").touch()
    assert set(found(root, "studies")) == {"small"}


def test_what_nobody_thought_of_is_a_finding_and_no_traceback(root: Path):
    (root / "small" / catalogue.FILE).unlink()
    (root / "small" / catalogue.FILE).mkdir()
    (root / "other").mkdir()
    (root / "other" / "CURRENT").write_bytes(b"\xff\xfe")
    findings = {each.name: each for each in examine(root)}
    assert (findings["small"].value, findings["small"].fine) == ("failed", False)
    assert "IsADirectoryError" in findings["small"].remark
    assert not findings["other"].fine
    assert "kernel for best cosines" in findings


# -- as JSON ---------------------------------------------------------------------------------------------------------


def test_the_json_holds_every_finding_by_section(root: Path):
    findings = examine(root)
    report = json.loads(json.dumps(as_json(findings)))
    assert (report["format"], report["version"], report["seedscope"]) == ("seedscope.doctor", 1, version("seedscope"))
    assert tuple(report["sections"]) == SECTIONS
    again = [Finding(section, **line) for section, lines in report["sections"].items() for line in lines]
    assert again == findings
    assert report["fine"] == all(each.fine for each in findings)
    assert as_json([Finding("machine", "x", "y", fine=False)])["fine"] is False
