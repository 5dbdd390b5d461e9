"""The protocol of S3 for real: a server of it in this process, reached by s3fs; skipped where moto or s3fs is not installed."""

import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.recorded import open_recorded
from seedscope.engine.export.by_url import export_to
from seedscope.engine.export.restore import restore
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.store.catalogue import MemberPlan
from seedscope.engine.studies.import_ensemble import described
from seedscope.engine.urls.cache import fetch
from support.paths import CHECKPOINTS
from support.remote import contents, put

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),  # s3fs leaves its connections to the collector of garbage
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(address: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket, with credentials in the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    post(f"{address}/moto-api/reset")
    anew()
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    anew()


def post(address: str, content: bytes = b"") -> None:
    with urllib.request.urlopen(
        urllib.request.Request(address, content, {"Content-Type": "text/plain"}, method="POST")
    ):
        pass


def anew() -> None:
    """Have the next file system read its credentials again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def kept_of(path: Path | str) -> MemberPlan:
    """What a catalogue says of an SAE."""
    return described(replace(read(path), seed=0))


def test_an_sae_is_the_same_and_a_new_one_in_its_place_is_noticed(bucket):
    folder = CHECKPOINTS / "saelens" / "topk"
    url = put(folder, f"{bucket}/runs/seed0")
    assert kept_of(url).digest == kept_of(folder).digest
    assert kept_of(url).source == url
    other = CHECKPOINTS / "saelens" / "jumprelu"
    put(other, url)
    assert kept_of(url).digest == kept_of(other).digest


def test_texts_and_activations_are_the_same(bucket, tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
        put(tmp_path / name, f"{bucket}/corpus/{name}")
    assert list(documents(f"{bucket}/corpus/*.txt")) == [(f"{bucket}/corpus/{n}", n) for n in ("a.txt", "b.txt")]
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    url = put(tmp_path / "rows.npy", f"{bucket}/rows.npy")
    assert open_recorded(url).check() == open_recorded(tmp_path / "rows.npy").check()


def test_a_large_file_arrives_whole_and_is_not_fetched_again(bucket, tmp_path):
    content = np.random.default_rng(0).bytes(60_000_000)  # beyond one part of an upload
    (tmp_path / "large.bin").write_bytes(content)
    fsspec.filesystem("s3").put_file(str(tmp_path / "large.bin"), f"{bucket}/large.bin")
    path = fetch(f"{bucket}/large.bin")
    assert path.read_bytes() == content
    inode = path.stat().st_ino
    assert fetch(f"{bucket}/large.bin").stat().st_ino == inode


def test_a_study_goes_and_comes_back(bucket, root, study_root):
    there = export_to(study_root, "small", f"{bucket}/exports/small")
    assert there.n_files == len(contents(f"{bucket}/exports/small"))
    assert (
        restore(f"{bucket}/exports/small", root).name == (study_root / "small" / "CURRENT").read_text().splitlines()[0]
    )
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        export_to(study_root, "small", f"{bucket}/exports/small")
    fsspec.filesystem("s3").rm_file(f"{bucket}/exports/small/manifest.json")
    with pytest.raises(ValueError, match=r"found no manifest.json in s3://bucket/exports/small"):
        restore(f"{bucket}/exports/small", root, "again")


def test_what_is_not_there_is_named(bucket, tmp_path):
    for url in (f"{bucket}/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(ValueError, match=f"found nothing at {url}"):
            fetch(url)
    with pytest.raises(ValueError, match="s3://no-such-bucket/x"):
        export_to(tmp_path / "no root", "small", "s3://no-such-bucket/x")


def test_refused_and_missing_credentials_are_told_before_any_work(bucket, address, tmp_path, monkeypatch):
    put(CHECKPOINTS / "saelens" / "topk", f"{bucket}/runs/seed0")
    post(f"{address}/moto-api/reset-auth", b"0")  # from here on credentials count, and these are nobody's
    try:
        with pytest.raises(ValueError, match=r"s3://bucket/runs: access is refused .*credentials"):
            fetch(f"{bucket}/runs")
        with pytest.raises(ValueError, match=r"s3://bucket/out: access is refused .*credentials"):
            export_to(tmp_path / "no root", "small", f"{bucket}/out")
    finally:
        post(f"{address}/moto-api/reset-auth", b"1000000")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    anew()
    with pytest.raises(ValueError, match=r"s3://bucket/runs: access is refused .*credentials"):
        fetch(f"{bucket}/runs")


def test_a_server_that_is_not_there_is_told(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    anew()
    with pytest.raises(ValueError, match="s3://bucket/runs cannot be reached"):
        fetch(f"{bucket}/runs")
