"""What is fetched is what the storage has, now: compared with its bytes, byte by byte."""

from importlib.util import find_spec

import fsspec
import pytest

from seedscope.engine.urls.cache import cache_folder, each_of, fetch, fetch_matching, fetch_named, local_path, with_urls
from support.remote import files_in

URL = "memory://bucket/runs"
MEMORY = fsspec.filesystem("memory")


def write(**files: bytes) -> None:
    for name, content in files.items():
        MEMORY.pipe_file(f"{URL}/{name.replace('__', '/').replace('_', '.')}", content)


def test_a_folder_arrives_whole_and_is_not_fetched_twice(root):
    write(seed0__a_bin=b"a", seed0__deep__b_bin=b"b" * 9_000_000, c_json=b"{}")
    folder = fetch(URL)
    assert files_in(folder) == {"seed0/a.bin": b"a", "seed0/deep/b.bin": b"b" * 9_000_000, "c.json": b"{}"}
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert fetch(URL) == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    assert folder.is_relative_to(root)
    assert with_urls(f"{folder}/c.json: k") == f"{URL}/c.json: k"


def test_files_that_the_storage_changed_or_lost_are_noticed_and_the_others_kept(root):
    write(a_bin=b"one", b_bin=b"same", c_bin=b"gone")
    folder = fetch(URL)
    kept = (folder / "b.bin").stat().st_ino
    write(a_bin=b"two")  # of the same size
    MEMORY.rm_file(f"{URL}/c.bin")
    assert files_in(fetch(URL)) == {"a.bin": b"two", "b.bin": b"same"}
    assert (folder / "b.bin").stat().st_ino == kept


def test_a_file_that_somebody_wrote_to_here_is_fetched_again(root):
    write(a_bin=b"one")
    path = fetch(f"{URL}/a.bin")
    path.write_bytes(b"ONE")
    assert fetch(f"{URL}/a.bin").read_bytes() == b"one"


def test_a_stopped_fetch_goes_on_behind_the_files_that_are_whole(root):
    write(a_bin=b"one", b_bin=b"two")
    first = fetch(f"{URL}/a.bin")
    kept = first.stat().st_ino
    folder = fetch(URL)
    assert files_in(folder) == {"a.bin": b"one", "b.bin": b"two"}
    assert first.stat().st_ino == kept
    assert list((cache_folder() / "unfinished").iterdir()) == []


def test_a_file_comes_with_what_stands_beside_and_over_it_and_stale_settings_go(root):
    write(config_json=b"run", seed0__ae_pt=b"weights", seed0__config_json=b"1", seed0__other_pt=b"x")

    def names() -> list[str]:
        fetch(
            f"{URL}/seed0/ae.pt", settings_beside=lambda name: name.endswith(".json"), above=("config.json",), levels=3
        )
        return sorted(files_in(local_path(URL)))

    assert names() == ["config.json", "seed0/ae.pt", "seed0/config.json"]
    MEMORY.rm_file(f"{URL}/seed0/config.json")
    assert names() == ["config.json", "seed0/ae.pt"]
    MEMORY.rm_file(f"{URL}/config.json")
    assert names() == ["seed0/ae.pt"]


def test_patterns_name_files_in_the_order_of_their_paths_and_saes_in_natural_order(root):
    write(b_txt=b"b", a_txt=b"a", c_md=b"c", seed2__x=b"", seed10__x=b"", seed1__x=b"")
    assert [path.name for path in fetch_matching(f"{URL}/*.txt")] == ["a.txt", "b.txt"]
    assert each_of(f"{URL}/seed*") == [f"{URL}/seed1", f"{URL}/seed2", f"{URL}/seed10"]
    assert each_of("runs/seed*") == ["runs/seed*"]
    MEMORY.pipe_file("memory://bucket/runs [v2]/a.txt", b"v2")
    assert [path.read_bytes() for path in fetch_matching("memory://bucket/runs [v2]/*.txt")] == [b"v2"]
    assert fetch("memory://bucket/runs [v2]/a.txt").read_bytes() == b"v2"


@pytest.mark.parametrize(
    ("get", "words"),
    [
        (lambda: fetch("memory://bucket/nothing"), "found nothing at memory://bucket/nothing"),
        (lambda: fetch_matching(f"{URL}/*.csv"), "found no file at"),
        (lambda: fetch_matching(URL), r"is a folder, expected files; .*/\*\.txt"),
        (lambda: each_of(f"{URL}/*.csv"), "found nothing that"),
        (lambda: fetch_named(URL, ["a.txt", "b.txt"]), "found no memory://bucket/runs/b.txt"),
        (lambda: fetch_named(URL, ["../secret"]), "leads out of its folder"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(root, get, words):
    write(a_txt=b"a")
    with pytest.raises(ValueError, match=words) as refused:
        get()
    assert "\n" not in str(refused.value)


def test_a_name_that_leads_out_of_the_bucket_is_refused(root):
    MEMORY.pipe_file("memory://x/y", b"evil")
    MEMORY.store["/bucket/runs/../../../evil"] = MEMORY.store["/x/y"]
    with pytest.raises(ValueError, match="leads out of its folder"):
        fetch(URL)
    assert not list(root.rglob("evil"))


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_is_named_with_how_to_install_it(root):
    with pytest.raises(ValueError, match=r"gs://bucket/x needs the gcsfs package .*pip install gcsfs"):
        fetch("gs://bucket/x")
    assert not root.exists()
