"""A full disk: the queue goes on, a job that was refused is not queued, commands end in one line; then there is room again."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from seedscope.app.jobs.kinds import Job, JobRefusedError
from seedscope.app.jobs.queue import Jobs
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.saes import sae
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.publish import publish
from support.commands import assert_one_line, run_alone

UNTIL_S = 60


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB; its users are ended before it goes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def root(disk: Path, make_sae: Callable[..., sae.SAE], tmp_path: Path) -> Path:
    make_sae(members=3, dtype="float32").save(tmp_path / "files")
    enrol(disk / "root", "bare", "topks", sorted((tmp_path / "files").glob("*.safetensors")), shared_start="no")
    analyse(disk / "root" / "bare")
    publish(disk / "root" / "bare")
    return disk / "root"


def fill(disk: Path) -> None:
    """Write until nothing fits any more."""
    with open(disk / "filler", "ab", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                continue


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


def ended(jobs: Jobs, id: str) -> Job:
    end = time.monotonic() + UNTIL_S
    while (job := jobs.get(id)) is None or job.is_active:
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


@pytest.fixture
def jobs(root: Path) -> Iterator[Jobs]:
    jobs = Jobs(root, "cpu")
    jobs.resume()
    yield jobs
    jobs.close()


@pytest.mark.slow
def test_a_job_that_is_refused_is_not_queued_and_with_room_the_queue_goes_on(jobs, disk, root):
    ended(jobs, jobs.start("analyze", "bare", {}).id)
    fill(disk)
    for _ in range(3):
        with pytest.raises(JobRefusedError, match="No space left") as refused:
            jobs.start("analyze", "bare", {"only": "match"})
        assert refused.value.status == 503
    assert [job.state for job in jobs.all()] == ["done"]
    assert [path.name for path in (root / "jobs").iterdir() if path.is_dir()] == [jobs.all()[0].id]
    make_room(disk)
    assert ended(jobs, jobs.start("analyze", "bare", {"only": "match"}).id).state == "done"


@pytest.mark.slow
def test_a_disk_that_fills_while_a_job_runs_ends_that_job_and_not_the_queue(jobs, disk, root):
    shutil.rmtree(root / "bare" / "parts")
    first = jobs.start("analyze", "bare", {})
    fill(disk)
    job = ended(jobs, first.id)
    assert job.state in ("failed", "done")
    make_room(disk)
    assert ended(jobs, jobs.start("analyze", "bare", {}).id).state == "done"
    end = time.monotonic() + UNTIL_S  # what could not be written then is written now: another server sees it as well
    while (seen := Jobs(root).get(first.id)) is None or seen.is_active:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert seen.state == job.state


def test_pages_of_a_root_on_a_full_disk_are_served(root, disk):
    fill(disk)
    with TestClient(create_app(Settings(root)), base_url="http://127.0.0.1") as client:
        for page in ("/", "/s/bare", "/s/bare/topks/features", "/s/bare/topks/features.csv", "/jobs"):
            assert client.get(page).status_code == 200, page
        sent = {"kind": "analyze", "study": "bare"}
        answer = client.post("/jobs", data=sent, headers={"Origin": "http://127.0.0.1"}, follow_redirects=False)
        assert answer.status_code == 503
        assert client.get("/jobs.json").json()["jobs"] == []


@pytest.mark.slow
def test_commands_end_in_one_line_and_go_on_when_there_is_room(root, disk, tmp_path):
    files = sorted(map(str, (tmp_path / "files").glob("*.safetensors")))
    shutil.rmtree(root / "bare" / "parts")
    fill(disk)
    for command in (
        ("analyze", "bare", "--quiet"),
        ("import", "new", "topks", *files),
        ("export", "bare", disk / "out"),
    ):
        done = run_alone(*command, "--root", root)
        assert_one_line(done, "o space left")
    make_room(disk)
    assert run_alone("analyze", "bare", "--quiet", "--root", root).returncode == 0
    assert run_alone("verify", "--root", root).returncode == 0


def test_a_limit_on_the_size_of_files_ends_a_command_in_one_line(tmp_path, make_sae):
    """The same without the right to mount: writing fails with another error."""
    make_sae(members=2, d_in=64, d_sae=256, dtype="float32").save(tmp_path / "files")
    files = " ".join(sorted(map(str, (tmp_path / "files").glob("*.safetensors"))))
    command = (
        f"ulimit -f 8; exec {sys.executable} -m seedscope.app.cli import new topks {files} --root {tmp_path / 'root'}"
    )
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, env=os.environ)
    assert_one_line(done, "File too large")
